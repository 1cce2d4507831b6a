"""The beginnings of conversations stay in memory, so that the next question of one does not read all of it again.

Kept are whole parts of a prompt as they were read, never what was written: the same parts are computed in the same
passes, so an answer is the same to the last bit whether its beginning was kept or read.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

MOST_KEPT = 8


def plain(cache: Any) -> bool:
    """Whether a cache is columns of keys and values only, and not states of linear attention or packed numbers."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in kinds and layer.is_initialized for layer in cache.layers)


@dataclass(frozen=True)
class Beginning:
    """Tokens that were read, and the keys and values of each layer after them. Nobody changes these tensors."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Any, Any], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.numel() * part.element_size() for pair in self.layers for part in pair)

    def cache(self, model: PreTrainedModel) -> DynamicCache:
        """A cache that goes on from here."""
        found: Any = DynamicCache(config=model.config)
        for layer, (keys, values) in zip(found.layers, self.layers, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if layer.is_sliding:
                layer.cumulative_length = len(self.ids)
        return found  # type: ignore[no-any-return]


class Beginnings:
    """Those used last, of each model name; not more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], Beginning] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(beginning.size for beginning in self._kept.values())

    def find(self, model: str, prompt: list[int]) -> Beginning | None:
        """The longest one of a prompt that leaves something to read."""
        fitting = [
            key
            for key in self._kept
            if key[0] == model and len(key[1]) < len(prompt) and tuple(prompt[: len(key[1])]) == key[1]
        ]
        if not fitting:
            return None
        best = max(fitting, key=lambda key: len(key[1]))
        self._kept.move_to_end(best)
        return self._kept[best]

    def keep(self, model: str, ids: list[int], cache: Any) -> None:
        """Remember what was read so far; shorter beginnings of the same conversation are forgotten."""
        if not plain(cache):
            return
        key = (model, tuple(ids))
        for other in [other for other in self._kept if other[0] == model and key[1][: len(other[1])] == other[1]]:
            del self._kept[other]
        self._kept[key] = Beginning(key[1], tuple((layer.keys, layer.values) for layer in cache.layers))
        self.shrink(self.limit)

    def shrink(self, size: int) -> None:
        """Forget the oldest until the rest takes no more than `size` bytes."""
        while self._kept and (self.size > size or len(self._kept) > MOST_KEPT):
            self._kept.popitem(last=False)
