"""Processes of a run with several, as files only: what each would write of itself, for the stand-in engine."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

from studio.config import RunConfig
from studio.durable import write_atomic
from studio.events import RankPoint, RanksEvent, RankStatus, RunError, RunState
from studio.rundir import RunDir

HOSTS = ("node-a", "node-b", "node-c", "node-d")


@dataclass
class FakeRanks:
    """All processes of a run. `bad`: the one that goes wrong; `how` it does: dies, hangs (a heartbeat that does not get
    on), or falls silent."""

    run: RunDir
    bad: int = -1
    how: str = "dies"
    message: str = "CUDA error: an illegal memory access was encountered <img src=x onerror=window.pwned=1>"
    batch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        config = self.run.config()
        section = config.parallel if isinstance(config, RunConfig) else None
        self.count = section.num_processes if section else 1
        self.each = self.count // (section.num_machines if section else 1)
        launch = self.run.read_launch()
        self.attempt = launch.attempt if launch else None

    def status(self, rank: int, **more: Any) -> None:
        """Replace the file of one process."""
        where = {"rank": rank, "local_rank": rank % self.each, "machine": rank // self.each, "pid": 4000 + rank}
        named = {"world_size": self.count, "host": HOSTS[rank // self.each % 4], "attempt": self.attempt}
        write_atomic(self.run.rank_file(rank), RankStatus.model_validate(where | named | more).model_dump_json())

    def beat(self, phase: Any, step: int, busy: str | None = None) -> None:
        """Every process says what it does; the fast ones wait for the slow one."""
        if self.count == 1:
            return
        self.run.ranks.mkdir(exist_ok=True)
        self.batch += busy == "step"
        for rank in range(self.each):  # those of this machine
            waits = busy == "step" and rank % 2 == 1
            more = {"phase": phase, "step": step, "batch": self.batch, "memory_bytes": 600_000_000 + rank * 9_000_000}
            self.status(rank, busy=None if waits else busy or phase, tokens_per_second=900.0 - rank, **more)
            if rank:
                with self.run.rank_log(rank).open("a", encoding="utf-8") as log:
                    log.write(f"process {rank}: {phase} step {step}\n")

    def points(self, step: int, seconds: float) -> RanksEvent | None:
        """The processes beside each other; None for one alone."""
        if self.count == 1:
            return None
        noise = random.Random(step)
        return RanksEvent(
            step=step,
            ranks=[
                RankPoint(
                    rank=rank,
                    host=HOSTS[rank // self.each % 4],
                    memory_bytes=600_000_000 + rank * 9_000_000,
                    tokens_per_second=900 + noise.random() * 90 - 40 * (rank % 3),
                    step_seconds=seconds,
                    waited_seconds=seconds * (0.04 + 0.13 * (rank % 3)),
                )
                for rank in range(self.count)
            ],
        )

    def hang(self, step: int) -> None:
        """One look of a run that does not get on: the others wait, the bad one is in its step, or says nothing."""
        if self.count == 1:
            return
        for rank in range(self.each):
            bad = rank == self.bad
            old = time.time() - 45 if bad and self.how == "silent" else time.time()
            more = {"phase": "train", "step": step, "batch": self.batch, "memory_bytes": 600_000_000}
            self.status(rank, busy="step" if bad else None, updated_at=old, **more)

    def die(self, step: int) -> RunError | None:
        """One of them dies and takes the others along; what the launcher then says of the run."""
        if self.bad < 0 or self.how != "dies":
            return None
        error = RunError(kind="internal", message=self.message, hint="")
        self.status(self.bad, phase="train", step=step, batch=self.batch, state=RunState.FAILED, error=error)
        with self.run.rank_log(self.bad).open("a", encoding="utf-8") as log:
            log.write(f'Traceback (most recent call last):\n  File "step.py", line 7, in step\n{self.message}\n')
        host = HOSTS[self.bad // self.each % 4]
        message = f"Process {self.bad} of {self.count} ({host}): {self.message}"
        return RunError(kind="internal", message=message, details={"rank": self.bad})

    def end(self, state: RunState, step: int) -> None:
        """The last word of those that did not die."""
        if self.count == 1:
            return
        for rank in range(self.each):
            if rank != self.bad or state is not RunState.FAILED:
                self.status(rank, phase="train", step=step, batch=self.batch, state=state)
