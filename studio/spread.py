"""The ways to divide a run over its processes, side by side, in the numbers of the user's own configuration.

One row for each ZeRO stage and FSDP2: what a process holds, what that saves, what it sends for an update and how long
the links take for it, and whether it fits. Pure and instant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from studio.activations import Load
from studio.bounds import UNKNOWN, Bounds, Facts, Verdict, bounds, load_of
from studio.config import Method, RunConfig
from studio.devices import Device
from studio.estimate import Advice
from studio.footprint import PARTS
from studio.model_shape import ModelShape
from studio.parallel_plan import conflict
from studio.remedies import GIGABYTE, WIDER, with_overrides
from studio.speed import seconds_per_token
from studio.traffic import NETWORK, sending_seconds, sent_bytes

NONE, FSDP2 = "none", "fsdp2"
LEVELS = (NONE, "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", FSDP2)
"""As the form lists them."""


@dataclass(frozen=True)
class Row:
    """One way to divide. Bytes of one process; `host_bytes` of main memory, of all processes of a machine.

    `saves` against none (negative: it takes more); `sent_bytes` for one optimizer update, in `seconds` of the links if
    nothing were computed meanwhile. `problem`: why it cannot be chosen here, "" if it can.
    """

    name: str
    chosen: bool
    parts: dict[str, int]
    expected: int
    high: int
    host_bytes: int
    saves: int
    sent_bytes: int
    seconds: float
    tokens_per_second: float
    verdict: Verdict
    problem: str
    message: str

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields that choose it, by dotted path."""
        return overrides_of(self.name)


def overrides_of(name: str) -> dict[str, Any]:
    """The fields that choose a way to divide."""
    stage = NONE if name == FSDP2 else name
    return {
        "parallel.deepspeed": stage,
        "parallel.deepspeed_config": None,
        "parallel.fsdp": FSDP2 if name == FSDP2 else NONE,
    }


def chosen_level(config: RunConfig) -> str:
    """The name of the way a configuration divides; "" for a DeepSpeed file of one's own."""
    section = config.parallel
    if section.deepspeed_config is not None:
        return ""
    return FSDP2 if section.fsdp == FSDP2 else section.deepspeed


def rows(
    config: RunConfig, shape: ModelShape, device: Device, facts: Facts = UNKNOWN, network: float = NETWORK
) -> tuple[Row, ...]:
    """Every way to divide the run, as the form lists them. `network`: GB/s between machines."""
    device = device.shared_by(config.parallel.processes_per_machine)
    whole = bounds(load_of(with_overrides(config, overrides_of(NONE)), shape, device, facts))
    found = []
    for name in LEVELS:
        changed = with_overrides(config, overrides_of(name))
        load = load_of(changed, shape, device, facts)
        row = _row(name, load, device, whole, network)
        problem = conflict(changed) or _main_memory(row, device)
        found.append(replace(row, chosen=name == chosen_level(config), problem=problem))
    return tuple(found)


def _main_memory(row: Row, device: Device) -> str:
    """What is kept in main memory is more than there is."""
    there = device.main_memory
    if there is None or row.host_bytes <= there:
        return ""
    needed = f"what is kept in main memory needs {row.host_bytes / 1e9:.1f} GB"
    return f"parallel.deepspeed: {needed}, and this machine has {there / 1e9:.1f} GB"


def _row(name: str, load: Load, device: Device, whole: Bounds, network: float) -> Row:
    found = bounds(load)
    sent, host = round(sent_bytes(load)), (found.footprint.host + found.footprint.paged) * load.sharding.local
    saves = whole.expected - found.expected
    return Row(
        name=name,
        chosen=False,
        parts={part: getattr(found.footprint, part) for part in PARTS} | {"framework": found.framework},
        expected=found.expected,
        high=found.high,
        host_bytes=host,
        saves=saves,
        sent_bytes=sent,
        seconds=sending_seconds(load, device, network),
        tokens_per_second=1 / seconds_per_token(load, device, network),
        verdict=found.verdict(device.free_bytes),
        problem="",
        message=_sentence(name, saves, whole.expected, sent, host, device),
    )


def _sentence(name: str, saves: int, whole: int, sent: int, host: int, device: Device) -> str:
    """For people: what it saves, what it sends, what main memory it needs."""
    who = "GPU" if device.kind == "cuda" else "process"
    if name == NONE:
        said = f"none takes {whole / GIGABYTE:.1f} GB per {who}"
    elif saves >= 0.05 * GIGABYTE:
        said = f"{name} saves {saves / GIGABYTE:.1f} GB of {whole / GIGABYTE:.1f} GB per {who}"
    elif saves > -0.05 * GIGABYTE:
        said = f"{name} saves nothing per {who}"
    else:
        said = f"{name} takes {-saves / GIGABYTE:.1f} GB more than {whole / GIGABYTE:.1f} GB per {who}"
    said += f" and sends {amount(sent)} per step" if sent else ""
    return said + (f"; it needs {host / GIGABYTE:.1f} GB of main memory" if host else "")


def amount(size: float) -> str:
    """Bytes as people say them, in two digits or three."""
    for unit, name in ((2**40, "TB"), (GIGABYTE, "GB"), (2**20, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 1024:.0f} kB"


def link_words(machines: int, device: Device, network: float = NETWORK) -> str:
    """The bandwidths that times are computed with."""
    words = f"times assume {device.link:g} GB/s between the processes of a machine"
    return words + (f" and {network:g} GB/s between machines" if machines > 1 else "")


def lowest(found: tuple[Row, ...], wanted: tuple[Verdict, ...] = ("fits",)) -> Row | None:
    """The mildest way to divide that fits and can be chosen; None if none does."""
    by_name = {row.name: row for row in found if row.verdict in wanted and not row.problem}
    return next((by_name[name] for name in WIDER if name in by_name), None)


def levels(config: RunConfig, shape: ModelShape, device: Device, facts: Facts = UNKNOWN) -> dict[Method, str | None]:
    """For each method the mildest way to divide that fits; None where none does."""
    methods: tuple[Method, ...] = ("lora", "qlora", "full")
    found = {
        method: lowest(rows(with_overrides(config, {"method": method}), shape, device, facts)) for method in methods
    }
    return {method: row.name if row else None for method, row in found.items()}


def advice(config: RunConfig, shape: ModelShape, device: Device, facts: Facts = UNKNOWN) -> Advice | None:
    """The lowest ZeRO stage that fits, where the chosen one does not; None where it does, or nothing helps."""
    found = rows(config, shape, device, facts)
    now = next((row for row in found if row.chosen), None)
    if now is None or now.verdict == "fits" or config.parallel.num_processes == 1:
        return None
    better = lowest(found) or (lowest(found, ("fits", "tight")) if now.verdict == "no" else None)
    if better is None or better is now:
        return None
    who = "GPUs" if device.kind == "cuda" else "processes"
    what = "fits" if better.verdict == "fits" else "may fit"
    state = "does not fit" if now.verdict == "no" else "may not fit"
    return Advice(
        "warning",
        "parallel.deepspeed",
        f"{now.name} {state} on {config.parallel.num_processes} {who} ({now.expected / GIGABYTE:.1f} GB each)",
        f"{better.name} {what} ({better.expected / GIGABYTE:.1f} GB each)",
    )
