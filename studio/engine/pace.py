"""How long the rest of a training will take: from its steps, and from what lies between them.

A step takes as long as its batch is wide, so the steps seen are corrected to the width of those to come. Between the
steps lie the validation loss, samples, checkpoints and questions of the verdict: each is timed, and counted ahead.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["evaluate", "sample", "save", "check"]
KINDS: tuple[Kind, ...] = ("evaluate", "sample", "save", "check")
REMEMBERED_STEPS = 100
REMEMBERED_PAUSES = 5
WARM_UP_STEPS = 3
"""The first step is left out once there are more than so many: it prepares what the others find ready."""
NOTHING_S = 0.001
"""A shorter pause had nothing to do: its questions had been asked at that step."""


@dataclass(frozen=True)
class Plan:
    """What a training is going to do. `places`: tokens of a mean step, filler included; `validation_places` likewise of
    one evaluation; every ...: optimizer updates between two of them, 0 for never."""

    max_steps: int
    places: float = 0.0
    validation_places: int = 0
    evaluate_every: int = 0
    sample_every: int = 0
    save_every: int = 0
    forward_share: float = 0.5
    """Of a training step's time, what the same rows take without gradients: half when few weights are trained."""


@dataclass
class Pace:
    """A stopwatch for the steps and the pauses between them. All times are seconds."""

    clock: Callable[[], float] = time.monotonic
    plan: Plan = Plan(0)
    places: int = 0
    """Tokens of the batches of the current step, filler included; whoever computes a batch adds to it."""
    ending: float = 0.0
    """What comes after the training: the verdict."""
    quick_share: float = 0.0
    """Of the verdict's questions, the share a check during the training asks; 0 when there are no checks."""
    _steps: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_STEPS))
    _between: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_STEPS))
    _pauses: dict[Kind, deque[float]] = field(default_factory=dict)
    _window: tuple[int, float, int] = (0, 0.0, 0)
    _began: float = 0.0
    _ended: float | None = None
    _timed: float = 0.0
    _seen: int = 0
    _step: int = 0

    # ---- what happens --------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """An optimizer step begins; what lay before it is over."""
        now = self.clock()
        if self._ended is not None:  # what nobody timed: the next batch, the log
            self._between.append(max(now - self._ended - self._timed, 0.0))
        self._began, self._timed, self.places = now, 0.0, 0

    def end_step(self, step: int) -> None:
        """Optimizer step number `step` is over."""
        self._ended, self._step, self._timed = self.clock(), step, 0.0
        seconds = self._ended - self._began
        self._seen += 1
        if self._seen == WARM_UP_STEPS + 1:
            self._steps.popleft()
        self._steps.append((seconds, self.places))
        steps, total, places = self._window
        self._window = (steps + 1, total + seconds, places + self.places)

    @contextlib.contextmanager
    def timing(self, kind: Kind) -> Iterator[None]:
        """Inside is a pause of that kind."""
        began = self.clock()
        try:
            yield
        finally:
            seconds = self.clock() - began
            self._timed += seconds
            self._note(kind, seconds)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Inside is what comes once more after the training: the questions of the verdict."""
        began = self.clock()
        yield
        self.ending = self.clock() - began

    def read(self) -> tuple[int, float, int]:
        """(steps, seconds inside them, their tokens with filler) since the last reading."""
        window, self._window = self._window, (0, 0.0, 0)
        return window

    def _note(self, kind: Kind, seconds: float) -> None:
        if seconds < NOTHING_S:
            return
        self._pauses.setdefault(kind, deque(maxlen=REMEMBERED_PAUSES)).append(seconds)

    # ---- what is left --------------------------------------------------------------------------------------------

    def left(self, step: int) -> float | None:
        """Seconds until the run has finished, after `step` steps and before what is due then; None before the first."""
        if not self._steps:
            return None
        last = self.plan.max_steps
        seconds = max(last - step, 0) * (self._step_seconds() + _mean(self._between))
        return seconds + sum(self._due(kind, step) * self._takes(kind) for kind in KINDS) + self._verdict()

    def _verdict(self) -> float:
        """A resumed run asked the base model long ago; then a check tells how long its questions take, all of them."""
        check = self._takes("check")
        return self.ending if self.ending >= check or not self.quick_share else check / self.quick_share

    def _due(self, kind: Kind, step: int) -> int:
        """How many pauses of that kind are to come. Samples and checks due at `step` have been made already, those that
        come with its checkpoint have not."""
        plan, last = self.plan, self.plan.max_steps
        if kind == "evaluate":
            at_the_end = bool(plan.evaluate_every) and last % plan.evaluate_every > 0
            return _multiples(step - 1, last, plan.evaluate_every) + at_the_end
        if kind == "save":
            return _multiples(step - 1, last - 1, plan.save_every) + 1
        every, saves = plan.sample_every, plan.save_every
        asked = _multiples(step, last - 1, every) + _multiples(step - 1, last - 1, saves)
        asked -= _multiples(step - 1, last - 1, math.lcm(every, saves))
        return asked + (kind == "sample")  # the questions of the verdict are counted apart

    def _takes(self, kind: Kind) -> float:
        if kind in self._pauses:
            return _mean(self._pauses[kind])
        if kind == "check":
            return self.quick_share * self.ending
        if kind == "evaluate" and self.plan.places:
            return self.plan.forward_share * self._step_seconds() * self.plan.validation_places / self.plan.places
        return 0.0

    def _step_seconds(self) -> float:
        """Seconds of a step of mean width, from the latest ones: a straight line through them, never a steep one."""
        seconds, places = np.array(self._steps, dtype=np.float64).T
        mean, width = float(seconds.mean()), float(places.mean())
        spread = float(places.var())
        if not spread or not self.plan.places:
            return mean
        slope = float(((places - width) * (seconds - mean)).mean()) / spread
        slope = min(max(slope, 0.0), mean / width)  # neither wider for less, nor less than nothing for an empty one
        return mean + slope * (self.plan.places - width)


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _multiples(above: int, upto: int, every: int) -> int:
    """How many multiples of `every` there are above one number and up to another one."""
    return max(upto // every - above // every, 0) if every > 0 else 0
