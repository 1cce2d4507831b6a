"""best.json: the step of a run to choose by default, in Chat, in Export and on the command line."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.checkpoints import is_complete
from studio.rundir import RunDir

_CHECKPOINT = re.compile(r"checkpoints/checkpoint-\d+")


class Best(BaseModel):
    """The step, where its weights lie in the run's directory ("adapter", "model" or a checkpoint), and why it is it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    path: str
    why: str = ""

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint; "" for the saved result."""
        return self.path.partition("/")[2]


def read_best(run: RunDir) -> Best | None:
    """The best step of a run; None when none is named, or its weights are no longer there."""
    try:
        best = Best.model_validate_json(run.best_file.read_bytes())
    except (OSError, ValidationError, ValueError):
        return None
    return best if _there(run, best) else None


def best_weights(run: RunDir, *, whole: bool) -> Path:
    """The folder of the adapter (or model, `whole`) to choose by default: of the best step, else the saved result."""
    best = read_best(run)
    return run.path / best.path if best else (run.model if whole else run.adapter)


def _there(run: RunDir, best: Best) -> bool:
    place = run.path / best.path
    if best.path in ("adapter", "model"):
        return (place / "adapter_config.json").is_file() or (place / "config.json").is_file()
    return _CHECKPOINT.fullmatch(best.path) is not None and is_complete(place)
