"""Which checkpoints of a run are whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step in `folder`, or None."""
    return next(iter(complete_checkpoints(folder)), None)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Every complete checkpoint in `folder`, newest first."""
    return sorted((path for path in _checkpoints(folder) if is_complete(path)), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Optimizer updates done when `checkpoint-N` was written."""
    return int(checkpoint.name.partition("-")[2])


def is_complete(checkpoint: Path) -> bool:
    """True for a checkpoint that was written to its end: `trainer_state.json` comes last, so it is the proof."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("global_step") == step_of(checkpoint)


def remove_torn(folder: Path) -> None:
    """Delete half-written checkpoints: they take room, and the rotation would keep them in place of complete ones."""
    for path in _checkpoints(folder):
        if not is_complete(path):
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name.startswith("checkpoint-") and path.name[11:].isdigit()]
