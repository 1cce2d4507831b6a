"""What of a configuration's spread over processes cannot be combined: said before the start, with what works instead.

Pure rules between fields; what this machine lacks is told by `studio.preflight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from studio.parallel_section import ParallelSection
from studio.sections import LoraSection, Method, ModelSection, TrainSection


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
    yield from _offload(config)
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


def _offload(config: Spread) -> Iterator[str]:
    """A paged optimizer and DeepSpeed would both move the optimizer's memory."""
    chosen, optimizer = config.parallel.deepspeed, config.train.optim
    if chosen.endswith("_offload") and optimizer.startswith("paged_"):
        yield (
            f"parallel.deepspeed: {chosen} cannot be combined with the optimizer {optimizer}; choose adamw_torch, or "
            f"{chosen.removesuffix('_offload')}"
        )


def _sequences(config: Spread) -> Iterator[str]:
    section = config.parallel
    if section.num_processes % section.sequence_parallel_size:
        yield (
            f"parallel.sequence_parallel_size: {section.sequence_parallel_size} does not divide "
            f"{section.num_processes} processes; choose a number that does, or 1"
        )
