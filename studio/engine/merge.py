"""Merges an adapter into its base model: `python -m studio.engine merge RUN_DIR`.

The story is here and in order: check everything that can be checked at once, load, merge, save beside the goal, prove
that the saved model answers like base + adapter, and only then give it its name. The sums are in
`merged_weights.py`, the proof in `proof.py`; torch is loaded after the first sign of life.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.engine.converted import write_back
from studio.engine.failure import EngineError, explain
from studio.engine.journal import Journal, supervise
from studio.engine.mergeplan import Plan, free_name, make_plan, taken_already
from studio.events import ExitCode, RunError, RunState, SavedEvent
from studio.rundir import RunDir, write_atomic


def main(run_dir: str) -> int:
    """Merge as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), merge_run)


def merge_run(journal: Journal) -> RunState:
    """The whole merge. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    with _memory_and_disk_named():
        plan = make_plan(journal.run, lambda done, total: journal.progress(done, total, "tensors converted"))
        started = time.time()
        with _working_folder(plan, journal):
            journal.phase("load", f"{plan.base.ref}, {plan.adapter.folder.name}")
            from studio.engine import merged_weights, proof  # seconds to import

            merged = merged_weights.build(plan, journal)
            report = proof.prove(plan, merged, journal) | ({"layout": plan.layout} if plan.layout else {})
            if plan.config.layout == "original" and plan.original and report["proof"]["passed"]:
                journal.phase("save", plan.layout)
                write_back(plan.original, plan.work)
            journal.interruptible = False  # from here on it is done; a late stop must not call it stopped
            return _settle(plan, report | {"seconds": round(time.time() - started, 1)}, journal)


@contextlib.contextmanager
def _working_folder(plan: Plan, journal: Journal) -> Iterator[None]:
    """The folder that is filled; gone afterwards, however this ends (unless it has been given its name)."""
    shutil.rmtree(plan.work, ignore_errors=True)  # left by an engine that was killed
    try:
        plan.work.mkdir()
        yield
    finally:
        journal.interruptible = False  # a second stop must not break off the cleaning
        shutil.rmtree(plan.work, ignore_errors=True)


@contextlib.contextmanager
def _memory_and_disk_named() -> Iterator[None]:
    """Say what a lack of memory or disk means for a merge."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        known, code = explain(error)
        if code is ExitCode.OUT_OF_MEMORY:
            hint = "Close other programs, or merge on a machine with more memory."
            memory = RunError(kind="memory", message="base: the merge needs more memory than there is.", hint=hint)
            raise EngineError(memory.model_copy(update={"field": "base"}), code) from error
        if known.kind == "disk":
            message = f"out: the merged model cannot be written ({getattr(error, 'strerror', None) or error})."
            hint = "Free some space or choose a folder on another disk; nothing was left behind."
            raise EngineError(RunError(kind="disk", message=message, hint=hint, field="out"), code) from error
        raise


def _settle(plan: Plan, report: dict[str, Any], journal: Journal) -> RunState:
    """Give the folder its name, or, when the proof failed, a name nobody takes for a good model."""
    passed = bool(report["proof"]["passed"])
    goal = plan.out if passed else free_name(plan.out.with_name(f"{plan.out.name}.unproven"))
    if goal.exists() or goal.is_symlink():
        raise taken_already(goal)
    plan.work.chmod(0o755)
    plan.work.rename(goal)
    report["out"] = str(goal)
    write_atomic(journal.run.report_file, json.dumps(report, ensure_ascii=False, indent=1))
    if passed:
        journal.emit(SavedEvent(path=str(goal), what="merged"))
        return RunState.FINISHED
    raise EngineError(
        RunError(
            kind="model",
            message=f"adapter: the merged model does not pass the proof: {report['proof']['reason']}.",
            hint=f"It is kept in {goal} to be looked at; do not use it. Try precision float32 or the other base.",
            field="adapter",
        ),
        ExitCode.INTERNAL,
    )
