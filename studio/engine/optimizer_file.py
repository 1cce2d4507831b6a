"""`state/optimizer.safetensors`: trained weights and the optimizer's numbers by the names of the weights, each whole.

Any number of processes can go on from it, under any stage of ZeRO, under FSDP2 or plainly. The first process writes it
and reads it; one weight after the other passes through its memory. What is no tensor is in `optimizer.json` beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from studio.checkpoints import FACTS, OPTIMIZER
from studio.durable import write_atomic
from studio.engine import ranks
from studio.engine.divided import WEIGHT, Divided, Scalars
from studio.engine.failure import EngineError
from studio.engine.shards import Shards
from studio.engine.together import agree, attempt, carrier, of_first
from studio.events import RunError

Get = Callable[[str, str], torch.Tensor]
"""(name of a weight, key) -> the whole numbers, float32, on the CPU."""
_CHANGING = ("lr", "initial_lr", "step")
_ONE_FILE = 2**62  # bytes: never a second one


class Facts(BaseModel):
    """Beside the tensors. `groups`: the settings of each group of weights (learning rate …); of DeepSpeed: `counters`,
    the `scale` of its loss with half numbers, and its own `schedule`, where it has one."""

    model_config = ConfigDict(extra="ignore")

    processes: int
    keys: list[str]
    scalars: Scalars
    groups: list[dict[str, float]]
    counters: dict[str, int] = {}
    scale: dict[str, float] = {}
    schedule: dict[str, Any] = {}


def write(folder: Path, view: Divided, facts: Facts) -> None:
    """Write both files; all processes call it, the first one writes.

    Raises an OSError of the first process there, and in the others an EngineError that says the same.
    """
    shards: Shards | None = None
    failure: Exception | None = None
    keys = [WEIGHT, *facts.keys]

    def begin() -> None:
        nonlocal shards
        tensors = {
            f"{name}:{key}": torch.empty(view.shape(name), device="meta") for name in view.weights for key in keys
        }
        file = folder / OPTIMIZER
        file.parent.mkdir(parents=True, exist_ok=True)
        shards = Shards(file.parent, tensors, _ONE_FILE, f"{file.stem}{{suffix}}{file.suffix}")
        write_atomic(folder / FACTS, facts.model_dump_json(indent=1))

    if ranks.is_first():
        failure = attempt(begin)
    for name in view.weights:
        for key in keys:
            value = view.get(name, key)  # all of them, also after a failure: the others would wait
            if shards and not failure:
                failure = attempt(lambda name=name, key=key, value=value: shards.write(f"{name}:{key}", value))  # type: ignore[misc]
    agree(failure)


def read_facts(folder: Path) -> Facts | None:
    """What lies beside the tensors; None for a checkpoint without them.

    Raises EngineError where it cannot be read: a run must not go on as if its optimizer had learned nothing.
    """
    if not (folder / FACTS).is_file():
        return None
    try:
        return Facts.model_validate_json((folder / FACTS).read_bytes())
    except (OSError, ValueError):
        message = f"checkpoint: {FACTS} of {folder.name} cannot be read, without which the optimizer cannot go on."
        hint = f"Delete {folder.name} to go on from the checkpoint before it, or clone the run."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="checkpoint")) from None


def read(folder: Path, view: Divided, facts: Facts, *, only_weights: bool = False) -> None:
    """Put the numbers of both files where this run wants them; all processes call it, the first one reads.

    Raises EngineError for a checkpoint of other weights.
    """
    if not ranks.is_first():
        _refuse(of_first(""), folder)
        spread(view, facts, None, only_weights=only_weights)
        return
    with safe_open(folder / OPTIMIZER, "pt") as file:
        _refuse(of_first(_difference(set(file.keys()), view, facts)), folder)
        spread(view, facts, lambda name, key: file.get_tensor(f"{name}:{key}"), only_weights=only_weights)


def spread(view: Divided, facts: Facts, get: Get | None, *, only_weights: bool = False) -> None:
    """Put the numbers the first process can `get` where this run wants them; all processes call it together."""
    keys = [WEIGHT] if only_weights else [WEIGHT, *facts.keys]
    if not only_weights:
        view.prepare(facts.keys, facts.scalars)
        _restore_groups(view.optimizer.param_groups, facts.groups)
    for name in view.weights:
        for key in keys:
            view.put(name, key, _from_first(get(name, key) if get else None, view.shape(name)))
    view.finish()


def group_settings(groups: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What of each group of weights changes while training."""
    return [{key: float(group[key]) for key in _CHANGING if key in group} for group in groups]


def _restore_groups(groups: list[dict[str, Any]], saved: list[dict[str, float]]) -> None:
    """What changes while training; other settings are the configuration's."""
    if saved and len(groups) != len(saved):  # DeepSpeed leaves groups without weights out
        saved = saved[:1] * len(groups)
    for group, settings in zip(groups, saved, strict=False):
        group.update({key: settings[key] for key in _CHANGING if key in settings})


def _difference(found: set[str], view: Divided, facts: Facts) -> str:
    wanted = {f"{name}:{key}" for name in view.weights for key in (WEIGHT, *facts.keys)}
    return min(wanted ^ found, default="")


def _refuse(different: str, folder: Path) -> None:
    if different:
        name = different.rpartition(":")[0]
        message = f"checkpoint: {folder.name} belongs to other trained weights than this run has ({name})."
        hint = "Begin the run again, or clone it."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="checkpoint"))


def _from_first(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor the first process has, in all of them, on the CPU."""
    if ranks.world() == 1:
        assert value is not None
        return value
    device = carrier()
    sent = torch.empty(shape, device=device) if value is None else value.to(device)
    torch.distributed.broadcast(sent, src=0)
    return sent.cpu()
