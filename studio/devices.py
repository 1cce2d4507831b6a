"""What a run can be compared with: the cards of presets/cards.yaml, the GPUs of this machine, its main memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field

from studio import hardware
from studio.preset_files import PRESETS
from studio.schema import ConfigError, FieldError, nearest

DRIVER_SHARE = 0.02
"""Of a card's memory, kept by the driver; a GPU of this machine tells what is free itself."""
UNKNOWN_TFLOPS, UNKNOWN_BANDWIDTH = 80.0, 500.0
BUS, LOOPBACK = 20.0, 2.0
"""GB/s a card has to main memory and, without NVLink, to its neighbours (PCIe 4.0, 16 lanes, as it is reached), and
processes of one machine without cards have to each other (gloo)."""
CPU_TFLOPS_PER_CORE, CPU_BANDWIDTH = 0.1, 20.0
"""What small models were measured to reach on one core, and a usual memory bus."""


@dataclass(frozen=True)
class Device:
    """Where a run would compute. Memory in bytes, bandwidths in GB/s; `free_bytes` is what a process of it can have.

    `bf16`: bfloat16 is computed natively. `present`: it is in this machine. `link`: to the next process of the same
    machine, one way; `bus`: to main memory. `count`: how many of its kind there are to be had; `main_memory` of
    the machine it is in, None where nobody knows.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory_bytes: int
    free_bytes: int
    tflops: float
    bandwidth: float
    bf16: bool = True
    present: bool = False
    link: float = BUS
    bus: float = BUS
    count: int = 1
    main_memory: int | None = None

    def shared_by(self, processes: int) -> Device:
        """What one of the processes of a machine has: of main memory and processors its share, of cards its own."""
        if self.kind == "cuda" or processes == 1:
            return self
        return replace(self, free_bytes=self.free_bytes // processes, tflops=self.tflops / processes)


class Card(BaseModel):
    """One line of presets/cards.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    memory: float = Field(gt=0)
    tflops: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    bf16: bool = True
    link: float = Field(BUS, gt=0)
    match: str = Field(min_length=1)

    @property
    def device(self) -> Device:
        """The card with nothing else running on it."""
        total = int(self.memory * 2**30)
        free = int(total * (1 - DRIVER_SHARE))
        return Device(self.name, "cuda", total, free, self.tflops, self.bandwidth, self.bf16, link=self.link)


@cache
def cards() -> tuple[Card, ...]:
    """Every card of the list, the smallest first."""
    data = yaml.safe_load((PRESETS / "cards.yaml").read_text(encoding="utf-8"))
    return tuple(sorted((Card.model_validate(line) for line in data["cards"]), key=lambda card: card.memory))


def find_card(name: str) -> Device:
    """The card of that name; a part of it is enough. Raises ConfigError, naming the nearest."""
    wanted = _plain(name)
    exact = [card for card in cards() if _plain(card.name) == wanted]
    found = exact or [card for card in cards() if wanted and wanted in _plain(card.name)]
    if found:
        return found[0].device
    near = nearest(name, [card.name for card in cards()])
    hint = f"did you mean {near}?" if near else f"known are {', '.join(card.name for card in cards())}"
    raise ConfigError([FieldError("card", f"there is no card {name[:60]!r} in the list; {hint}", "unknown")])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+|nvidia|geforce", "", name.lower())


def present() -> tuple[Device, ...]:
    """The GPUs of this machine, or its main memory if it has none."""
    gpus = hardware.find_gpus()
    return from_gpus(gpus) if gpus else (main_memory(),)


def from_gpus(gpus: Sequence[hardware.Gpu]) -> tuple[Device, ...]:
    """GPUs as the driver lists them, with what the list knows of their kind."""
    return tuple(_from_gpu(gpu, sum(gpu.name == other.name for other in gpus)) for gpu in gpus)


def card_of(name: str, memory_bytes: int) -> Card | None:
    """The card of the list that a driver calls by this name; None for one that is not in it."""
    alike = [card for card in cards() if re.search(card.match, name)]
    return min(alike, key=lambda one: abs(one.memory * 2**30 - memory_bytes), default=None)


def _from_gpu(gpu: hardware.Gpu, count: int) -> Device:
    card = card_of(gpu.name, gpu.memory_bytes)
    return Device(
        name=gpu.name,
        kind="cuda",
        memory_bytes=gpu.memory_bytes,
        free_bytes=gpu.free_bytes or gpu.memory_bytes,
        tflops=card.tflops if card else UNKNOWN_TFLOPS,
        bandwidth=card.bandwidth if card else UNKNOWN_BANDWIDTH,
        bf16=card.bf16 if card else True,
        present=True,
        link=card.link if card else BUS,
        count=count,
        main_memory=hardware.memory_bytes()[0],
    )


def main_memory() -> Device:
    """This machine without a GPU."""
    total, free = hardware.memory_bytes()
    cores = min(hardware.cpu_cores(), psutil.cpu_count(logical=False) or 1)
    return Device(
        name="main memory (no GPU)",
        kind="cpu",
        memory_bytes=total,
        free_bytes=free,
        tflops=CPU_TFLOPS_PER_CORE * cores,
        bandwidth=CPU_BANDWIDTH,
        bf16=_cpu_has_bf16(),
        present=True,
        link=LOOPBACK,
    )


@cache
def _cpu_has_bf16() -> bool:
    """What `studio.engine.model` asks torch, asked of the system instead."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return False
    return bool(flags & {"avx512_bf16", "amx_tile"})
