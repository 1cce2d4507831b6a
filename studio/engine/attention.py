"""Batches whose rows never see each other: the arrays of `studio.records.batches` as tensors, and a check of the model.

Packed examples are kept apart by their positions. That holds only with `use_cache=False` and only for attention
layers, so `leaks` tries it out.
"""

from __future__ import annotations

from typing import Any

import torch

from studio.engine.zero3 import usable
from studio.records.batches import Row, Shape, collate


class Collator:
    """Rows of `input_ids`, `labels`, `seq_lengths` -> a batch of tensors, shape (rows, longest row)."""

    def __init__(self, pad_token_id: int, packed: bool = False, flat: bool = False) -> None:
        self.shape = Shape(pad_token_id, packed, flat)

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in collate(rows, self.shape).items()}


def leaks(model: Any, vocabulary: int, *, flat: bool = False) -> bool:
    """Whether the second example of a packed row feels a change in the first, for this very model."""
    device = next(model.parameters()).device
    first, second = list(range(3, 11)), list(range(20, 28))
    outputs = []
    for start in (first, [token + 30 for token in first]):
        ids = [token % vocabulary for token in start + second]
        row: Row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(start), len(second)]}
        batch = Collator(0, packed=True, flat=flat)([row])
        inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
        with torch.no_grad(), usable(model):
            outputs.append(model(**inputs, use_cache=False).logits[0, len(start) :].float())
    return not torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)
