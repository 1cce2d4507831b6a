"""The tensors of an adapter under the names PEFT gives them in a file, whoever wrote them.

XTuner puts `llm.` before them and keeps the adapter's name in them; DeepSpeed adds `module.`. An adapter that was
trained on a model in its original layout (InternLM2's `wqkv` and the like) becomes one for the converted model: what
the layout's rule does to the rows of a weight it does to the rows of the adapter's second matrix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from studio.engine.failure import EngineError, model_failure
from studio.engine.layout_rules import Rule, Sizes, rules_for
from studio.layouts import Layout

PREFIX = "base_model.model."
_HEAD = r"(?:_orig_mod\.|module\.|llm\.|model\.(?=base_model\.))*base_model\.model\."
_MATRIX = re.compile(
    _HEAD + r"(?P<path>.+)\.(?P<part>lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)"
    r"(?:\.(?P<name>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<kind>weight|bias))?"
)
_WHOLE = re.compile(_HEAD + r"(?P<path>.+)\.modules_to_save\.(?P<name>[^.]+)\.(?P<kind>weight|bias)")
_OUTSIDE = r"^(?:_orig_mod\.|module\.|llm\.)+"
_LAYER = re.compile(r"(?:model|transformer)\.(?:\w+\.)?(?:layers|h)\.(\d+)\.")
_SAVED_WHOLE = re.compile(re.escape(PREFIX) + r"(?P<path>.+)\.(?P<kind>weight|bias)")


_PARTNERS = (
    ("lora_A", "lora_B"),
    ("lora_B", "lora_A"),
    ("embedding_A", "embedding_B"),
    ("embedding_B", "embedding_A"),
)


@dataclass(frozen=True)
class Named:
    """`tensors` by PEFT's names; `whole` are the paths of layers trained as a whole; `left` what is no part of it."""

    tensors: dict[str, torch.Tensor]
    whole: tuple[str, ...]
    left: tuple[str, ...] = ()

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by layer path."""
        found = {}
        for name, tensor in self.tensors.items():
            match = _MATRIX.fullmatch(name)
            if match and match["part"].endswith("_A"):
                found[match["path"]] = int(tensor.shape[0])
        return found

    @property
    def biases(self) -> bool:
        """Whether the second matrices have biases."""
        return any(name.endswith("lora_B.bias") for name in self.tensors)

    @property
    def magnitudes(self) -> bool:
        """Whether it is a DoRA adapter."""
        return any(name.endswith("lora_magnitude_vector") for name in self.tensors)


def named(state: Mapping[str, Any], source: str, *, saved: bool = False) -> Named:
    """The adapter in a state dictionary. `saved`: it is PEFT's own file: layers trained as a whole have no mark there,
    and everything in it is part of the adapter.

    Raises EngineError, field source: no adapter in it, several adapters, a matrix without its partner.
    """
    tensors: dict[str, torch.Tensor] = {}
    whole: dict[str, None] = {}
    left = []
    state = {str(key): value for key, value in state.items()}
    names = _adapter_names(state)
    chosen = _choose(names, source)
    for key, value in state.items():
        place = _place(key, chosen, saved=saved) if isinstance(value, torch.Tensor) else None
        if place is None:
            left.append(key)
            continue
        tensors[place[0]] = value
        if place[1]:
            whole[place[1]] = None
    if not tensors:
        raise _no_adapter(state, source)
    found = Named(tensors, tuple(whole), tuple(left))
    _check_pairs(found, source)
    return found


def whole_model(state: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """The weights of a training of every weight, under the names of the base's files; None for anything else."""
    weights = {re.sub(_OUTSIDE, "", str(k)): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if any("lora_" in name or "modules_to_save" in name for name in weights):
        return None
    layers = {match[1] for name in weights if (match := _LAYER.match(name))}
    return weights if layers and any(name.startswith(("model.", "transformer.")) for name in weights) else None


def _adapter_names(state: Mapping[str, Any]) -> Counter[str]:
    matches = (_MATRIX.fullmatch(key) or _WHOLE.fullmatch(key) for key in state)
    return Counter(match["name"] for match in matches if match and match["name"])


def _choose(names: Counter[str], source: str) -> str | None:
    """The adapter that is taken: the only one, or the one every library calls default."""
    if len(names) <= 1 or "default" in names:
        return "default" if "default" in names else next(iter(names), None)
    raise model_failure(
        f"source: {source} holds {len(names)} adapters ({', '.join(sorted(names))[:120]}), and none is called default.",
        "Save one of them with the program that made it.",
        "source",
    )


def _place(key: str, chosen: str | None, *, saved: bool) -> tuple[str, str] | None:
    """(PEFT's name, path of a layer trained as a whole or ""); None for what is no part of the adapter."""
    match = _MATRIX.fullmatch(key)
    if match:
        if match["name"] not in (None, chosen):
            return None
        bare = match["part"].startswith(("lora_embedding", "lora_magnitude"))
        ending = "" if bare else f".{match['kind'] or 'weight'}"
        return f"{PREFIX}{match['path']}.{match['part']}{ending}", ""
    match = _WHOLE.fullmatch(key)
    if match:
        return (f"{PREFIX}{match['path']}.{match['kind']}", match["path"]) if match["name"] == chosen else None
    if not saved or not key.startswith(PREFIX):
        return None
    match = _SAVED_WHOLE.fullmatch(key)
    own = match is not None and ".base_layer" not in key and ".original_module" not in key
    return key, match["path"] if match and own else ""


def _no_adapter(state: Mapping[str, Any], source: str) -> EngineError:
    keys = [str(key) for key, value in state.items() if isinstance(value, torch.Tensor)]
    if any("lora_" in key for key in keys):
        first = next(key for key in keys if "lora_" in key)
        reason = f"{source} holds an adapter for another part than the language model (first {first})"
        return model_failure(f"source: {reason}.", "Only adapters of language models are imported.", "source")
    if not keys:
        reason, hint = f"{source} holds no weights", "Choose the checkpoint itself, or copy it again."
    elif any("projector" in key for key in keys) and len(keys) < 16:
        reason = f"{source} holds only the projector of a model that sees (first {keys[0]})"
        hint = "Choose the checkpoint of the second stage, which has trained the language model."
    else:
        reason = f"{source} holds {len(keys)} whole weights and no adapter (first {keys[0]}): every weight was trained"
        hint = "There is nothing to put on a base model; use it as the model it is."
    return model_failure(f"source: {reason}.", hint, "source")


def _check_pairs(found: Named, source: str) -> None:
    """Every tensor holds numbers; each matrix is one, and has its partner, of the same rank."""
    for name, tensor in found.tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise model_failure(
                f"source: the tensor {name} in {source} holds values that are not numbers.",
                "The training has blown up; use an earlier checkpoint.",
                "source",
            )
        for one, other in _PARTNERS:
            if name.removesuffix(".weight").endswith(one):
                _check_pair(name, name.replace(one, other), found.tensors, source)


def _check_pair(name: str, partner: str, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    if partner not in tensors:
        reason = f"it has {name} but no {partner}"
    elif tensors[name].dim() != 2 or tensors[partner].dim() != 2:
        reason = f"its {name} is no matrix"
    elif name.removesuffix(".weight").endswith("_A") and tensors[name].shape[0] != tensors[partner].shape[1]:
        reason = f"the ranks of {name} and its partner differ"
    else:
        return
    raise model_failure(
        f"source: {source} is incomplete or damaged: {reason}.", "Copy it again, with all its files.", "source"
    )


def converted(found: Named, layout: Layout) -> Named:
    """The same adapter for the converted model.

    Raises EngineError, field source, for a layer the layout does not know or whose change cannot be carried over.
    """
    rules, sizes = rules_for(layout.family.key, layout.config), Sizes.of(layout.converted_config())
    places = {name: _place_in_layout(name, rules) for name in found.tensors}
    if all(place.unchanged for place in places.values() if place.rule):
        return found  # it was trained on the converted model, or the names are the same
    tensors: dict[str, torch.Tensor] = {}
    whole: dict[str, None] = {}
    for name, place in places.items():
        try:
            parts = place.parts(found.tensors[name], sizes)
        except (RuntimeError, ValueError, IndexError) as error:
            raise _no_way(name, layout) from error
        for path, part in zip(place.paths, parts, strict=True):
            tensors[f"{PREFIX}{path}.{place.ending}"] = part
            if not place.part:
                whole[path] = None
    return Named(tensors, tuple(whole), found.left)


@dataclass(frozen=True)
class _InLayout:
    """Where a tensor of an adapter goes: its layer by the layout's rule (None: there is none), its part, its ending."""

    path: str
    part: str
    ending: str
    rule: Rule | None
    paths: tuple[str, ...]

    @property
    def unchanged(self) -> bool:
        return self.paths == (self.path,)

    def parts(self, tensor: torch.Tensor, sizes: Sizes) -> list[torch.Tensor]:
        """The tensor of each of `paths`; ValueError where the rule has no way for it."""
        if self.rule is None or not self.paths:
            raise ValueError("no rule")
        if self.part == "lora_A":  # what goes in is the same for all of them
            return [tensor] * len(self.paths)
        if self.part.startswith("lora_embedding"):
            return [tensor]
        if self.part and self.rule.join is None:
            raise ValueError("not linear")
        return list(self.rule.split(tensor, sizes))


def _place_in_layout(name: str, rules: tuple[Rule, ...]) -> _InLayout:
    match = _MATRIX.fullmatch(name)
    path, kind = (match["path"], "weight") if match else name.removeprefix(PREFIX).rpartition(".")[::2]
    part = match["part"] if match else ""
    ending = name.removeprefix(f"{PREFIX}{path}.")
    for rule in rules:
        targets = rule.targets(f"{path}.{kind}")
        if targets is not None:
            return _InLayout(path, part, ending, rule, tuple(target.rpartition(".")[0] for target in targets))
    known = any(Rule(target, ()).targets(f"{path}.{kind}") is not None for rule in rules for target in rule.converted)
    return _InLayout(path, part, ending, None, (path,) if known else ())


def _no_way(name: str, layout: Layout) -> EngineError:
    return model_failure(
        f"source: its tensor {name} has no place in the base model, which is in the layout of {layout.family.title}.",
        "Choose the base model the adapter was trained on.",
        "source",
    )
