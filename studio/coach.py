"""Remarks on the curves of a run, by rules: what a person who has seen many of them would say, and what to change.

Works on the events alone, so that a run can be commented while it trains, after it, and on another machine. The rules
compare a curve with its own past and its own noise, never with fixed losses: those differ from model to model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from studio.events import EvalEvent, LogEvent, VerdictEvent

NoteKind = Literal["nan", "spike", "divergence", "plateau", "eval_rising", "memorised", "warmup_short"]
NoteLevel = Literal["info", "warning", "error"]
Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]

FEWEST_POINTS = 12
"""Shorter curves are not judged, except for numbers that are none."""
WINDOW = 15
"""Points before a point that say what was to be expected of it."""
SPIKE_SIGMAS, SPIKE_SHARE = 8.0, 0.3
"""A spike lies so many times the usual noise, and that share of the loss, above what was to be expected."""
SHOWN_SPIKES = 3
SLOW_POINTS = 3
"""Points after a spike that still lie half as high: then the model itself was thrown off."""
RISEN = 0.2
"""A diverging loss has climbed back by that share of its lowest value, and of all it had fallen by."""
FLAT_POINTS, FLAT_SHARE, FLAT_FALL = 30, 0.4, 0.02
"""A plateau is that many points and that share of the curve long, and falls by less than that share."""
EARLY_SHARE = 0.15
BY_HEART = 0.1
"""Loss below which a person could not tell the answer from the one in the data."""
LEARNED, KEPT, LEAKING = 0.6, 0.6, 0.3


class Note(BaseModel):
    """One remark. `step`: where on the curve it belongs; `changes`: field path -> value to try next, may be empty."""

    model_config = ConfigDict(frozen=True)

    kind: NoteKind
    level: NoteLevel
    step: int
    message: str
    hint: str
    changes: dict[str, Any] = {}


@dataclass(frozen=True)
class Curve:
    """The points whose loss is a number, in the order of their steps, as columns; `smooth` is their running median."""

    step: Numbers
    loss: Numbers
    rate: Numbers
    epoch: Numbers
    smooth: Numbers

    def __len__(self) -> int:
        return len(self.step)

    @property
    def peak_rate(self) -> float:
        """The highest learning rate so far; 0 when none was logged."""
        return float(np.nanmax(self.rate)) if np.isfinite(self.rate).any() else 0.0

    @property
    def noise(self) -> float:
        """How far a point usually is from its running median."""
        return _spread(self.loss - self.smooth)

    def at(self, step: float) -> float:
        """The smoothed loss at a step."""
        return float(np.interp(step, self.step, self.smooth))


def notes(
    points: Sequence[LogEvent],
    evals: Sequence[EvalEvent] = (),
    verdicts: Sequence[VerdictEvent] = (),
    finished: bool = False,
) -> list[Note]:
    """What there is to say of the curves, in the order of their steps. `finished`: no point will be added.

    Points may come in the order of writing, with steps repeated after a resume: the last of each step counts.
    """
    latest = {point.step: point for point in points}
    ordered = [latest[step] for step in sorted(latest)]
    curve = _curve([point for point in ordered if point.loss is not None])
    found = _not_a_number(ordered, curve)
    if len(curve) >= FEWEST_POINTS:
        measured = {event.step: event.eval_loss for event in evals if event.eval_loss is not None}
        diverging = _divergence(curve, finished)
        found += diverging or _warmup(curve) or _spikes(curve)
        rising = _eval_rising(curve, measured)
        found += rising
        found += _memorised(curve, measured, verdicts, finished) or ([] if rising or diverging else _plateau(curve))
    return sorted(found, key=lambda note: note.step)


def _curve(points: Sequence[LogEvent]) -> Curve:
    def column(name: str) -> Numbers:
        values = [getattr(point, name) for point in points]
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

    loss = column("loss")
    return Curve(column("step"), loss, column("learning_rate"), column("epoch"), _running_median(loss, WINDOW // 2))


def _running_median(values: Numbers, reach: int) -> Numbers:
    """The median of each value and `reach` neighbours on both sides, fewer at the ends."""
    if not len(values):
        return values
    padded = np.pad(values, reach, constant_values=math.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)


def _expected(values: Numbers, reach: int) -> Numbers:
    """The median of the `reach` values before each value; the first few have too little before them: infinite."""
    padded = np.concatenate([np.full(reach, math.nan), values])[: len(values) + reach - 1]
    medians = np.full(len(values), math.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach)
    medians[5:] = np.nanmedian(windows[5 : len(values)], axis=1)
    return medians


def _spread(values: Numbers) -> float:
    """The standard deviation as the middle half of the values shows it: odd ones out do not count."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def _at_peak(curve: Curve, factor: float) -> dict[str, Any]:
    rate = curve.peak_rate * factor
    return {"train.learning_rate": float(f"{rate:.2g}")} if rate else {}


def _said(rate: dict[str, Any]) -> str:
    return f" ({rate['train.learning_rate']:g})" if rate else ""


# ---- the rules -------------------------------------------------------------------------------------------------------


def _not_a_number(points: Sequence[LogEvent], curve: Curve) -> list[Note]:
    """The loss, or the length of the gradient where it is known otherwise, is NaN or infinite."""
    clipped = any(point.grad_norm is not None for point in points)
    for point in points:
        what = "loss" if point.loss is None else "gradient" if clipped and point.grad_norm is None else ""
        if what:
            change = _at_peak(curve, 1 / 3)
            message = f"The {what} stopped being a number at step {point.step}."
            hint = f"Clone the run with a third of the learning rate{_said(change)}."
            return [Note(kind="nan", level="error", step=point.step, message=message, hint=hint, changes=change)]
    return []


def _divergence(curve: Curve, finished: bool) -> list[Note]:
    """The loss climbs back and stays up."""
    last = max(len(curve) // 20, 5)
    end, lowest = float(np.median(curve.loss[-last:])), int(np.argmin(curve.smooth))
    low, first = float(curve.smooth[lowest]), float(np.median(curve.loss[:5]))
    if float(np.median(curve.loss[:3])) < low:  # a loss that climbs from the start: the median of the edge hides it
        lowest, low = 0, float(np.median(curve.loss[:3]))
    risen = end - low
    enough = risen > RISEN * low and risen > RISEN * (first - low) and risen > 3 * curve.noise
    if not enough or len(curve) - lowest <= last:
        return []
    change = _at_peak(curve, 1 / 3)
    step = int(curve.step[lowest])
    message = f"The loss has been rising since step {step}: from {low:.3g} to {end:.3g}."
    now = "Try again" if finished else "Stop, and try again"
    hint = f"{now} with a third of the learning rate{_said(change)}."
    return [Note(kind="divergence", level="error", step=step, message=message, hint=hint, changes=change)]


def _warmup(curve: Curve) -> list[Note]:
    """The loss jumps up right at the start, when the learning rate is already high, and comes down again."""
    early = max(int(len(curve) * EARLY_SHARE), FEWEST_POINTS // 2)
    first = float(np.median(curve.loss[:2]))
    top = int(np.argmax(curve.loss[:early]))
    near = curve.loss[max(top - 1, 0) : top + 2]
    jumped = float(np.median(near)) > 1.3 * first and curve.loss[-1] < first
    reached = int(np.argmax(curve.rate >= 0.99 * curve.peak_rate)) if curve.peak_rate else len(curve)
    if not jumped or reached > top or top == 0:
        return []
    step = int(curve.step[top])
    message = (
        f"The loss jumped from {first:.3g} to {float(curve.loss[top]):.3g} in the first steps: the warm-up is short."
    )
    hint = "Let the learning rate rise over the first tenth of the training."
    return [
        Note(
            kind="warmup_short",
            level="warning",
            step=step,
            message=message,
            hint=hint,
            changes={"train.warmup_steps": 0.1},
        )
    ]


def _spikes(curve: Curve) -> list[Note]:
    """Points far above those before them; the curve returns to where it was."""
    usual = _expected(curve.loss, WINDOW)
    above = curve.loss - usual
    limit = np.maximum(SPIKE_SIGMAS * max(curve.noise, 1e-3), SPIKE_SHARE * np.abs(usual))
    places = [int(place) for place in np.flatnonzero(above > limit)]
    tops = [place for place in places if above[place] == above[max(place - WINDOW, 0) : place + WINDOW + 1].max()]
    shown = sorted(sorted(tops, key=lambda place: -float(above[place]))[:SHOWN_SPIKES])
    return [_spike(curve, place, float(usual[place])) for place in shown]


def _spike(curve: Curve, place: int, usual: float) -> Note:
    """A batch of odd rows shows in one point alone; a model that was thrown off takes its time to come back."""
    step, loss = int(curve.step[place]), float(curve.loss[place])
    after = curve.loss[place + 1 : place + 1 + WINDOW]
    slow = int((after > (usual + loss) / 2).sum()) >= SLOW_POINTS
    message = f"The loss jumped to {loss:.3g} at step {step}, from about {usual:.3g}"
    if not slow:
        hint = "One batch of odd rows does no harm. If it comes back in every epoch, look at those rows."
        return Note(kind="spike", level="info", step=step, message=f"{message}, for a moment.", hint=hint)
    change = _at_peak(curve, 0.5)
    hint = f"That was a step too large: halve the learning rate{_said(change)}, or lower the gradient clipping."
    message = f"{message}, and came back only slowly."
    return Note(kind="spike", level="warning", step=step, message=message, hint=hint, changes=change)


def _eval_rising(curve: Curve, measured: dict[int, float]) -> list[Note]:
    """The loss on the validation rows rises while that of the training falls: it learns the rows, not the matter."""
    steps = sorted(measured)
    best = min(steps, key=lambda step: measured[step], default=0)
    later = [step for step in steps if step > best]
    if len(later) < 2 or min(measured[step] for step in later[-2:]) < 1.02 * measured[best]:
        return []
    if curve.at(later[-1]) > curve.at(best):
        return []
    message = (
        f"The validation loss has been rising since step {best} (from {measured[best]:.3g} to "
        f"{measured[later[-1]]:.3g}) while the training loss falls: the rows are being memorised."
    )
    hint = f"Keep the best, stop early, or train less. Step {best} was the best so far."
    changes = {"train.load_best_model_at_end": True, "early_stopping.early_stopping_patience": 3}
    return [Note(kind="eval_rising", level="warning", step=best, message=message, hint=hint, changes=changes)]


def _memorised(
    curve: Curve, measured: dict[int, float], verdicts: Sequence[VerdictEvent], finished: bool
) -> list[Note]:
    """The loss is next to nothing, and what is not in the rows shows that nothing was understood."""
    low = curve.smooth < BY_HEART
    if not low[-1]:
        return []
    place = len(curve) - int(np.argmin(low[::-1])) if not low.all() else 0
    step = int(curve.step[place])
    # A check made before that, such as the one ahead of the training, says nothing of it.
    late = [verdict for verdict in verdicts if verdict.step >= step]
    why = _by_rote({at: loss for at, loss in measured.items() if at >= step}, late[-1] if late else None)
    if why is None or (not why and (not finished or verdicts)):
        return []
    changes: dict[str, Any] = {}
    epoch, end = float(curve.epoch[place]), float(curve.epoch[-1])
    if math.isfinite(epoch) and math.ceil(epoch) < end:
        changes = {"train.num_train_epochs": float(max(math.ceil(epoch), 1))}
    message = f"Since step {step} the training rows are known by heart (loss {float(curve.smooth[-1]):.2g}){why}."
    few = f" ({changes['train.num_train_epochs']:g})" if changes else ""
    hint = f"Use more, and more different, rows, or fewer epochs{few}."
    level: NoteLevel = "warning" if why else "info"
    return [Note(kind="memorised", level=level, step=step, message=message, hint=hint, changes=changes)]


def _by_rote(measured: dict[int, float], verdict: VerdictEvent | None) -> str | None:
    """What shows that rows were learned by rote; empty when nothing was asked, None when it was and all is well."""
    if verdict is not None and verdict.learned is not None and verdict.learned < LEARNED:
        return f", but only {verdict.learned:.0%} of the questions put another way are answered"
    if verdict is not None and verdict.leaked is not None and verdict.leaked > LEAKING:
        return f", and {verdict.leaked:.0%} of unrelated questions get their answers"
    if verdict is not None and verdict.retained is not None and verdict.retained < KEPT:
        return f", and only {verdict.retained:.0%} of what the model knew is left"
    if measured:
        last = measured[max(measured)]
        return f", but the validation loss is {last:.2g}" if last > 10 * BY_HEART else None
    return None if verdict is not None and verdict.learned is not None else ""


def _plateau(curve: Curve) -> list[Note]:
    """The loss no longer falls although the learning rate is still high."""
    end = float(np.median(curve.loss[-max(len(curve) // 10, 5) :]))
    higher = np.flatnonzero(curve.smooth > end * (1 + FLAT_FALL) + curve.noise / 2)
    start = int(higher[-1]) + 1 if len(higher) else 0
    flat = len(curve) - start
    rate = curve.rate[start:]
    if flat < max(FLAT_POINTS, FLAT_SHARE * len(curve)) or end < BY_HEART:
        return []
    if np.isfinite(rate).any() and float(np.nanmean(rate)) < 0.5 * curve.peak_rate:
        return []  # the schedule has let the rate fall: that is how a training ends
    step = int(curve.step[start])
    fallen = 1 - end / float(np.median(curve.loss[:3]))
    if fallen < 0.05:
        change = _at_peak(curve, 3)
        message = f"The loss has hardly fallen since the start (now {end:.3g})."
        hint = f"Try three times the learning rate{_said(change)}, and look at the rows in the X-ray."
    else:
        change = {}
        message = f"The loss has not fallen since step {step} (it stays at {end:.3g})."
        hint = "More of the same brings little: stop here, or give it more and better rows."
    return [Note(kind="plateau", level="info", step=step, message=message, hint=hint, changes=change)]
