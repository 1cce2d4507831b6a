"""A checkpoint of a run that divided nothing, read as `optimizer_file` would have it, so that ZeRO or FSDP2 go on.

The optimizer's numbers stand in `optimizer.pt` in the order of its groups; the weights in the files of the adapter or
of the model, under the names those have for others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.trainer import OPTIMIZER_NAME

from studio.checkpoints import step_of
from studio.engine.divided import WEIGHT
from studio.engine.failure import EngineError
from studio.engine.optimizer_file import Facts, Get, group_settings
from studio.events import RunError

_OURS = re.compile(r"\.modules_to_save\.default|(?<=lora_magnitude_vector)\.default\.weight|\.default(?=\.weight$|$)")


def is_plain(folder: Path) -> bool:
    """Whether a run that divided nothing wrote this checkpoint."""
    return (folder / OPTIMIZER_NAME).is_file()


def open_plain(folder: Path, order: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Facts, Get]:
    """What lies beside the numbers, and how to get those of a weight by its name.

    `order`: the names of the weights as the optimizer's groups have them. Raises EngineError when a weight is missing.
    """
    saved: dict[str, Any] = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    states: dict[str, dict[str, Any]] = {
        name: saved["state"].get(number, {}) for name, number in zip(order, numbers, strict=False)
    }
    places = _places(folder)
    lacking = [name for name in order if _public(name) not in places] if len(numbers) == len(order) else [*order, ""]
    if lacking:
        raise _other_weights(folder, lacking[0])
    some = next((state for state in states.values() if state), {})
    shaped = [key for key, value in some.items() if isinstance(value, torch.Tensor) and value.dim() > 0]
    facts = Facts(
        processes=1,
        keys=shaped,
        scalars={key: float(value) for key, value in some.items() if key not in shaped and value is not None},
        groups=group_settings(saved["param_groups"]),
        counters={"global_steps": step_of(folder)},
    )

    def get(name: str, key: str) -> torch.Tensor:
        if key != WEIGHT:
            value = states[name].get(key)
            return torch.zeros(shapes[name]) if value is None else value.float()
        with safe_open(places[_public(name)], "pt") as file:
            return file.get_tensor(_public(name)).float()  # type: ignore[no-any-return]

    return facts, get


def _places(folder: Path) -> dict[str, Path]:
    """The file of each saved weight."""
    found: dict[str, Path] = {}
    for path in [*folder.glob("adapter_model*.safetensors"), *folder.glob("model*.safetensors")]:
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _public(name: str) -> str:
    """The name PEFT gives a trained weight in its file."""
    return _OURS.sub("", name)


def _other_weights(folder: Path, name: str) -> EngineError:
    message = f"parallel.deepspeed: {folder.name} cannot be divided ({name or 'another number of weights'})."
    hint = "Go on with parallel.deepspeed and parallel.fsdp at none, or clone the run."
    return EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.deepspeed"))
