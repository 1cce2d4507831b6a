"""Merges an adapter into its base model: `python -m studio.engine merge RUN_DIR`.

The story is here and in order: check everything that can be checked at once, load, merge, save beside the goal, prove
that the saved model answers like base + adapter, and only then give it its name. The sums are in
`merged_weights.py`, the proof in `proof.py`; torch is loaded after the first sign of life.
"""

from __future__ import annotations

import time
from pathlib import Path

from studio.engine.converted import write_back
from studio.engine.journal import Journal, supervise
from studio.engine.mergeplan import make_plan
from studio.engine.output_folder import filling, settle, shortages_named
from studio.events import RunState
from studio.rundir import RunDir

HINT = "Try precision float32 or the other base."


def main(run_dir: str) -> int:
    """Merge as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), merge_run)


def merge_run(journal: Journal) -> RunState:
    """The whole merge. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    with shortages_named("the merged model", "base"):
        plan = make_plan(journal.run, lambda done, total: journal.progress(done, total, "tensors converted"))
        started = time.time()
        with filling(plan.work, journal):
            journal.phase("load", f"{plan.base.ref}, {plan.adapter.folder.name}")
            from studio.engine import merged_weights, proof  # seconds to import

            merged = merged_weights.build(plan, journal)
            report = proof.prove(plan, merged, journal) | ({"layout": plan.layout} if plan.layout else {})
            if plan.config.layout == "original" and plan.original and report["proof"]["passed"]:
                journal.phase("save", plan.layout)
                write_back(plan.original, plan.work)
            journal.interruptible = False  # from here on it is done; a late stop must not call it stopped
            report["seconds"] = round(time.time() - started, 1)
            return settle(journal, (plan.work, plan.out), report, "merged", HINT)
