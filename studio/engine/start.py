"""The first moment of a training: its directory shows a sign of life before anything that takes time is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from studio.checkpoints import last_checkpoint, step_of
from studio.engine.journal import Journal, supervise
from studio.engine.ticker import importing
from studio.events import ExitCode, RunState
from studio.rundir import RunDir

Training = Callable[[RunDir, Journal, Path | None], RunState]
"""(run, its journal, the checkpoint to go on from) -> how it ended."""


def start(run_dir: str, training: Callable[[], Training], *, resume: bool = False) -> int:
    """Train, and return the exit code (`studio.events.ExitCode`). `resume`: go on from the last whole checkpoint.

    `training` imports and returns what does the work.
    """
    run = RunDir(Path(run_dir).absolute())
    if not resume and last_checkpoint(run.checkpoints):
        print(f"{run.path} has checkpoints already; start it with --resume", file=sys.stderr)  # noqa: T201
        return int(ExitCode.BAD_INPUT)
    return supervise(run, lambda journal: _begin(run, journal, training, resume))


def _begin(run: RunDir, journal: Journal, training: Callable[[], Training], resume: bool) -> RunState:
    checkpoint = last_checkpoint(run.checkpoints) if resume else None
    journal.begin(resumed_from=step_of(checkpoint) if checkpoint else None)
    journal.phase("load")
    with importing(journal):
        work = training()
    return work(run, journal, checkpoint)
