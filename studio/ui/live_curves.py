"""The curves of runs as tables of numbers: each event is parsed once, whoever watches is given what is new to him.

A watcher names the byte of `events.jsonl` up to which he has seen everything. Every row remembers the byte behind the
block it came with, so what he misses is found by bisection, and a studio that was restarted goes on where he was.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from studio.events import (
    AnyEvent,
    CountsEvent,
    EvalEvent,
    LogEvent,
    PhaseEvent,
    ProgressEvent,
    RanksEvent,
    SampleEvent,
    SavedEvent,
    StartedEvent,
    VerdictEvent,
    WarningEvent,
)
from studio.rundir import RunDir

COLUMNS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "step_seconds",
    "memory_bytes",
    "gpu_utilization",
    "gpu_power_watts",
    "mfu",
    "padding",
    "epoch",
    "t",
)
EXAM = ("learned", "leaked", "retained", "perplexity")
READ_BYTES = 4 * 1024 * 1024
ROWS_ANSWERED = 20_000
ROWS_KEPT = 120_000
RUNS_KEPT = 24
SAYINGS_KEPT = 500
RANKS_KEPT = 60  # of the points of processes beside each other: the course of the last minutes


class Table:
    """Rows by step. A row of the last step again fills its gaps; one of an earlier step replaces all from there on."""

    def __init__(self, names: Iterable[str]) -> None:
        self.columns: dict[str, array[float]] = {name: array("d") for name in ("step", *names)}
        self._seen: array[int] = array("q")  # byte behind the block that changed the row last; never falls
        self._cut = 0  # byte behind the block that removed rows last
        self._thinned = 0

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, event: AnyEvent, end: int) -> None:
        """Take the values of an event that ends before byte `end`."""
        steps = self.columns["step"]
        if len(self) and steps[-1] == event.step:
            for name, column in self.columns.items():
                value = _number(getattr(event, name, None))
                column[-1] = column[-1] if math.isnan(value) else value
            self._seen[-1] = end
            return
        self.forget_from(event.step, end)
        for name, column in self.columns.items():
            column.append(_number(getattr(event, name, None)))
        self._seen.append(end)
        if len(self) > ROWS_KEPT:
            self._thin(end)

    def forget_from(self, step: float, end: int) -> None:
        """Drop the rows at and after a step, because of an event that ends before byte `end`."""
        steps = self.columns["step"]
        if not len(self) or steps[-1] < step:
            return
        keep = bisect_left(steps, step)
        for column in self.columns.values():
            del column[keep:]
        del self._seen[keep:]
        self._cut = end

    def _thin(self, end: int) -> None:
        """Keep every second row; everybody is sent the shorter table."""
        for name in self.columns:
            self.columns[name] = self.columns[name][::2]
        self._seen = self._seen[::2]
        self._thinned = end

    def since(self, after: int, upto: int) -> tuple[dict[str, list[float]], int | None]:
        """Rows changed between two bytes, and the step after which the watcher's own rows are void (None: none is)."""
        first = 0 if after < self._thinned else bisect_right(self._seen, after)
        last = bisect_right(self._seen, upto)
        found = {name: column[first:last].tolist() for name, column in self.columns.items()}
        if first >= last and self._cut <= after:
            return found, None
        return found, int(self.columns["step"][first - 1]) if first else -1

    def part_end(self, after: int) -> int | None:
        """The byte up to which one answer goes; None when all that is new fits."""
        first = 0 if after < self._thinned else bisect_right(self._seen, after)
        place = first + ROWS_ANSWERED
        return self._seen[place] if place < len(self) and self._seen[place] > after else None


def _number(value: float | None) -> float:
    # Seven digits are more than any curve shows, and halve what is sent; a time needs its seconds.
    if value is None:
        return math.nan
    return round(value, 1) if abs(value) >= 1e7 else float(f"{value:.7g}")


class LiveCurves:
    """Everything the page draws of one run, kept up to date by `read`; hold `lock` around both ways of use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self.offset = 0
        self.points, self.evals, self.exams = Table(COLUMNS), Table(("eval_loss",)), Table(EXAM)
        self.asked, self.saved = Table(()), Table(())
        self.counts: tuple[int, CountsEvent] | None = None
        self.progress: tuple[int, ProgressEvent] | None = None
        self.eta: tuple[int, float | None] | None = None
        self.sample_end = 0
        self.ranks: deque[RanksEvent] = deque(maxlen=RANKS_KEPT)
        self._phases: list[tuple[int, dict[str, Any]]] = []
        self._warnings: list[tuple[int, dict[str, Any]]] = []

    @property
    def tables(self) -> dict[str, Table]:
        """By the name under which each is sent."""
        return {
            "points": self.points,
            "evals": self.evals,
            "exams": self.exams,
            "asked": self.asked,
            "saved": self.saved,
        }

    def read(self, run: RunDir) -> bool:
        """Take in at most 4 MB of new events; True when there is more. Starts over when the file was replaced."""
        events, end = run.read_events(self.offset, READ_BYTES)
        if end < self.offset:
            self._clear()
            events, end = run.read_events(0, READ_BYTES)
        before, self.offset = self.offset, end
        for event in events:
            self._take(event, end)
        return end > before and end - before >= READ_BYTES // 2

    def _take(self, event: AnyEvent, end: int) -> None:
        match event:
            case LogEvent():
                self.points.add(event, end)
                for table in (self.evals, self.exams, self.asked, self.saved):
                    table.forget_from(event.step + 1, end)
                self.eta = (end, event.eta_seconds)
            case EvalEvent():
                self.evals.add(event, end)
            case VerdictEvent():
                self.exams.add(event, end)
            case SampleEvent():
                self.asked.add(event, end)
                self.sample_end = end
            case SavedEvent(what="checkpoint"):
                self.saved.add(event, end)
            case RanksEvent():
                self.ranks.append(event)
            case StartedEvent():
                self.ranks.clear()
                for table in self.tables.values():
                    table.forget_from((event.resumed_from or 0) + 1, end)
            case _:
                self._note(event, end)

    def _note(self, event: AnyEvent, end: int) -> None:
        match event:
            case CountsEvent():
                self.counts = (end, event)
            case ProgressEvent():
                self.progress = (end, event)
            case PhaseEvent():
                phase = {"name": event.name, "t": event.t, "detail": event.detail, "step": event.step}
                self._phases.append((end, phase))
            case WarningEvent():
                self._warnings.append((end, event.model_dump(include={"message", "field", "step"})))
        for sayings in (self._phases, self._warnings):
            del sayings[:-SAYINGS_KEPT]

    def since(self, after: int) -> dict[str, Any]:
        """What came after byte `after`, up to 20,000 points of it; ``offset`` is what to name next time."""
        after = after if 0 <= after <= self.offset else 0
        upto = self.points.part_end(after) or self.offset
        found: dict[str, Any] = {"offset": upto, "rewind": {}}
        for name, table in self.tables.items():
            found[name], found["rewind"][name] = table.since(after, upto)
        for name, sayings in (("phases", self._phases), ("warnings", self._warnings)):
            found[name] = [said for end, said in sayings if after < end <= upto]
        for name, latest in (("counts", self.counts), ("progress", self.progress)):
            found[name] = latest[1].model_dump() if latest and after < latest[0] <= upto else None
        found["eta_seconds"] = self.eta[1] if self.eta and after < self.eta[0] <= upto else None
        return found | {"samples_end": self.sample_end, "more": upto < self.offset}


class Watched:
    """The curves of the runs somebody looked at lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._curves: OrderedDict[str, LiveCurves] = OrderedDict()

    def of(self, run: RunDir) -> LiveCurves:
        """The one object for a run; hold its lock while using it."""
        with self._lock:
            found = self._curves.setdefault(str(run.path), LiveCurves())
            self._curves.move_to_end(str(run.path))
            while len(self._curves) > RUNS_KEPT:
                self._curves.popitem(last=False)
            return found

    def since(self, run: RunDir, after: int) -> dict[str, Any]:
        """What is new to a watcher of a run. One ahead of what was read (after a restart) waits for the reading."""
        curves = self.of(run)
        with curves.lock:
            more = curves.read(run)
            while more and curves.offset < after:
                more = curves.read(run)
            found = curves.since(after)
        return found | {"more": found["more"] or more}
