"""One copy of a base model's weights, the adapters switched on and off on it, and the memory left for answers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from studio.memory_room import tightest

PEFT_BASE = "__base__"  # PEFT's name for a row without adapter
CPU_SHARE, GPU_SHARE = 0.5, 0.8  # of the free memory: growing a cache needs some of it twice for a moment


class SharedWeights:
    """One copy of the base weights and the adapters that are switched on and off on it.

    `adapters` maps a model name to the adapter's name inside PEFT.
    """

    def __init__(self, model: PreTrainedModel, adapters: dict[str, str]) -> None:
        self.model, self.adapters = model, adapters
        self.layers: list[Any] = []
        if adapters:
            from peft.tuners.tuners_utils import BaseTunerLayer
            from peft.utils.other import AuxiliaryTrainingWrapper

            kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
            self.layers = [module for module in model.modules() if isinstance(module, kinds)]
        self.current: str | None = None
        self.mixable = _mixable(self.layers, set(adapters.values()))
        """Whether rows of different models can go through the layers together."""
        self._mix: list[str] | None = None
        for layer in self.layers if self.mixable else ():
            layer.register_forward_pre_hook(self._tell_rows, with_kwargs=True)
        self._counting: Any = next((module for module in model.modules() if hasattr(module, "rope_deltas")), None)

    def select(self, name: str) -> None:
        """Make the weights those of the model called `name`."""
        if name == self.current:
            return
        adapter = self.adapters.get(name)
        for layer in self.layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter(adapter)
                layer.enable_adapters(True)
        self.current = name

    @contextlib.contextmanager
    def rows_of(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, the weights of each row of a pass are those of the model called so; several only where `mixable`."""
        self.select(next((name for name in names if name in self.adapters), names[0]))
        if len(set(names)) > 1:
            self._mix = [self.adapters.get(name, PEFT_BASE) for name in names]
        try:
            yield
        finally:
            self._mix = None

    def _tell_rows(self, layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return (given, {**named, "adapter_names": self._mix}) if self._mix else None

    @property
    def places(self) -> Any:
        """How far the places of words are shifted behind pictures: kept in the model by those that count them apart."""
        return None if self._counting is None else self._counting.rope_deltas

    @places.setter
    def places(self, shift: Any) -> None:
        if self._counting is not None:
            self._counting.rope_deltas = shift

    @property
    def shareable(self) -> bool:
        """Whether rows of different lengths can go through this model together."""
        if self._counting is not None:
            return False
        wrapped: Any = self.model
        inner = wrapped.get_base_model() if self.adapters else wrapped
        known = inspect.signature(inner.forward).parameters
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        return {"attention_mask", "position_ids"} <= known.keys() and "mrope_section" not in rope


def _mixable(layers: Sequence[Any], adapters: set[str]) -> bool:
    """PEFT mixes plain LoRA on linear layers; what else an adapter may change (DoRA, embeddings) it does not."""
    if not layers:
        return False
    from peft.tuners.lora import Linear, LoraLayer

    def plain(layer: Any) -> bool:
        known = type(layer) is Linear or type(layer).__module__ == "peft.tuners.lora.bnb"
        return known and isinstance(layer, LoraLayer) and not adapters & {*layer.lora_variant} and not layer.merged

    return all(plain(layer) for layer in layers)


class CacheRoom:
    """How many bytes the caches of the answers under way may take, and how many a conversation takes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.limit = _free(model.device)
        self._layers = _per_token(model)

    def needed(self, tokens: int) -> int:
        """Bytes of the cache of a conversation of so many tokens."""
        return sum(size * min(tokens, window) for size, window in self._layers)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return int(tightest().free * CPU_SHARE)


@torch.inference_mode()
def _per_token(model: PreTrainedModel) -> list[tuple[int, int]]:
    """(bytes a token takes, tokens kept at most) of each layer, seen on one token."""
    cache: Any = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([[0]], device=model.device), past_key_values=cache, use_cache=True)
    found = []
    for layer in cache.layers:
        parts = [part for part in (getattr(layer, "keys", None), getattr(layer, "values", None)) if part is not None]
        window = layer.sliding_window if getattr(layer, "is_sliding", False) else 1 << 62
        found.append((sum(part.numel() * part.element_size() for part in parts), window))
    return found
