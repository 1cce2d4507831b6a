"""The disk space a run will take: its checkpoints, its result and the cache of its tokens. Whatever is unknown is 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

from studio.activations import Load
from studio.config import RunConfig
from studio.model_shape import ModelShape, shape_of
from studio.records.errors import DataError
from studio.records.sources import size_of
from studio.records.store import DatasetStore

NUMBER, STATES, RESULT = 4, 8, 2
"""Bytes of a trained weight in a checkpoint, of its two optimizer states, and of a whole model as it is saved.

Where ZeRO or FSDP2 divide, the optimizer's file has the weight once more, in 32 bits. Frozen weights are never saved.
"""
TOKENS_PER_BYTE = 1.5
"""Bytes of the token cache for each byte of a dataset: a number and a mark for every token of about four letters."""


@dataclass(frozen=True)
class RunSize:
    """Bytes on disk: `kept` checkpoints of `checkpoint` bytes, the result, the tokens."""

    checkpoint: int = 0
    kept: int = 0
    result: int = 0
    tokens: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.checkpoint * self.kept + self.result + self.tokens


def run_size(config: RunConfig, store: DatasetStore, updates: int | None = None) -> RunSize:
    """What a run writes; `updates` are its optimizer updates, if they are known."""
    tokens = round(TOKENS_PER_BYTE * sum(_bytes_of(store, source.dataset) for source in config.data.all_sources))
    shape = shape_of(config)
    if shape is None:
        return RunSize(tokens=tokens)
    trained = _trained(config, shape)
    result = RESULT * trained if config.method == "full" else NUMBER * trained
    weights = NUMBER * (2 if _is_divided(config) else 1)
    return RunSize((weights + STATES) * trained, checkpoints_kept(config, updates), result, tokens)


def _is_divided(config: RunConfig) -> bool:
    section = config.parallel
    return section.deepspeed != "none" or section.deepspeed_config is not None or section.fsdp != "none"


def checkpoints_kept(config: RunConfig, updates: int | None) -> int:
    """Checkpoints on disk at once: one more than are kept, for the new one is written before the oldest goes."""
    limit = config.train.save_total_limit
    written = math.ceil(updates / config.train.save_steps) if updates else None
    if limit < 0:
        return written or 1
    return limit + 1 if written is None else min(limit + 1, written)


def _trained(config: RunConfig, shape: ModelShape) -> int:
    return Load(config, shape, "cpu", 4, config.data.max_length, masked=True).trained


def _bytes_of(store: DatasetStore, dataset: str) -> int:
    try:
        return size_of(store.resolve(dataset))
    except (DataError, OSError, ValueError):
        return 0
