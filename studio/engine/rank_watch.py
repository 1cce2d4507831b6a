"""Which process the others wait for, from what each says of itself; pure, with the clock of whoever looks.

Every process writes its `RankStatus` about once a second, from a thread of its own. One that is stopped, or sits in a
library that lets no other thread run, falls silent. One that hangs in its own code goes on writing, but does not move,
and has been at fewer meetings (`RankStatus.meetings`) than those that wait for it at the next one.

How long is waited in the end is `parallel.ddp_timeout`: then gloo, or NCCL's watchdog, fails the processes that wait,
and the launcher ends the one they waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from studio.engine.rank_ends import Stuck
from studio.events import RankStatus, RunState

SILENT_S = 30.0
STILL_S = 60.0
LONGEST_SHARE = 1 / 3
"""Of the longest wait: whoever hangs is named well before the run is ended for it."""


@dataclass
class _Seen:
    said: float = 0.0
    at: float = 0.0
    moves: tuple[object, ...] = ()
    moved: float = 0.0


@dataclass
class RankWatch:
    """Remembers since when each process has been silent, and since when it has not moved."""

    timeout: float
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def look(self, ranks: Sequence[RankStatus], now: float) -> Stuck | None:
        """The process that holds the others up, if one has for long. `now`: seconds of any clock that only runs on."""
        for one in ranks:
            self._note(one, now)
        working = [one for one in ranks if one.state is RunState.RUNNING]
        silent_for = min(SILENT_S, self.timeout * LONGEST_SHARE)
        silent = [one for one in working if now - self._seen[one.rank].at >= silent_for]
        if silent:
            longest = min(silent, key=lambda one: self._seen[one.rank].at)
            return self._stuck(longest, now - self._seen[longest.rank].at, silent=True)
        still_for = min(STILL_S, self.timeout * LONGEST_SHARE)
        if len(working) < 2 or any(now - self._seen[one.rank].moved < still_for for one in working):
            return None
        behind = _behind(working)
        return self._stuck(behind, now - self._seen[behind.rank].moved) if behind else None

    def _note(self, one: RankStatus, now: float) -> None:
        moves = (one.phase, one.step, one.batch, one.busy, one.moves, one.meetings)
        known = self._seen.setdefault(one.rank, _Seen(one.updated_at, now, moves, now))
        if one.updated_at != known.said:
            known.said, known.at = one.updated_at, now
        if moves != known.moves:
            known.moves, known.moved = moves, now

    def _stuck(self, one: RankStatus, seconds: float, *, silent: bool = False) -> Stuck:
        return Stuck(one.rank, one.host, doing(one), seconds, silent)


def _behind(working: Sequence[RankStatus]) -> RankStatus | None:
    """Who has been at fewer meetings than the others; else the only one that is not waiting."""
    least = min(one.meetings for one in working)
    late = [one for one in working if one.meetings == least]
    if len(late) < len(working):
        return min(late, key=lambda one: one.busy is None)
    busy = [one for one in working if one.busy is not None]
    return busy[0] if len(busy) == 1 else None


def doing(one: RankStatus) -> str:
    """What a process is in the middle of, for a sentence."""
    if one.busy == "step":
        return f"batch {one.batch} (step {one.step + 1})"
    return f"“{one.busy}”" if one.busy else f"the phase “{one.phase}”" if one.phase else "its start"
