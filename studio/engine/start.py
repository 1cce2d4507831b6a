"""The first moment of a training: its directory shows a sign of life before anything that takes time is imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from studio import processes
from studio.checkpoints import last_checkpoint, step_of
from studio.engine import launch, ranks
from studio.engine.journal import Journal, supervise, supervised
from studio.engine.rank_journal import RankJournal
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
    if launch.wanted(run):
        return supervise(run, lambda journal: launch.launch(run, journal, resume))
    return supervise(run, lambda journal: _begin(run, journal, training, resume))


def start_rank(run_dir: str, training: Callable[[], Training], *, resume: bool = False) -> int:
    """Train as one of several processes, started by the launcher, and return the exit code."""
    run = RunDir(Path(run_dir).absolute())
    if not ranks.is_first():
        _write_to(run.rank_log(ranks.rank()))
    journal = RankJournal(run, processes.marked_attempt(os.environ))
    code = supervised(journal, lambda journal: _take_part(run, journal, training, resume))
    if code not in (ExitCode.FINISHED, ExitCode.STOPPED):
        _go_at_once(code)
    return int(ExitCode.FINISHED)  # any other code would end the fellows


def _go_at_once(code: int) -> NoReturn:
    """End a process that failed. To leave its group properly can mean to wait for fellows that wait for it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _write_to(log: Path) -> None:
    """Everything this process says goes to a file of its own from here on, also what libraries in C say."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _take_part(run: RunDir, journal: Journal, training: Callable[[], Training], resume: bool) -> RunState:
    checkpoint = last_checkpoint(run.checkpoints) if resume else None
    journal.update(force=True, phase="load", step=step_of(checkpoint) if checkpoint else 0)
    with importing(journal):
        work = training()
    ended = work(run, journal, checkpoint)
    ranks.leave()
    return ended


def _begin(run: RunDir, journal: Journal, training: Callable[[], Training], resume: bool) -> RunState:
    checkpoint = last_checkpoint(run.checkpoints) if resume else None
    journal.begin(resumed_from=step_of(checkpoint) if checkpoint else None)
    journal.phase("load")
    with importing(journal):
        work = training()
    return work(run, journal, checkpoint)
