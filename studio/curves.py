"""The curves and sample answers of a run, read from its events: one point per step, across every resume."""

from __future__ import annotations

import bisect
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from studio.events import (
    AnyEvent,
    CountsEvent,
    EvalEvent,
    LogEvent,
    SampleEvent,
    StartedEvent,
    VerdictEvent,
    parse_event,
)
from studio.rundir import RunDir

TAIL_BYTES = 256 * 1024
LARGEST_SCAN = 256 * 1024 * 1024
TORN_LINES = 10
_STARTED = b'"type":"started"'


@dataclass
class Curves:
    """What happened in a run, ordered by step. `attempts`: steps at which it was started or went on."""

    logs: list[LogEvent] = field(default_factory=list)
    evals: list[EvalEvent] = field(default_factory=list)
    samples: list[SampleEvent] = field(default_factory=list)
    verdicts: list[VerdictEvent] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    counts: CountsEvent | None = None

    def add(self, event: AnyEvent) -> None:
        """Take one event, in the order of the file; what a resume repeats replaces what came later."""
        match event:
            case LogEvent():
                self._log(event)
            case EvalEvent():
                _forget(self.evals, event.step)
                self.evals.append(event)
            case VerdictEvent():
                _forget(self.verdicts, event.step)
                self.verdicts.append(event)
            case SampleEvent():
                self.samples = [one for one in self.samples if (one.step, one.index) != (event.step, event.index)]
                self.samples.append(event)
            case StartedEvent():
                self._begin(event.resumed_from or 0)
            case CountsEvent():
                self.counts = event

    def _log(self, event: LogEvent) -> None:
        if self.logs and self.logs[-1].step == event.step:  # a second line of the same step fills the gaps of the first
            given = event.model_dump(exclude_none=True)
            self.logs[-1] = self.logs[-1].model_copy(update=given)
            return
        _forget(self.logs, event.step)
        self.logs.append(event)

    def _begin(self, step: int) -> None:
        self.attempts.append(step)
        for events in (self.logs, self.evals, self.verdicts):
            _forget(events, step + 1)
        self.samples = [one for one in self.samples if one.step <= step]


def _forget(events: list[LogEvent] | list[EvalEvent] | list[VerdictEvent], step: int) -> None:
    del events[bisect.bisect_left(events, step, key=lambda event: event.step) :]


def read_curves(run: RunDir) -> Curves:
    """Everything of a run's events; a long file (15 MB for 50,000 points) takes about a second."""
    curves = Curves()
    for event in all_events(run):
        curves.add(event)
    return curves


def all_events(run: RunDir) -> Iterator[AnyEvent]:
    """Every event in the file now, a few megabytes at a time."""
    for line in _lines(run):
        event = parse_event(line)
        if event is not None:
            yield event


def _lines(run: RunDir) -> Iterator[bytes]:
    """Every whole line in the file now; one without end is never held in memory."""
    offset, before = 0, -1
    while offset > before:
        before = offset
        lines, offset = run.read_lines(offset)
        yield from lines


def read_samples(run: RunDir) -> list[SampleEvent]:
    """The answers along the way, those of steps a resume repeated once; quick beside long curves."""
    curves = Curves()
    for line in _lines(run):
        event = parse_event(line) if b'"sample"' in line or _STARTED in line else None
        if event is not None:
            curves.add(event)
    return curves.samples


@dataclass(frozen=True)
class Last:
    """The newest values of a run; None where none was written yet."""

    loss: float | None = None
    eval_loss: float | None = None


def last_values(run: RunDir) -> Last:
    """The newest losses, from the end of the events only."""
    loss: float | None = None
    eval_loss: float | None = None
    for event in _newest_events(run.events_file):
        if isinstance(event, LogEvent) and loss is None:
            loss = event.loss
        elif isinstance(event, EvalEvent) and eval_loss is None:
            eval_loss = event.eval_loss
        if loss is not None and eval_loss is not None:
            break
    return Last(loss, eval_loss)


def _newest_events(file: Path) -> Iterator[AnyEvent]:
    for line in reversed(_tail(file).split(b"\n")):
        event = parse_event(line) if b'"log"' in line or b'"eval"' in line else None
        if event is not None:
            yield event


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read()
    except OSError:
        return b""


def worked_seconds(run: RunDir) -> float | None:
    """How long engines worked on the run, all attempts together, without the time between them; None before the first.

    Only the lines around each start are parsed. A file of absurd size is not counted.
    """
    try:
        if not 0 < run.events_file.stat().st_size <= LARGEST_SCAN:
            return None
    except OSError:
        return None
    # Not by mapping the file into memory: one that is cut meanwhile would end the studio.
    total, began = 0.0, b""
    latest: deque[bytes] = deque(maxlen=TORN_LINES)
    for line in _lines(run):
        if _STARTED in line:
            total += _between(began, latest)
            began = line
            latest.clear()
        latest.append(line)
    return total + _between(began, latest) or None


def _between(began: bytes, latest: deque[bytes]) -> float:
    """Seconds from a line to the last whole event of others; torn and foreign lines are skipped."""
    begin = parse_event(began)
    end = next((event for line in reversed(latest) if (event := parse_event(line))), None)
    return max(0.0, end.t - begin.t) if begin and end else 0.0
