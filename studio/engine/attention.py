"""Batches whose rows never see each other: padding on the right, and packed examples kept apart by position.

Packed rows carry position numbers that start over at each example and no attention mask: transformers then builds a
block-diagonal mask. That holds only with `use_cache=False` and only for attention layers, so `leaks` tries it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from studio.engine.data import IGNORED

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Collator:
    """Rows of `input_ids`, `labels`, `seq_lengths` -> a batch of tensors, shape (rows, longest row).

    `packed` rows hold several examples; `flat` joins all rows of the batch into one (what FlashAttention wants).
    """

    pad_token_id: int
    packed: bool = False
    flat: bool = False

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        if self.packed and self.flat:
            rows = [{name: [value for row in rows for value in row[name]] for name in rows[0]}]
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": _padded([row["input_ids"] for row in rows], width, self.pad_token_id),
            "labels": _padded([row["labels"] for row in rows], width, IGNORED),
        }
        if self.packed:
            positions = [[p for length in row["seq_lengths"] for p in range(length)] for row in rows]
            # Position 0 in every padded place: each is an example of its own that nobody looks at.
            batch["position_ids"] = _padded(positions, width, 0)
            batch["labels"][batch["position_ids"] == 0] = IGNORED  # its predecessor belongs to another example
        else:
            batch["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], width, 0)
        return batch


def _padded(rows: list[list[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


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
        with torch.no_grad():
            outputs.append(model(**inputs, use_cache=False).logits[0, len(start) :].float())
    return not torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)
