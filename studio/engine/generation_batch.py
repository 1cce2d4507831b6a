"""Answers written in one pass: their caches side by side, the shorter ones padded on the left.

What is padded is masked out and every row keeps its own positions, so a row's numbers are those it would have alone, up
to the order in which a larger matrix product adds them up: in float32 and 4 bits the logarithms of the probabilities
differ by less than 1e-4, in 8 bits (where the batch decides how numbers are scaled) by about 1e-3. Greedy answers are
the same unless two tokens are closer than that; in 16 bits that may happen in a long answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from studio.engine.generation_answer import Answer
from studio.engine.generation_prefix import plain

SLACK = 2  # a padded batch takes at most about twice the memory of its answers alone
FREE_PADDING = 2048  # tokens of padding that nobody minds


class Batch:
    """Answers that get their tokens in the same pass; begins with one whose prompt has been read."""

    def __init__(self, answer: Answer) -> None:
        self.rows = [answer]
        self._cache = answer.cache
        self._width = answer.length
        self._pads = [0]
        answer.cache = None

    @property
    def models(self) -> list[str]:
        """The names of the models the rows ask."""
        return [row.model for row in self.rows]

    def admits(self, answer: Answer) -> bool:
        """Whether one more can join without too much padding."""
        if not (plain(self._cache) and plain(answer.cache)):
            return False
        padded = max(self._width, answer.length) * (len(self.rows) + 1)
        used = sum(self._width - missing for missing in self._pads) + answer.length
        return padded <= SLACK * used or padded - used <= FREE_PADDING

    def join(self, answer: Answer) -> None:
        """One more row; its cache becomes part of this one."""
        width = max(self._width, answer.length)
        for ours, theirs in zip(self._cache.layers, answer.cache.layers, strict=True):
            columns = _stored(ours, width)
            _put(ours, width, *(torch.cat([_fit(a, columns), _fit(b, columns)]) for a, b in _pairs(ours, theirs)))
        self._pads = [missing + width - self._width for missing in self._pads] + [width - answer.length]
        self._width = width
        self.rows.append(answer)
        answer.cache = None

    def step(self, model: PreTrainedModel) -> torch.Tensor:
        """One token of every row goes through the model; what comes next, [rows, vocabulary], in main memory."""
        inputs = torch.tensor([row.pending for row in self.rows], device=model.device)
        output = model(
            input_ids=inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **self._places(model)
        )
        self._width += 1
        logits: torch.Tensor = output.logits[:, -1].float().cpu()
        return logits

    def _places(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        if not any(self._pads):
            return {}
        missing = torch.tensor(self._pads, device=model.device).unsqueeze(1)
        columns = torch.arange(self._width + 1, device=model.device)
        return {"attention_mask": (columns >= missing).long(), "position_ids": self._width - missing}

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on; columns that none of them needs are given back."""
        if len(rows) == len(self.rows):
            return
        self.rows = [self.rows[row] for row in rows]
        self._pads = [self._pads[row] for row in rows]
        if not rows:
            self._cache = None
            return
        spare = min(self._pads)
        self._pads = [missing - spare for missing in self._pads]
        self._width -= spare
        for layer in self._cache.layers:
            chosen = torch.tensor(rows, device=layer.keys.device)
            columns = _stored(layer, self._width)
            _put(layer, self._width, *(_fit(part[chosen], columns).contiguous() for part in (layer.keys, layer.values)))


def _pairs(ours: Any, theirs: Any) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return (ours.keys, theirs.keys), (ours.values, theirs.values)


def _stored(layer: Any, width: int) -> int:
    """Columns a layer holds after `width` tokens: all, or those of its sliding window."""
    return min(width, layer.sliding_window - 1) if layer.is_sliding else width


def _put(layer: Any, width: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    layer.keys, layer.values = keys, values
    if layer.is_sliding:
        layer.cumulative_length = width


def _fit(part: torch.Tensor, columns: int) -> torch.Tensor:
    """The last columns, or all of them behind zeros."""
    missing = columns - part.shape[-2]
    return pad(part, (0, 0, missing, 0)) if missing > 0 else part[..., -missing:, :]
