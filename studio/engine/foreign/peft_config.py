"""adapter_config.json of an imported adapter: the rank from its shapes, the layers from its names, the rest as told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from torch import nn

from studio.engine.failure import EngineError, model_failure
from studio.engine.foreign.settings import Settings
from studio.engine.foreign.tensor_names import Named
from studio.engine.output_folder import refused


def peft_settings(found: Named, settings: Settings, alpha: float | None, *, renamed: bool) -> dict[str, Any]:
    """The arguments of PEFT's LoraConfig. PEFT's own settings are kept but for the names of layers, if `renamed`.

    Raises EngineError, field settings, source or lora_alpha: nobody says the scale, the settings are of another
    adapter, or it is of a kind that is not supported.
    """
    lora = settings.lora
    _check_bias(lora)
    scale = alpha if alpha is not None else _number(settings, "lora_alpha")
    told = dict(lora) if settings.peft else {}
    fixed = {"task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
    ranks = found.ranks
    if not lora.get("target_parameters"):  # experts that share a weight have their ranks in one matrix
        _check_rank(settings, ranks)
    if settings.peft and not renamed:
        return told | fixed | ({"lora_alpha": _whole_if_so(alpha)} if alpha is not None else {})
    if not ranks:
        raise model_failure(
            "source: it holds layers trained as a whole and no LoRA matrices.", "Choose a LoRA adapter.", "source"
        )
    if scale is None:
        raise refused(
            "config",
            "lora_alpha",
            "lora_alpha: nothing says with which alpha the adapter was trained, and its strength depends on it.",
            "Name the configuration it was trained with, or give the alpha.",
        )
    usual = Counter(ranks.values()).most_common(1)[0][0]
    return (
        told
        | fixed
        | {
            "peft_type": "LORA",
            "r": usual,
            "lora_alpha": _whole_if_so(scale),
            "lora_dropout": _number(settings, "lora_dropout") or 0.0,
            "lora_bias": found.biases,
            "use_rslora": bool(lora.get("use_rslora", False)),
            "use_dora": found.magnitudes,
            "rank_pattern": {path: rank for path, rank in ranks.items() if rank != usual},
            "alpha_pattern": {},
            "modules_to_save": sorted(found.whole) or None,  # full names: PEFT takes a name for any ending
        }
    )


def _whole_if_so(number: float) -> float:
    return int(number) if float(number).is_integer() else float(number)


def _number(settings: Settings, name: str) -> float | None:
    value = settings.lora.get(name)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise refused(
        "config",
        "settings",
        f"settings: {settings.origin} says {name} {str(value)[:40]!r}, which is no number.",
        "Name the configuration it was trained with.",
    )


def lora_config(values: Mapping[str, Any], settings: Settings) -> Any:
    """PEFT's own object of these settings. Raises EngineError, field settings, for values it does not take."""
    known = LoraConfig.__dataclass_fields__
    try:
        return LoraConfig(**{name: value for name, value in values.items() if name in known})
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise refused(
            "config",
            "settings",
            f"settings: {settings.origin or 'the configuration'} cannot be used ({reason}).",
            "Name the configuration it was trained with.",
        ) from error


def _check_bias(lora: Mapping[str, Any]) -> None:
    bias = lora.get("bias") or "none"
    if bias != "none":
        raise model_failure(
            f"source: the adapter was trained with biases of the base model (bias={bias}), which is not supported.",
            "Choose an adapter that was trained with bias none.",
            "source",
        )


def _check_rank(settings: Settings, ranks: Mapping[str, int]) -> None:
    said = settings.lora.get("r")
    if isinstance(said, int) and ranks and said not in ranks.values() and not settings.lora.get("rank_pattern"):
        seen = ", ".join(str(rank) for rank in sorted(set(ranks.values())))
        raise refused(
            "config",
            "settings",
            f"settings: {settings.origin} says rank {said}, and the adapter's tensors have rank {seen}.",
            "Name the configuration it was trained with.",
        )


def layer_names(found: Named, base: nn.Module) -> list[str]:
    """The value of target_modules: last names where they mean just these layers of the base, else their full names."""
    adapted = set(found.ranks)
    last = {path.rpartition(".")[2] for path in adapted}
    meant = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last) if meant == adapted else sorted(adapted)


def check_whole(found: Named, base: nn.Module) -> None:
    """Layers trained as a whole are in the base, in this size. Raises EngineError, field base, naming the tensor."""
    shapes = {name: tuple(weight.shape) for name, weight in base.named_parameters(remove_duplicate=False)}
    for path in found.whole:
        for kind in ("weight", "bias"):
            given = found.tensors.get(f"base_model.model.{path}.{kind}")
            if given is not None and shapes.get(f"{path}.{kind}") != tuple(given.shape):
                raise wrong_base(f"{path}.{kind}", tuple(given.shape), shapes.get(f"{path}.{kind}"))


def wrong_base(name: str, given: tuple[int, ...], there: tuple[int, ...] | None) -> EngineError:
    """The error for a tensor that has no place in the base."""
    is_there = f"the base model's is {_size(there)}" if there else "the base model has none of that name"
    return model_failure(
        f"base: the adapter was trained on another base model: its {name} is {_size(given)}, and {is_there}.",
        "Choose the base model the adapter was trained on.",
        "base",
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
