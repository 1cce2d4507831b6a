"""The journal of one of several processes of a run: `ranks/rankN.json`, and for the first one the run's own files.

The launcher (`studio.engine.launch`) tells how a run begins and how it ends; rank 0 tells everything between. So a rank
never writes an end into status.json: it leaves its state, its exit code and its error in its own file and goes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

from studio.engine import activity, ranks
from studio.engine.journal import Journal
from studio.events import Event, ExitCode, RankStatus, RunError, RunState
from studio.memory_room import resident
from studio.rundir import RunDir, write_atomic

ABANDONED = 1
"""Exit code of a rank whose launcher is gone; nobody is left to read it."""


class RankJournal(Journal):
    """As `Journal`, for a rank: only rank 0 writes events and status.json, each writes its own file.

    A rank obeys the stop file. SIGTERM is how the launcher ends a rank whose fellows are gone: then it just ends.
    """

    def __init__(self, run: RunDir, attempt: int | None) -> None:
        super().__init__(run, attempt)
        self.first = ranks.is_first()
        self.told = RankStatus(
            rank=ranks.rank(),
            local_rank=ranks.local_rank(),
            world_size=ranks.world(),
            machine=ranks.machine(),
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=attempt,
        )
        self._parent = os.getppid()
        self._moves, self._progress = 0, (0, 0, "")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """As ever, but signals end this process at once, also while a library waits for the others."""
        with super().watching():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            yield

    def emit(self, event: Event) -> None:
        """Only the first rank has something to tell."""
        if self.first:
            super().emit(event)

    def update(self, *, force: bool = False, **changes: object) -> None:
        """As ever; a change is a move."""
        self._moves += bool(changes)
        super().update(force=force, **changes)

    def progress(self, done: int, total: int, label: str) -> None:
        """As ever; that it is as far as before is no move."""
        self._moves += self._progress != (done, total, label)
        self._progress = (done, total, label)
        super().progress(done, total, label)

    def measured(self, tokens_per_second: float | None) -> None:
        """Goes into the rank's own file."""
        with self._lock:
            self.told = self.told.model_copy(update={"tokens_per_second": tokens_per_second})

    def finish(self, state: RunState, code: ExitCode, error: RunError | None = None) -> None:
        """Leave the end for the launcher to read. A full disk does not hide the reason.

        Who misses the others after a stop was asked for was only left a little earlier by them.
        """
        if error is not None and error.lost and self.stop_requested():
            state, code, error = RunState.STOPPED, ExitCode.STOPPED, None
        with self._lock, contextlib.suppress(OSError):
            self.told = self.told.model_copy(update={"state": state, "error": error, "exit_code": int(code)})
            try:
                self._tell()
            except OSError:
                self._tell_in_place()

    def _publish(self) -> None:
        self._tell()
        if self.first:
            super()._publish()

    def _tell(self) -> None:
        doing = activity.current()
        now = {
            "phase": self.status.phase,
            "step": self.status.step,
            "busy": doing.name if doing and not ranks.waiting() else None,
            "batch": activity.begun()["step"],
            "moves": self._moves + activity.begun().total(),
            "meetings": ranks.meetings(),
            "memory_bytes": activity.gpu_allocated() or resident(),
            "updated_at": time.time(),
        }
        self.told = self.told.model_copy(update=now)
        write_atomic(self.run.rank_file(self.told.rank), self.told.model_dump_json(indent=1))

    def _tell_in_place(self) -> None:
        """Over the file's own blocks: the last word on a disk too full for a second file."""
        with self.run.rank_file(self.told.rank).open("r+b") as file:
            file.write(self.told.model_dump_json().encode())
            file.truncate()

    def _look_around(self) -> None:
        """A rank does not outlive its launcher."""
        if os.getppid() != self._parent:
            os._exit(ABANDONED)

    def _interrupt(self) -> None:
        """Nothing is lost by going at once, and the main thread may be waiting for a fellow that is gone already."""
        self.finish(RunState.STOPPED, ExitCode.STOPPED)
        os._exit(0)
