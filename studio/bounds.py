"""From a configuration to low, expected and high memory on a device, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from studio.activations import Load
from studio.config import RunConfig
from studio.devices import Device
from studio.footprint import Footprint, footprint
from studio.model_shape import ModelShape
from studio.sharding import WHOLE, Sharding, sharding_of

Verdict = Literal["fits", "tight", "no"]
SMALL_PARAMETERS = 15_000_000
"""Models below are computed in 32 bits on a CPU (`studio.engine.model.is_small`)."""
FRAMEWORK_BYTES = {"cuda": (350 << 20, 600 << 20, 1000 << 20), "cpu": (500 << 20, 560 << 20, 700 << 20)}
"""Libraries, kernels and their scratch memory: low, expected, high."""
GROUP_BYTES = {"cuda": (0, 200 << 20, 500 << 20), "cpu": (0, 10 << 20, 40 << 20)}
"""Buffers of the links to the other processes (NCCL, gloo)."""
SPARE = {"cuda": (0.0, 0.03, 0.10), "cpu": (0.0, 0.5, 1.0)}
"""What an allocator holds without using it, as a share of what comes and goes. The C library keeps most pieces below
32 MB it was given back: 15 to 120 % were measured, nothing with MALLOC_TRIM_THRESHOLD_ set, which is a third slower."""


@dataclass(frozen=True)
class Facts:
    """What is known of the data: tokens of the longest row and of a row on average, whether conversations share rows,
    optimizer updates of the whole run."""

    longest: int | None = None
    mean_length: float | None = None
    packed: bool | None = None
    updates: int | None = None


UNKNOWN = Facts()


@dataclass(frozen=True)
class Bounds:
    """Bytes: `low` if all goes well, `high` at worst; `footprint` explains `expected`."""

    low: int
    expected: int
    high: int
    framework: int
    footprint: Footprint

    def verdict(self, free: int) -> Verdict:
        """Whether it fits into `free` bytes."""
        if self.high <= free:
            return "fits"
        return "tight" if self.expected <= free else "no"


def load_of(
    config: RunConfig, shape: ModelShape, device: Device, facts: Facts = UNKNOWN, sharding: Sharding = WHOLE
) -> Load:
    """The step a configuration makes on a device: full rows, unless the data's longest is shorter."""
    limit = config.data.max_length
    length = limit if facts.longest is None else min(facts.longest, limit)
    masked = bool(facts.packed or config.data.packing) or config.train.per_device_train_batch_size > 1
    number = number_bytes(config, shape, device)
    sharding = sharding_of(config) if sharding is WHOLE else sharding
    return Load(config, shape, device.kind, number, max(length, 1), masked, sharding)


def number_bytes(config: RunConfig, shape: ModelShape, device: Device) -> int:
    """Bytes of a number in the computation, as the engine chooses them."""
    if config.model.dtype != "auto":
        return 4 if config.model.dtype == "float32" else 2
    if device.kind == "cuda":
        return 2
    return 2 if device.bf16 and shape.parameters >= SMALL_PARAMETERS else 4


def bounds(load: Load) -> Bounds:
    """Low, expected and high memory of a step."""
    usual = footprint(load)
    low, high = _with_spare(footprint(replace(load, masked=False)), load, 0), _with_spare(_most(load), load, 2)
    expected = _with_spare(usual, load, 1)
    return Bounds(min(low, expected), expected, max(high, expected), expected - usual.total, usual)


def verdict_of(load: Load, device: Device) -> Verdict:
    """Whether a step fits on a device."""
    if _with_spare(_most(load), load, 2) <= device.free_bytes:
        return "fits"
    return "tight" if _with_spare(footprint(load), load, 1) <= device.free_bytes else "no"


def _most(load: Load) -> Footprint:
    """Every row full, and padded or packed."""
    return footprint(replace(load, masked=True, length=load.config.data.max_length))


def _with_spare(one: Footprint, load: Load, which: int) -> int:
    """With what libraries and allocator take beside; `which`: 0 low, 1 expected, 2 high."""
    moving = one.gradients + one.activations + one.logits + one.workspace
    group = GROUP_BYTES[load.target][which] if load.sharding.processes > 1 else 0
    return round(one.total + SPARE[load.target][which] * moving + FRAMEWORK_BYTES[load.target][which]) + group
