"""report.json: what a finished run tells about itself; the verdict's summary goes into the card beside the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from studio.diagnosis import Evidence
from studio.engine.best import Ending
from studio.engine.callbacks import Watch
from studio.engine.data import chat_tokenizer
from studio.engine.exam import Exam
from studio.engine.inputs import Inputs
from studio.engine.saving import continued_from, model_card, rewrite_card
from studio.engine.trainer import Trainer
from studio.estimate import self_replay_rows
from studio.records import DataError
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.counts import Counts
from studio.rundir import RunDir, write_atomic

FIRST, LAST = 3, 10
"""Points of the loss curve that are averaged where it begins and where it ends."""


class Laps:
    """Seconds spent in each part of a run that began at `began` (seconds of the monotonic clock)."""

    def __init__(self, began: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = began

    def lap(self, name: str) -> None:
        """That part is over."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


@dataclass(frozen=True)
class Curve:
    """The points of a run's curves: training losses in order, validation loss by step."""

    losses: list[float]
    validation: dict[int, float]

    @property
    def first(self) -> float | None:
        """Mean of the first few points."""
        return _mean(self.losses[:FIRST])

    @property
    def last(self) -> float | None:
        """Mean of the last few points."""
        return _mean(self.losses[-LAST:])

    @property
    def lowest(self) -> float | None:
        """The lowest mean of a few points in a row."""
        count = len(self.losses)
        width = min(LAST, count)
        means = [_mean(self.losses[end - width : end]) for end in range(width, count + 1)]
        return min((mean for mean in means if mean is not None), default=None)


def curve_of(trainer: Trainer) -> Curve:
    """What the trainer has logged, also before a resume."""
    history = trainer.state.log_history
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    return Curve(losses, {int(e["step"]): float(e["eval_loss"]) for e in history if "eval_loss" in e})


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def evidence_of(inputs: Inputs, counts: Counts, ending: Ending, curve: Curve, exam: Exam) -> Evidence:
    """What the diagnosis goes by beside the verdict."""
    return Evidence(
        updates=ending.best_step or ending.steps,
        distinct=counts.distinct,
        general=self_replay_rows(inputs.config, inputs.source.store) + _general_rows(inputs, counts),
        first_loss=curve.first,
        lowest_loss=curve.lowest,
        last_loss=curve.last,
        own_template=_own_template(inputs, exam.respondent.chat),
        checks=tuple(exam.checks),
    )


def _own_template(inputs: Inputs, chat: ChatTokenizer) -> bool:
    """Whether the run's chat template is the model's own, or it has none."""
    if inputs.config.model.chat_template is None or not inputs.ref.local:
        return inputs.config.model.chat_template is None
    try:
        return chat_tokenizer(inputs.ref, None, None).template.source == chat.template.source
    except (DataError, ValueError):
        return True


def _general_rows(inputs: Inputs, counts: Counts) -> int:
    """Rows that are not about an identity, as far as the builder has told."""
    info = inputs.source.info
    identity = info.identity if info else None
    if identity is None or identity.recipe == "naive" or identity.replay in ("none", "self"):
        return 0
    return round(counts.distinct * identity.replay_share)


def figures(curve: Curve, watch: Watch, laps: Laps) -> dict[str, Any]:
    """The numbers of report.json beside the verdict: seconds, tokens per second, loss, bytes."""
    return {
        "seconds": laps.seconds,
        "tokens_per_second": watch.trained_tokens / watch.trained_seconds if watch.trained_seconds else None,
        "train_loss": curve.last,
        "peak_memory_bytes": watch.peak_memory,
    }


def write_report(run: RunDir, inputs: Inputs, ending: Ending, report: Mapping[str, Any]) -> None:
    """Write report.json, and the card again if there is a verdict. Raises OSError when the disk is full."""
    told = {"ending": asdict(ending), "continued_from": continued_from(inputs.config)}
    report = {"verdict": None, "before_after": []} | told | dict(report)
    write_atomic(run.report_file, json.dumps(report, ensure_ascii=False, indent=1))
    if report["verdict"]:
        summary = report["verdict"]["summary"]
        rewrite_card(run, inputs.config, model_card(inputs.config, inputs.source.sha256, ending, summary))
