"""What can be said before the start about the memory of a run that is divided over processes."""

from __future__ import annotations

from dataclasses import replace

from studio.bounds import UNKNOWN, Facts
from studio.config import RunConfig
from studio.devices import Device, from_gpus, main_memory
from studio.estimate import Advice, Plan
from studio.hardware import Gpu, Hardware
from studio.memory import facts_of, fit, shape_of
from studio.model_shape import ModelShape
from studio.sharding import sharding_of
from studio.spread import advice

FIELD, PROCESSES = "parallel.deepspeed", "parallel.num_processes"


def weights_here(config: RunConfig) -> float:
    """The share of its method's bare weights that a GPU holds at least: divided weights, or those in main memory.

    4-bit weights are whole in every process before they are divided.
    """
    sharding = sharding_of(config)
    if config.method == "qlora" or sharding.stage < 3:
        return 1.0
    return 0.0 if sharding.offload_parameters else 1 / sharding.processes


def about_division(config: RunConfig, machine: Hardware, gpu: Gpu | None, counted: Plan | None) -> list[Advice]:
    """The lowest ZeRO stage that fits, where the chosen one does not, and main memory for what is offloaded."""
    shape = shape_of(config)
    if shape is None:
        return []
    facts = facts_of(counted.prepared, counted.counts) if counted else UNKNOWN
    if gpu is None:
        return _about_one_memory(config, shape, facts, machine)
    device = from_gpus([gpu])[0]
    better = advice(config, shape, device, facts)
    return ([better] if better else []) + _about_main_memory(config, shape, device, facts, machine)


def _about_one_memory(config: RunConfig, shape: ModelShape, facts: Facts, machine: Hardware) -> list[Advice]:
    """Without GPUs all processes of a machine take from one memory, each its own libraries too."""
    count = config.parallel.processes_per_machine
    if count == 1 or not machine.memory_bytes:
        return []
    device = replace(main_memory(), memory_bytes=machine.memory_bytes, free_bytes=machine.memory_free_bytes)
    each = fit(config, shape, device, facts).low
    message = f"{count} processes on this machine need at least {each * count / 1e9:.1f} GB of memory"
    most = max(1, int(machine.memory_bytes // each)) * config.parallel.num_machines
    if each * count > machine.memory_bytes:
        found = f"{message}, and it has {machine.memory_bytes / 1e9:.1f} GB"
        return [Advice("error", PROCESSES, found, f"choose at most {most}")]
    if each * count > machine.memory_free_bytes:
        found = f"{message}, and only {machine.memory_free_bytes / 1e9:.1f} GB are free"
        return [Advice("warning", PROCESSES, found, "close other programs, or choose fewer processes")]
    return []


def _about_main_memory(
    config: RunConfig, shape: ModelShape, device: Device, facts: Facts, machine: Hardware
) -> list[Advice]:
    sharding = sharding_of(config)
    if not (sharding.offload_optimizer or sharding.offload_parameters):
        return []
    needed = fit(config, shape, device, facts).host_bytes
    message = f"what is kept in main memory needs {needed / 1e9:.1f} GB"
    if needed > machine.memory_bytes > 0:
        found = f"{message}, and this machine has {machine.memory_bytes / 1e9:.1f} GB"
        return [Advice("error", FIELD, found, "choose a stage without offload, or more machines")]
    if needed > machine.memory_free_bytes:
        found = f"{message}, and only {machine.memory_free_bytes / 1e9:.1f} GB are free"
        return [Advice("warning", FIELD, found, "close other programs, or choose a stage without offload")]
    return []
