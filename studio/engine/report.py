"""report.json: what a finished run tells about itself; the verdict's summary goes into the card beside the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from studio.engine.best import Ending
from studio.engine.callbacks import Watch
from studio.engine.inputs import Inputs
from studio.engine.saving import continued_from, model_card, rewrite_card
from studio.engine.trainer import Trainer
from studio.rundir import RunDir, write_atomic


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


def figures(trainer: Trainer, watch: Watch, laps: Laps) -> dict[str, Any]:
    """The numbers of report.json beside the verdict: seconds, tokens per second, loss, bytes."""
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = history[-10:]
    return {
        "seconds": laps.seconds,
        "tokens_per_second": watch.trained_tokens / watch.trained_seconds if watch.trained_seconds else None,
        "train_loss": sum(last) / len(last) if last else None,
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
