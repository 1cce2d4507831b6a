"""How well a model predicts rows it is not trained on: perplexity over their trained tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studio.engine.activity import batch
from studio.engine.answers import Progress, undisturbed
from studio.engine.attention import Collator
from studio.engine.model import Precision
from studio.records.batches import IGNORED, Row, Rows

MOST_ROWS = 200
"""Rows that are enough for a perplexity; of more, evenly spread ones are taken."""


@dataclass(frozen=True)
class HeldBackRows:
    """The rows, and how a model reads them: `size` at once, filled up with `pad_token_id`."""

    rows: Rows
    pad_token_id: int
    size: int

    @property
    def chosen(self) -> list[int]:
        """Numbers of the rows that are read, shortest first: little padding."""
        count = len(self.rows)
        places = np.unique(np.linspace(0, count - 1, min(count, MOST_ROWS)).round().astype(int))
        sizes = self.rows.sizes
        return sorted(places.tolist(), key=lambda place: int(sizes[place]))

    def perplexity(self, model: Any, precision: Precision, progress: Progress | None = None) -> float | None:
        """exp of the mean loss per trained token; None without such a token, or when it is no finite number.

        The model is afterwards in the mode it was in, and no random number is drawn from the training's.
        """
        chosen, collate = self.chosen, Collator(self.pad_token_id)
        total = tokens = 0.0
        with undisturbed(model), precision.autocast():
            for start in range(0, len(chosen), self.size):
                loss, count = _loss(model, collate, [self.rows[place] for place in chosen[start : start + self.size]])
                total, tokens = total + loss * count, tokens + count
                if progress:
                    progress(min(start + self.size, len(chosen)), len(chosen))
        mean = total / tokens if tokens else math.inf
        return math.exp(mean) if mean < math.log(1e9) else None


def _loss(model: Any, collate: Collator, rows: Sequence[Row]) -> tuple[float, int]:
    """Mean loss of a batch and over how many tokens; the first token of a row is never predicted."""
    found = collate(list(rows))
    batch(rows=len(rows), length=int(found["input_ids"].shape[1]))
    count = int((found["labels"][:, 1:] != IGNORED).sum())
    if not count:
        return 0.0, 0
    device = next(model.parameters()).device
    output = model(**{name: tensor.to(device) for name, tensor in found.items()}, use_cache=False)
    return float(output.loss), count
