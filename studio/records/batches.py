"""From packs to the arrays of a batch: what the trainer gets, and what the preview shows.

Packed rows carry position numbers that start over at each example and no attention mask: transformers then builds a
block-diagonal mask, so packed examples never see each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studio.records.counts import Examples, Mixed, Numbers, Prepared, order_of
from studio.records.order import Indices
from studio.records.packing import Packs, one_each

IGNORED = -100  # the label PyTorch's cross entropy leaves out

Array = np.ndarray[Any, np.dtype[np.int64]]
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Rows:
    """Rows for the trainer, each the tokens of one pack, read from the tables when asked for."""

    sources: tuple[Mixed, ...]
    examples: Examples
    packs: Packs

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def sizes(self) -> Indices:
        """Tokens of each row."""
        return self.packs.sums(self.examples.length)

    def __getitem__(self, number: int) -> Row:
        """`input_ids`, `labels` (-100 where no loss is taken) and `seq_lengths`, the tokens of each example."""
        parts = [self.example(int(member)) for member in self.packs[number]]
        ids, labels = (np.concatenate([part[which] for part in parts]).tolist() for which in (0, 1))
        return {"input_ids": ids, "labels": labels, "seq_lengths": [len(part[0]) for part in parts]}

    def example(self, number: int) -> tuple[Array, Array]:
        """Ids and labels of one example."""
        table = self.sources[int(self.examples.source[number])].table
        index, start, length = (int(getattr(self.examples, name)[number]) for name in ("index", "start", "length"))
        ids = table.tokens(index, start, length).astype(np.int64)
        labels = np.full(length, IGNORED, dtype=np.int64)
        for first, last in table.trained(index).tolist():
            first, last = max(first - start, 0), min(last - start, length)
            if first < last:
                labels[first:last] = ids[first:last]
        return ids, labels


def training_rows(prepared: Prepared) -> Rows:
    """The rows of the training, in the order of the packs."""
    return Rows(prepared.sources, prepared.examples, prepared.packs)


def validation_rows(prepared: Prepared) -> Rows:
    """The rows of the evaluation loss, never packed."""
    return Rows(
        prepared.validation_sources or prepared.sources, prepared.validation, one_each(len(prepared.validation))
    )


@dataclass(frozen=True)
class Shape:
    """How rows become one batch. `flat` joins packed rows into a single one (what FlashAttention wants)."""

    pad_token_id: int
    packed: bool = False
    flat: bool = False


def collate(rows: Sequence[Mapping[str, Sequence[int]]], shape: Shape) -> dict[str, Array]:
    """Rows -> arrays of shape (rows, longest row), padded on the right."""
    if shape.packed and shape.flat:
        rows = [{name: [value for row in rows for value in row[name]] for name in rows[0]}]
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": _padded([row["input_ids"] for row in rows], width, shape.pad_token_id),
        "labels": _padded([row["labels"] for row in rows], width, IGNORED),
    }
    if shape.packed:
        positions = [np.concatenate([np.arange(length) for length in row["seq_lengths"]]) for row in rows]
        # Position 0 in every padded place: each is an example of its own that nobody looks at.
        batch["position_ids"] = _padded(positions, width, 0)
        batch["labels"][batch["position_ids"] == 0] = IGNORED  # its predecessor belongs to another example
    else:
        batch["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], width, 0)
    return batch


def first_batches(prepared: Prepared, numbers: Numbers, count: int) -> list[list[int]]:
    """Pack numbers of the first `count` batches of the training, in the order the trainer sees them."""
    batch_size = numbers.per_device_train_batch_size
    order = order_of(prepared.packs.sums(prepared.examples.length), numbers)[: batch_size * count].tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _padded(rows: Sequence[Sequence[int] | Array], width: int, filler: int) -> Array:
    found = np.full((len(rows), width), filler, dtype=np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found
