"""The proof of a merge on its weights: what lies on disk is base + what the adapters add, in every adapted layer.

The logits say little of a single layer of a deep model: its part in them may be smaller than what rounding adds up to.
So the numbers themselves are looked at, at some places of each layer. What they should be is computed anew from the
adapters' files, in float64, and may differ from what was saved by the rounding of the sum and of the saved format only:
a layer left out, added twice or with the wrong sign is wrong wherever the format can show it.

Layers trained as a whole and single tokens must be those of the adapter to the bit. A layer with DoRA is base + adapter
up to one factor for each row, and its rows are as long as the adapter says. Where no sum can be given (experts that
share a layer, convolutions), the numbers must have changed if the format can show a change of that size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from studio.engine.mergeplan import Part, Plan

SAMPLED = 32768  # numbers of a layer at least, and not twice as many at most
_AT_ONCE = 2048  # places whose sums are computed together
_UNIT = torch.finfo(torch.float32).eps / 2  # the merge adds in float32
_KINDS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Before:
    """Some numbers of a weight before the merge, in float32; `turned`: its rows are the inputs of the layer."""

    numbers: torch.Tensor
    turned: bool


@dataclass(frozen=True)
class Found:
    """What the proof on the weights found: how many adapted layers changed, how many are right, the first that is not.

    `layers` is how many there are.
    """

    layers: int
    changed: int
    right: int
    wrong: str


@dataclass(frozen=True)
class _Pair:
    """The two matrices of an adapter for a layer, and what their product is multiplied with."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    turned: bool
    lengths: torch.Tensor | None

    def added(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What it adds at some places of the weight, and how far float32 may have been from it."""
        outputs, inputs = (columns, rows) if self.turned else (rows, columns)
        found = []
        for start in range(0, len(rows), _AT_ONCE):
            piece = slice(start, start + _AT_ONCE)
            terms = self.up[outputs[piece]].double() * self.down[:, inputs[piece]].double().T * self.scale
            found.append(torch.stack([terms.sum(1), terms.abs().sum(1)]))
        change, size = torch.cat(found, 1)
        return change, _UNIT * (len(self.down) + 4) * size


class _Adapter:
    """The tensors of an adapter, read one at a time."""

    def __init__(self, part: Part) -> None:
        self.config, self.weight = part.files.config, part.weight
        self._file = part.files.folder / "adapter_model.safetensors"
        with safe_open(self._file, framework="pt") as file:
            self.keys = set(file.keys())

    def read(self, key: str) -> torch.Tensor | None:
        """The tensor of that name under the base's, if there is one."""
        if _PREFIX + key not in self.keys:
            return None
        with safe_open(self._file, framework="pt") as file:
            found: torch.Tensor = file.get_tensor(_PREFIX + key)
            return found

    def layers(self) -> Iterator[str]:
        """The weights it has two matrices for."""
        for key in sorted(self.keys):
            for down, _ in _KINDS:
                if key.endswith(f".{down}") and ".base_layer." not in key:
                    yield key.removeprefix(_PREFIX).removesuffix(down) + "weight"

    def pair(self, name: str, shape: tuple[int, ...], before: Before) -> _Pair | None:
        """The two matrices for a weight, if a product of them is what is added to it."""
        layer, _, own = name.rpartition(".")
        for down, up in _KINDS:
            one, two = self.read(f"{layer}.{down}"), self.read(f"{layer}.{up}")
            if one is None or two is None or own != "weight" or self.config.get("use_qalora"):
                continue
            turned = before.turned or down == "lora_embedding_A"
            wanted = (len(two), one.shape[-1])[:: -1 if turned else 1]
            if one.dim() == two.dim() == 2 and wanted == shape and len(one) == two.shape[1]:
                lengths = self.read(f"{layer}.lora_magnitude_vector")
                return _Pair(one, two, self._scale(layer), turned, lengths)
        return None

    def _scale(self, layer: str) -> float:
        rank = self._of_layer("rank_pattern", "r", layer)
        alpha = self._of_layer("alpha_pattern", "lora_alpha", layer)
        return float(self.weight * alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def _of_layer(self, pattern: str, default: str, layer: str) -> float:
        patterns: dict[str, float] = self.config.get(pattern) or {}
        found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer))
        return next(found, self.config.get(default, 8))

    def tokens(self, name: str) -> tuple[list[int], torch.Tensor] | None:
        """Rows it replaces in a weight, and what by."""
        layer = name.rpartition(".")[0]
        rows, chosen = self.read(f"{layer}.token_adapter.trainable_tokens_delta"), self._chosen(layer)
        return None if rows is None or len(chosen) != len(rows) else (chosen, rows)

    def _chosen(self, layer: str) -> list[int]:
        named: Any = self.config.get("trainable_token_indices") or []
        if isinstance(named, dict):
            return list(next((rows for part, rows in named.items() if f".{layer}".endswith(f".{part}")), []))
        return list(named)

    def strength(self, layer: str) -> float:
        """How large the numbers are that it adds to a layer, roughly; 0 where it has nothing for it."""
        total = 0.0
        for key in sorted(key for key in self.keys if key.startswith(f"{_PREFIX}{layer}.") and "lora_" in key):
            down, up = next(((a, b) for a, b in _KINDS if key.endswith(a)), ("", ""))
            if down:
                one = self.read(key.removeprefix(_PREFIX))
                two = self.read(key.removeprefix(_PREFIX).removesuffix(down) + up)
                if one is not None and two is not None:
                    rank = self._of_layer("rank_pattern", "r", layer)
                    total += abs(self._scale(layer)) * math.sqrt(rank) * _typical(one) * _typical(two)
        return total


def _typical(tensor: torch.Tensor) -> float:
    return tensor.float().square().mean().sqrt().item()


def places(count: int) -> torch.Tensor:
    """Which numbers of a weight are looked at: evenly chosen, of many rows and of many columns."""
    return torch.arange(0, count, max(1, count // SAMPLED) | 1)


def sample(weight: torch.Tensor) -> torch.Tensor:
    """Those numbers of a weight."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED) | 1].clone().cpu()


def before(weight: torch.Tensor, layer: object) -> Before:
    """What is kept of a weight of `layer` until the proof."""
    return Before(sample(weight).float(), type(layer).__name__ == "Conv1D")


def check_weights(
    plan: Plan, read: Callable[[str], torch.Tensor], samples: dict[str, Before], there: set[str]
) -> Found:
    """Look at every adapted layer. `read` gives a merged weight as it was read back, `there` holds all their names."""
    adapters = [_Adapter(part) for part in plan.adapters]
    dtype: torch.dtype = getattr(torch, plan.config.dtype)
    forgotten = {name for one in adapters for name in one.layers() if name in there and name not in samples}
    wrong, changed = sorted(forgotten), 0
    for name, kept in samples.items():
        weight = read(name)
        changed += not torch.equal(sample(weight).to(dtype), kept.numbers.to(dtype))
        if not _is_right(name, kept, weight.to(dtype), adapters):
            wrong.append(name)
    layers = len(samples) + len(forgotten)
    return Found(layers, changed, layers - len(wrong), wrong[0].removesuffix(".weight") if wrong else "")


def _is_right(name: str, kept: Before, weight: torch.Tensor, adapters: list[_Adapter]) -> bool:
    pairs = [pair for one in adapters if (pair := one.pair(name, tuple(weight.shape), kept))]
    if any(pair.lengths is not None for pair in pairs):
        simple = len(pairs) == 1 and not pairs[0].turned
        return _is_right_dora(kept, weight, pairs[0]) if simple else _has_changed(name, kept, weight, adapters)
    if pairs:
        return _is_sum(kept, weight, pairs)
    saved = next((whole for one in adapters if (whole := one.read(name)) is not None), None)
    if saved is not None:
        return torch.equal(weight.cpu(), saved.to(weight.dtype))
    tokens = next((found for one in adapters if (found := one.tokens(name))), None)
    if tokens:
        return _has_tokens(kept, weight, *tokens)
    return _has_changed(name, kept, weight, adapters)


def _sums(kept: Before, weight: torch.Tensor, pairs: list[_Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, base + adapters, how far float32 may be from it) at the places looked at."""
    where = places(weight.numel())
    rows, columns = where // weight.shape[1], where % weight.shape[1]
    wanted = kept.numbers.double()
    slack = _UNIT * (len(pairs) + 1) * wanted.abs()
    for pair in pairs:
        change, error = pair.added(rows, columns)
        wanted, slack = wanted + change, slack + error + _UNIT * len(pairs) * change.abs()
    return rows, wanted, slack


def _is_sum(kept: Before, weight: torch.Tensor, pairs: list[_Pair]) -> bool:
    """Rounding never changes an order: what lies between two sums lies between them rounded too."""
    _, wanted, slack = _sums(kept, weight, pairs)
    found = sample(weight)
    least, most = (wanted - slack).to(weight.dtype), (wanted + slack).to(weight.dtype)
    return bool(((least <= found) & (found <= most)).all())


def _is_right_dora(kept: Before, weight: torch.Tensor, pair: _Pair) -> bool:
    """Base + adapter times a factor for each row, which gives the row its length."""
    rows, wanted, slack = _sums(kept, weight, [pair])
    lengths = pair.lengths.double().reshape(-1) if pair.lengths is not None else torch.empty(0)
    digit = torch.finfo(weight.dtype).eps
    pieces = weight.cpu().tensor_split(max(1, weight.numel() // 2**20))
    found = torch.cat([torch.linalg.vector_norm(piece.double(), dim=1) for piece in pieces])
    if len(found) != len(lengths) or not bool(((found - lengths.abs()).abs() <= (digit + 1e-5) * lengths.abs()).all()):
        return False
    numbers = sample(weight).double()
    up, down = (
        torch.zeros(len(weight), dtype=torch.float64).index_add(0, rows, one * wanted) for one in (numbers, wanted)
    )
    factors = (up / down.clamp_min(1e-300))[rows]
    room = (1.05 * digit + 1e-5) * (factors * wanted).abs() + 2 * factors.abs() * slack
    smallest = torch.finfo(weight.dtype).smallest_normal * digit
    same_sign = factors * lengths[rows] >= 0
    return bool((((numbers - factors * wanted).abs() <= room + smallest) & same_sign).all())


def _has_tokens(kept: Before, weight: torch.Tensor, chosen: list[int], rows: torch.Tensor) -> bool:
    """The rows of some tokens are the adapter's, all others those of the base."""
    other = ~torch.isin(places(weight.numel()) // weight.shape[1], torch.tensor(chosen))
    same = torch.equal(sample(weight)[other], kept.numbers.to(weight.dtype)[other])
    return same and torch.equal(weight[chosen].cpu(), rows.to(weight.dtype))


def _has_changed(name: str, kept: Before, weight: torch.Tensor, adapters: list[_Adapter]) -> bool:
    """Other numbers than before, where the format can show what the adapters add; a bias nobody trained is the same."""
    changed = not torch.equal(sample(weight), kept.numbers.to(weight.dtype))
    layer, _, own = name.rpartition(".")
    strength = sum(one.strength(layer) for one in adapters)
    if own == "bias":
        return not changed or strength > 0
    seen = torch.finfo(weight.dtype).eps * kept.numbers.abs().median().item()
    return changed or strength <= seen
