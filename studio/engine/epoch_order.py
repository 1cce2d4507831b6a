"""In which order a training sees its rows, and how the processes of a run share the last of them.

accelerate deals the batches out in turn: the first to process 0, the second to process 1 and so on. Where they do not
come out even it would deal rows of the beginning once more, and the last update of an epoch would not be that of one
process. So the order ends with fillers instead: rows of one token on which no loss is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

from studio.records.batches import IGNORED, Row, Rows
from studio.records.order import Indices, training_order

if TYPE_CHECKING:
    from datasets import Dataset

FILLER: Row = {"input_ids": [0], "labels": [IGNORED], "seq_lengths": [1]}


class EpochOrder(Sampler[int]):
    """The rows in the order of `training_order`, another one in each epoch; the trainer tells which epoch it is.

    `per_round`: rows of a batch of each process, all together; filler rows have the number behind the last row.
    """

    def __init__(self, sizes: Indices, seed: int, per_update: int, per_round: int = 1) -> None:
        self.sizes, self.seed, self.per_update, self.epoch = sizes, seed, per_update, 0
        self.fillers = -len(sizes) % per_round

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, also after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from training_order(self.sizes, self.seed, self.epoch, self.per_update).tolist()
        yield from [len(self.sizes)] * self.fillers

    def __len__(self) -> int:
        return len(self.sizes) + self.fillers


def dataset_of(rows: Rows, *, filler: bool = False) -> Dataset:
    """Rows as the trainer wants them. Only their numbers are held; the tokens are read when a batch is made.

    `filler`: one more row, on which no loss is taken.
    """
    from datasets import Dataset

    def fetch(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        found: list[Row] = [rows[number] if number < len(rows) else FILLER for number in batch["row"]]
        return {name: [row[name] for row in found] for name in ("input_ids", "labels", "seq_lengths")}

    numbered = Dataset.from_dict({"row": range(len(rows) + filler)})
    numbered.set_transform(fetch)
    return numbered
