"""How a run is divided over its processes, with the sizes DeepSpeed and FSDP2 work in: what estimates divide by.

The defaults are those of DeepSpeed's own source (`deepspeed/runtime/zero/config.py`); None is "auto", which the trainer
fills in from the hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from studio.config import RunConfig
from studio.deepspeed_settings import AUTO, read_own, zero_in
from studio.presets import ROOT

Engine = Literal["torch", "zero", "fsdp2"]
BUCKET, PREFETCH, REUSE, SUB_GROUP = 500_000_000, 50_000_000, 1_000_000_000, 1_000_000_000
_MOST = 2**50  # whoever writes more means that there is no limit
_PRESETS = ROOT / "presets" / "deepspeed"


@dataclass(frozen=True)
class Sharding:
    """Who divides what among how many.

    `processes` of all machines divide; `local` of them are on one machine. `stage`, for whatever engine: 1 optimizer
    states, 2 gradients too, 3 parameters too. `sequence`: so many processes share each row. `rounds`: DeepSpeed trains
    16-bit weights beside 32-bit copies. `bucket`, `prefetch` and `reuse` are numbers of weights: of a bucket gradients
    are sent in, of weights fetched ahead, and of those a weight is kept through until it is needed again.
    """

    processes: int = 1
    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    engine: Engine = "zero"
    local: int = 1
    machines: int = 1
    sequence: int = 1
    rounds: bool = True
    bucket: int | None = None
    prefetch: int | None = None
    reuse: int = REUSE
    overlap: bool = False

    @property
    def of_states(self) -> int:
        """Into how many parts optimizer states are divided."""
        return self.processes if self.stage >= 1 else 1

    @property
    def of_gradients(self) -> int:
        """Into how many parts gradients are divided."""
        return self.processes if self.stage >= 2 else 1

    @property
    def of_weights(self) -> int:
        """Into how many parts parameters are divided."""
        return self.processes if self.stage >= 3 else 1


WHOLE = Sharding(engine="torch")
"""One process, nothing divided."""


def sharding_of(config: RunConfig) -> Sharding:
    """What a configuration asks for."""
    section = config.parallel
    spread: dict[str, Any] = {
        "processes": section.num_processes,
        "local": section.processes_per_machine,
        "machines": section.num_machines,
        "sequence": section.sequence_parallel_size,
    }
    if section.fsdp == "fsdp2":
        return Sharding(engine="fsdp2", stage=3, **spread)
    settings = _settings(config)
    return Sharding(engine="torch", **spread) if settings is None else Sharding(**spread, **_sizes(settings))


def _settings(config: RunConfig) -> Mapping[str, Any] | None:
    """DeepSpeed's settings of a run; None without DeepSpeed, or while its own file cannot be read."""
    section = config.parallel
    try:
        if section.deepspeed_config is not None:
            return read_own(Path(section.deepspeed_config))
    except ValueError:
        return None
    return None if section.deepspeed == "none" else _preset(section.deepspeed)


@lru_cache(maxsize=16)
def _preset(name: str) -> Mapping[str, Any]:
    found = json.loads((_PRESETS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def _sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What estimates need of DeepSpeed's settings."""
    zero = settings.get("zero_optimization") or {}
    divided = zero_in(settings)
    narrow = (settings.get("bf16") or {}).get("enabled", AUTO) or (settings.get("fp16") or {}).get("enabled") is True
    overlap = zero.get("overlap_comm")
    return {
        "stage": divided.stage,
        "offload_optimizer": divided.offload_optimizer,
        "offload_parameters": divided.offload_parameters,
        "rounds": bool(narrow),
        "bucket": _size(zero, "reduce_bucket_size", BUCKET),
        "prefetch": _size(zero, "stage3_prefetch_bucket_size", PREFETCH),
        "reuse": _size(zero, "stage3_max_reuse_distance", REUSE) or REUSE,
        "overlap": divided.stage == 3 if overlap is None else bool(overlap),
    }


def _size(zero: Mapping[str, Any], name: str, usual: int) -> int | None:
    """A number of weights; None for "auto"."""
    value = zero.get(name, usual)
    if value == AUTO:
        return None
    return int(min(value, _MOST)) if isinstance(value, int | float) and value >= 0 else usual
