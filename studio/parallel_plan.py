"""What of a configuration's spread over processes cannot be combined: said before the start, with what works instead.

Pure rules between fields; what this machine lacks is told by `studio.preflight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from studio.parallel_section import ParallelSection, Zero
from studio.sections import CHANGES_BASE, LoraSection, Method, ModelSection, TrainSection

WANT_WHOLE = {
    "adafactor": "learns by the rows and columns of whole ones",
    "adagrad": "has set its memory up for whole ones before",
}
"""Optimizers that DeepSpeed's ZeRO cannot divide, and why."""

_ON_DIVIDED = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")
"""Optimizers that step on tensors divided by FSDP2: torch's own."""


_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")


class Spread(Protocol):
    """The parts of a RunConfig the rules look at; a RunConfig, which is built on this module, is one."""

    @property
    def method(self) -> Method: ...  # noqa: D102
    @property
    def model(self) -> ModelSection: ...  # noqa: D102
    @property
    def lora(self) -> LoraSection: ...  # noqa: D102
    @property
    def train(self) -> TrainSection: ...  # noqa: D102
    @property
    def parallel(self) -> ParallelSection: ...  # noqa: D102


def conflict(config: Spread) -> str | None:
    """The first thing that cannot be, as a sentence `parallel.field: what; what works instead`; None when all can."""
    return next(_conflicts(config), None)


def _conflicts(config: Spread) -> Iterator[str]:
    yield from _machines(config)
    yield from _one_way(config)
    if config.parallel.deepspeed != "none":
        yield from _with_zero(config, config.parallel.zero, "parallel.deepspeed")
    yield from _fsdp(config)
    yield from _sequences(config)


def _machines(config: Spread) -> Iterator[str]:
    """Every machine has as many processes, and knows which one it is and where the first one is."""
    section = config.parallel
    count, machines = section.num_processes, section.num_machines
    if count % machines:
        yield (
            f"parallel.num_processes: {count} processes cannot be divided evenly over {machines} machines; "
            f"choose a multiple of {machines}"
        )
    if section.machine_rank >= machines:
        yield (
            f"parallel.machine_rank: there is no machine {section.machine_rank} of {machines}; they count from 0, "
            f"so choose at most {machines - 1}"
        )
    if machines > 1 and not section.main_process_ip:
        yield "parallel.main_process_ip: name the address under which the other machines reach machine 0"
    if section.main_process_ip and not _ADDRESS.fullmatch(section.main_process_ip):
        yield (
            f"parallel.main_process_ip: {section.main_process_ip[:60]!r} is no name and no address of a machine; write "
            "one like node-1 or 10.0.0.1"
        )


def _one_way(config: Spread) -> Iterator[str]:
    """DeepSpeed by a stage's name, DeepSpeed by a file, and FSDP exclude each other."""
    section = config.parallel
    if section.deepspeed != "none" and section.deepspeed_config:
        yield (
            "parallel.deepspeed_config: a file and parallel.deepspeed both say what is divided; choose one: leave the "
            "file empty, or set parallel.deepspeed to none"
        )
    if section.fsdp != "none" and (section.deepspeed != "none" or section.deepspeed_config):
        other = "parallel.deepspeed" if section.deepspeed != "none" else "parallel.deepspeed_config"
        yield (
            f"parallel.fsdp: {section.fsdp} and {other} both divide the weights; choose one: set parallel.fsdp to none"
        )


def zero_conflict(config: Spread, zero: Zero, field: str) -> str | None:
    """The first thing that cannot be with what DeepSpeed divides, chosen by `field`; None when all can."""
    return next(_with_zero(config, zero, field), None)


def _with_zero(config: Spread, zero: Zero, field: str) -> Iterator[str]:
    """The optimizer: a paged one and DeepSpeed would both move its memory; others cannot work on a row of numbers."""
    optimizer = config.train.optim
    if zero.stage and optimizer in WANT_WHOLE:
        yield (
            f"{field}: ZeRO gives the optimizer the weights cut up in one row, and {optimizer} "
            f"{WANT_WHOLE[optimizer]}; choose adamw_torch, or no ZeRO"
        )
    if zero.offload_optimizer and optimizer.startswith("paged_"):
        yield (
            f"{field}: offload cannot be combined with the optimizer {optimizer}; choose adamw_torch, or "
            f"zero{zero.stage} without offload"
        )


def _fsdp(config: Spread) -> Iterator[str]:
    """FSDP2 divides torch's own tensors among several processes, and optimizers must take them divided."""
    name = config.parallel.fsdp
    if name == "none":
        return
    if config.parallel.num_processes == 1:
        yield "parallel.fsdp: one process has nothing to divide; set it to none, or train with more processes"
    if config.method == "qlora":
        yield (
            f"parallel.fsdp: {name} leaves weights in 4 bits whole in every process; choose the method lora, or "
            "parallel.deepspeed zero3"
        )
    if config.train.optim not in _ON_DIVIDED:
        yield f"parallel.fsdp: the optimizer {config.train.optim} takes no divided weights; choose adamw_torch"
    if config.method == "lora" and config.lora.init_lora_weights in CHANGES_BASE:
        start = config.lora.init_lora_weights
        yield f"parallel.fsdp: the start {start} is converted with whole weights; set lora.init_lora_weights to default"


def _sequences(config: Spread) -> Iterator[str]:
    """Processes share conversations by way of DeepSpeed, and each must be in a group of them."""
    section = config.parallel
    size, field = section.sequence_parallel_size, "parallel.sequence_parallel_size"
    if section.num_processes % size:
        yield f"{field}: {size} does not divide {section.num_processes} processes; choose a number that does, or 1"
    if size > 1 and section.deepspeed == "none" and not section.deepspeed_config:
        instead = "" if section.fsdp == "none" else " and parallel.fsdp none"
        yield f"{field}: DeepSpeed shares conversations; choose parallel.deepspeed zero3{instead}, or set it to 1"
    if size > 1 and config.model.attn_implementation == "eager":
        yield f"{field}: the attention eager cannot be shared; set model.attn_implementation to auto"
