"""Writes a model as GGUF, tensor by tensor, and proves that the file says what the model says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(source: Path, file: Path, kind: str, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Write the model in `source` to `file`; `kind` is f32, f16, bf16 or q8_0. Returns what was written.

    Raises:
        EngineError: kind model, for what GGUF cannot hold.
        OSError: the disk is full.
    """
    raise NotImplementedError


def prove(source: Path, file: Path) -> dict[str, Any]:
    """Compare a GGUF file with the model it was made of: `passed`, `reason`, and the figures."""
    raise NotImplementedError
