"""What the launcher does while its ranks train: passes a stop on to them, names the one that holds the others up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psutil

from studio.engine.journal import Journal
from studio.engine.rank_ends import Stuck, warning
from studio.engine.rank_watch import RankWatch
from studio.events import RankStatus, WarningEvent

PERIOD_S = 0.5
FIELD = "parallel.ddp_timeout"


class Shepherd:
    """Watches the ranks of this machine. `stuck`: the one the others wait for now, or waited for when they gave up."""

    def __init__(self, journal: Journal, timeout: int) -> None:
        self.journal, self.timeout = journal, timeout
        self.stuck: Stuck | None = None
        self._watch = RankWatch(timeout)
        self._over = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While the ranks are at work."""
        thread = threading.Thread(target=self._run, name="shepherd", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def statuses(self) -> list[RankStatus]:
        """What the ranks of this start of the run said last."""
        return [one for one in self.journal.run.read_ranks() if one.attempt == self.journal.status.attempt]

    def _run(self) -> None:
        while not self._over.wait(PERIOD_S):
            with contextlib.suppress(OSError, psutil.Error):
                self._pass_on()
                self._look()

    def _pass_on(self) -> None:
        """A signal was sent to this process only; the stop file is seen by every rank.

        On a disk that takes no more nothing could be saved either: then the ranks are ended.
        """
        run = self.journal.run
        if not self.journal.stop_requested() or run.stop_requested():
            return
        try:
            run.request_stop()
        except OSError:
            for rank in psutil.Process().children():
                rank.terminate()

    def _look(self) -> None:
        found = self.statuses()
        stuck = self._watch.look(found, time.monotonic())
        if stuck is not None and (self.stuck is None or self.stuck.rank != stuck.rank):
            step = max((one.step for one in found), default=0)
            said = warning(stuck, found[0].world_size, self.timeout)
            self.journal.run.append_event(WarningEvent(step=step, message=said, field=FIELD))
        # Where one failed already, whoever it was that held the others up is remembered.
        if stuck is not None or all(one.error is None for one in found):
            self.stuck = stuck
