"""How a run with several processes failed, from how each process of this machine ended: which was first, and why.

When one process dies the others soon fail too, for want of it; what they say then hides the reason. So deaths that
nothing else can cause come first, then what a process says of itself, and its complaints about others last.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.events import RANK, ExitCode, RankStatus, RunError

_ENDED_BY_US = -signal.SIGTERM
_CRASHES = {-getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE") if hasattr(signal, name)}
_KILLED = -getattr(signal, "SIGKILL", 9)
_OURS = ("config", "data", "model")
GRACE_S = 20
"""Whoever is killed so long after the first one failed was killed because it did not end when told to."""
LAST_WORDS = 200


@dataclass(frozen=True)
class RankEnd:
    """How one process ended: its exit code (negative: the signal), Unix seconds, its last status and its last line."""

    rank: int
    exit_code: int
    at: float = 0.0
    status: RankStatus | None = None
    last_line: str = ""

    @property
    def error(self) -> RunError | None:
        """What it says of its failure."""
        return self.status.error if self.status else None

    @property
    def lost(self) -> bool:
        """Whether it only missed another one."""
        return bool(self.error and self.error.lost)

    @property
    def blames(self) -> int:
        """The process whose failure it tells: mostly its own."""
        told = self.error.rank if self.error else None
        return self.rank if told is None else told

    @property
    def ended_by_us(self) -> bool:
        """Whether it was told to end, as the launcher tells all when one has failed."""
        return self.exit_code == _ENDED_BY_US


@dataclass(frozen=True)
class Stuck:
    """A process that the others wait for: what it is in the middle of, and for how many seconds it has not moved."""

    rank: int
    host: str
    doing: str
    seconds: float
    silent: bool = False


def cause(ends: Sequence[RankEnd]) -> RankEnd | None:
    """The process that failed first, of those that did not end well; None when all did."""
    failed = [end for end in ends if end.exit_code]
    began = min((end.at for end in failed), default=0.0)
    return min(failed, key=lambda end: (_order(end, began), end.at, _heard(end), end.rank), default=None)


def _order(end: RankEnd, began: float) -> int:
    if end.exit_code in _CRASHES or (end.exit_code == _KILLED and end.at < began + GRACE_S):
        return 0
    if end.error is not None and not end.lost:
        return 1 if end.blames == end.rank else 2
    if end.exit_code == _ENDED_BY_US or end.exit_code == _KILLED:
        return 4
    return 3 if end.lost else 2


def _heard(end: RankEnd) -> float:
    """Whoever was ended from outside first is the one that was heard of last the longest ago."""
    return end.status.updated_at if end.status else 0.0


def told(end: RankEnd, world: int, host: str, stuck: Stuck | None = None) -> tuple[RunError, ExitCode]:
    """What a person is told of a run that failed because of `end`. `stuck`: who the others were waiting for then."""
    if stuck is not None and (end.lost or end.exit_code == _ENDED_BY_US):
        return _blamed(_hung(stuck, world), stuck.rank), ExitCode.INTERNAL
    code = ExitCode(end.exit_code) if end.exit_code in list(ExitCode) else ExitCode.INTERNAL
    if end.error is not None and end.exit_code > 0:
        if end.error.kind in _OURS:  # about the user's input, which all of them have
            return end.error, code
        return _blamed(_of_process(end, end.error, named(end.rank, world, host)), end.blames), code
    return _blamed(_without_words(end, named(end.rank, world, host)), end.rank), ExitCode.INTERNAL


def _blamed(error: RunError, rank: int) -> RunError:
    return error.model_copy(update={"details": error.details | {RANK: rank}})


def _of_process(end: RankEnd, error: RunError, name: str) -> RunError:
    """What a process says of its failure, with its name; of another's failure the name is there already."""
    hint = error.hint.replace("engine.log", log_of(end.blames))
    if end.blames != end.rank:
        return error.model_copy(update={"hint": hint})
    field, _, rest = error.message.partition(": ")
    of_field = bool(error.field) and field == error.field
    message = f"{field}: p{name[1:]}: {rest}" if of_field else f"{name}: {error.message}"
    return error.model_copy(update={"message": message, "hint": hint})


def _without_words(end: RankEnd, name: str) -> RunError:
    """Of a process that says nothing of its failure."""
    if end.exit_code < 0:
        return _signalled(end, name)
    said = f", after it said: {end.last_line[:LAST_WORDS]}" if end.last_line else ""
    message = f"{name} ended with exit code {end.exit_code}{said}."
    return RunError(kind="internal", message=message, hint=_story(end.rank))


def _signalled(end: RankEnd, name: str) -> RunError:
    known = {int(one): one.name for one in signal.Signals}
    which = known.get(-end.exit_code, f"signal {-end.exit_code}")
    doing = f", in the middle of {end.status.busy}" if end.status and end.status.busy else ""
    step = f" at step {end.status.step}" if end.status and end.status.step else ""
    message = f"{name} was killed by {which}{step}{doing}."
    if end.exit_code == _KILLED:
        hint = (
            "Somebody killed it, or the kernel did because memory ran out (dmesg tells). If it was memory, lower the "
            "batch size or use fewer processes. Then resume the run."
        )
    elif end.exit_code == _ENDED_BY_US:
        hint = "Somebody, or the system, ended it. Resume the run."
    else:
        hint = f"A library crashed. {_story(end.rank)}"
    return RunError(kind="internal", message=message, hint=hint)


def _hung(stuck: Stuck, world: int) -> RunError:
    message = f"{named(stuck.rank, world, stuck.host)} {how(stuck)}. The others gave up waiting for it."
    hint = f"Look at that machine, then resume the run. {_story(stuck.rank)}"
    return RunError(kind="internal", message=message, hint=hint, field="parallel.ddp_timeout")


def warning(stuck: Stuck, world: int, timeout: int) -> str:
    """What is said while the others still wait."""
    return (
        f"{named(stuck.rank, world, stuck.host)} {how(stuck)}. The others wait for it, at most {timeout} s "
        "(parallel.ddp_timeout)."
    )


def how(stuck: Stuck) -> str:
    """What is wrong with a process that the others wait for."""
    if stuck.silent:
        return f"has not been heard of for {stuck.seconds:.0f} s, in the middle of {stuck.doing}"
    return f"has been in the middle of {stuck.doing} for {stuck.seconds:.0f} s"


def named(rank: int, world: int, host: str) -> str:
    """A process as a person calls it."""
    return f"Process {rank} of {world} ({host})"


def log_of(rank: int) -> str:
    """The name of its log."""
    return f"engine.rank{rank}.log" if rank else "engine.log"


def _story(rank: int) -> str:
    return f"The full story is at the end of {log_of(rank)}."


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if any(map(str.isalpha, line))), "")


def ends_of(
    codes: Mapping[int, tuple[int, float]], statuses: Iterable[RankStatus], lines: Mapping[int, str]
) -> list[RankEnd]:
    """The ends of this machine's processes. `codes`: exit code and Unix seconds of each that did not end well."""
    known = {status.rank: status for status in statuses}
    return [RankEnd(rank, code, at, known.get(rank), lines.get(rank, "")) for rank, (code, at) in sorted(codes.items())]
