"""Merges an adapter into its base model: `python -m studio.engine merge RUN_DIR`.

The story is here and in order: check everything that can be checked at once, load, merge, save beside the goal, prove
that the saved model answers like base + adapter, and only then give it its name. The sums are in
`merged_weights.py`, the proof in `proof.py`; torch is loaded after the first sign of life.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from studio.chains import other_base
from studio.config import MergeConfig
from studio.engine.converted import write_back
from studio.engine.failure import EngineError
from studio.engine.journal import Journal, supervise
from studio.engine.mergeplan import Plan, make_plan
from studio.engine.output_folder import filling, open_goal, refused, settle, shortages_named, work_folder
from studio.engine.quick_import import quickly
from studio.events import ExitCode, RunError, RunState
from studio.rundir import RunDir

HINT = "Try precision float32 or the other base."


def main(run_dir: str) -> int:
    """Merge as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), merge_run)


def merge_run(journal: Journal) -> RunState:
    """The whole merge. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    config = journal.run.config()
    if not isinstance(config, MergeConfig):
        raise refused("config", "kind", f"kind: run {journal.run.id} is no merge.", "Start it with what it is.")
    with shortages_named("the merged model", "base"):
        out = open_goal(config.out)
        work = work_folder(journal.run, out)
        plan = _plan(config, journal, work)
        started = time.time()
        with filling(work, journal):
            report = _merge(plan, journal)
            journal.interruptible = False  # from here on it is done; a late stop must not call it stopped
            report["seconds"] = round(time.time() - started, 1)
            return settle(journal, (work, out), report, "merged", HINT)


def merge_folder(config: MergeConfig, journal: Journal, folder: Path) -> dict[str, Any]:
    """Merge into `folder`, an empty one the caller made and clears away, and prove it; returns the report.

    `config.out` is only the name on the model's card. Raises EngineError as a merge does, and when the proof fails.
    """
    report = _merge(_plan(config, journal, folder), journal)
    if not report["proof"]["passed"]:
        sentence = f"adapter: the merged model does not pass the proof: {report['proof']['reason']}."
        raise EngineError(RunError(kind="model", message=sentence, hint=HINT, field="adapter"), ExitCode.INTERNAL)
    return report


def _plan(config: MergeConfig, journal: Journal, folder: Path) -> Plan:
    workspace = journal.run.path.parent.parent
    return make_plan(config, folder, workspace, lambda done, all_: journal.progress(done, all_, "tensors converted"))


def _merge(plan: Plan, journal: Journal) -> dict[str, Any]:
    """Fill the folder of the plan; returns the report, whether the proof passed or not."""
    journal.phase("load", f"{plan.base.ref}, {plan.adapter.folder.name}")
    with quickly():
        from studio.engine import merged_weights, proof, sides  # seconds to import

    for part in plan.adapters:
        other = other_base(part.files.config, plan.config.base)
        if other:
            journal.warn(
                f"The adapter was trained on {other}; it is merged into {plan.config.base}, as was asked for.", "base"
            )
    how = sides.choose_how(plan)
    if how.whole:
        journal.warn(f"base: the whole model is held in memory for this merge, because {how.whole}.", "base")
    merged = merged_weights.build(plan, how, journal)
    report = proof.prove(plan, how, merged, journal) | ({"layout": plan.layout} if plan.layout else {})
    if plan.config.layout == "original" and plan.original and report["proof"]["passed"]:
        journal.phase("save", plan.layout)
        proven = proof.proven_tensors(plan.work)
        write_back(plan.original, plan.work)
        proof.prove_rewritten(report, proven, plan.original, plan.work)
    return report
