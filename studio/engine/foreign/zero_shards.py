"""The checkpoint directory of DeepSpeed, as XTuner's `iter_N.pth/` and transformers' `global_stepN/` are.

The weights are put together by DeepSpeed's own functions (`zero_to_fp32`), which here can read weights only. Before
that it is checked that the shard of every process is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from studio.engine.failure import EngineError, model_failure
from studio.engine.foreign.checkpoint_file import careful, damaged, load
from studio.engine.shortage import is_memory

_MODEL = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<part>\d+)_model_states\.pt")
_OPTIMIZER = re.compile(
    r"(?P<prefix>(?:bf16_|fp16_)?)zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_optim_states\.pt"
)


@dataclass(frozen=True)
class Assembled:
    """The trained tensors of all shards, what the training wrote beside them, and what a person should know."""

    tensors: dict[str, torch.Tensor]
    meta: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Shards:
    """The files of a directory: by the rank of the process that wrote each (a model file of all: rank -1)."""

    folder: Path
    models: dict[int, Path]
    optimizers: dict[int, Path]

    @property
    def partitioned(self) -> bool:
        """Whether the weights themselves are divided (ZeRO-3), not only what the optimizer knows."""
        return -1 not in self.models


def is_shards(folder: Path) -> bool:
    """Whether a folder is such a directory."""
    return any(_MODEL.fullmatch(path.name) or _OPTIMIZER.fullmatch(path.name) for path in folder.iterdir())


def assemble(folder: Path) -> Assembled:
    """Put the shards together.

    Raises:
        EngineError: kind model, field source: a shard is missing, a file is damaged, DeepSpeed is not installed.
    """
    shards = _find(folder)
    first = load(shards.models[min(shards.models)])
    if not isinstance(first, dict) or not isinstance(first.get("module"), dict):
        raise damaged(shards.models[min(shards.models)], ValueError("it holds no weights"))
    if not shards.partitioned and not shards.optimizers:
        note = "The optimizer's shards are not there: the weights are taken as they were computed with, in 16 bits."
        return Assembled(dict(first["module"]), first, [note])
    _check_all_there(shards, first)
    return Assembled(_fp32(shards), first)


def _find(folder: Path) -> _Shards:
    models: dict[int, Path] = {}
    optimizers: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        for pattern, found in ((_MODEL, models), (_OPTIMIZER, optimizers)):
            match = pattern.fullmatch(path.name)
            if match and int(match["part"]) > 0:
                raise model_failure(
                    f"source: the weights in {folder.name} are divided between GPUs layer by layer ({path.name}), "
                    "which cannot be put together here.",
                    "Convert it with the program that wrote it first.",
                    "source",
                )
            if match:
                found[int(match["rank"] or -1)] = path
    if not models:
        raise _missing(folder, "mp_rank_00_model_states.pt")
    return _Shards(folder, models, optimizers)


def _check_all_there(shards: _Shards, first: Mapping[str, Any]) -> None:
    """Every process of the training has left its files."""
    count = first.get("dp_world_size")
    if not isinstance(count, int) or count < 1:
        count = max([*shards.models, *shards.optimizers]) + 1
    prefix = next((m["prefix"] for p in shards.optimizers.values() if (m := _OPTIMIZER.fullmatch(p.name))), "")
    for rank in range(count):
        if shards.partitioned and rank not in shards.models:
            raise _missing(shards.folder, f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", count)
        if rank not in shards.optimizers:
            raise _missing(shards.folder, f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", count)


def _missing(folder: Path, name: str, count: int = 1) -> EngineError:
    written = f"; the training ran in {count} processes, and each of them wrote one" if count > 1 else ""
    return model_failure(
        f"source: a shard is missing: {folder.name} holds no {name}{written}.",
        "Copy the whole folder again, from every machine of the training.",
        "source",
    )


def _fp32(shards: _Shards) -> dict[str, torch.Tensor]:
    """What was trained, from the optimizer's own copies."""
    from_zero = _deepspeed_reader()
    folder = shards.folder
    files = [*shards.models.values(), *shards.optimizers.values()]
    with careful(files):
        try:
            state = from_zero(str(folder.parent), tag=folder.name, exclude_frozen_parameters=True)
        except Exception as error:
            if is_memory(error):
                raise
            for path in files:  # which of them it was
                load(path)
            raise damaged(folder, error) from error
    return {str(name): tensor for name, tensor in state.items()}


def _deepspeed_reader() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise model_failure(
            "source: shards of DeepSpeed are put together by DeepSpeed, which is not installed here.",
            "Install it with pip install deepspeed (on Linux).",
            "source",
        ) from error
    return get_fp32_state_dict_from_zero_checkpoint
