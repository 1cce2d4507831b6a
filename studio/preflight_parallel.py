"""Whether this machine has a GPU for each process of a run, or a core; memory is looked at by `preflight_memory`."""

from __future__ import annotations

from collections.abc import Sequence

from studio import deepspeed_settings
from studio.config import RunConfig
from studio.estimate import Advice
from studio.hardware import Gpu, Hardware

FIELD = "parallel.num_processes"


def about_processes(config: RunConfig, machine: Hardware, gpus: Sequence[Gpu]) -> list[Advice]:
    """What stands against so many processes on this machine. `gpus`: those PyTorch can use."""
    here = config.parallel.processes_per_machine
    if here == 1:
        return []
    where = "this machine" if config.parallel.num_machines == 1 else "each machine, also this one"
    if gpus and here > len(gpus):
        counted = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}"
        message = f"{here} processes on {where}, which has {counted}: each process needs one of its own"
        return [Advice("error", FIELD, message, f"choose at most {len(gpus) * config.parallel.num_machines}")]
    if not gpus and here > machine.cores:
        message = f"{here} processes on {where} share {machine.cores} cores, and take turns instead of saving time"
        return [Advice("warning", FIELD, message, f"choose at most {machine.cores * config.parallel.num_machines}")]
    return []


def about_zero(config: RunConfig) -> list[Advice]:
    """What is wrong with own settings of DeepSpeed, what of them is not used, and a stage that divides nothing."""
    own = deepspeed_settings.FIELD
    found = [Advice("error", own, sentence) for sentence in deepspeed_settings.faults(config)]
    said = [Advice("warning", own, sentence) for sentence in deepspeed_settings.remarks(config)]
    if found:
        return found + said
    zero, field = deepspeed_settings.zero_of(config), "parallel.deepspeed"
    if zero.stage and config.parallel.num_processes == 1 and not (zero.offload_optimizer or zero.offload_parameters):
        message = "one process has nothing to divide, so ZeRO saves no memory and takes a little time"
        fix = "set it to none, train with more processes, or choose offload to save GPU memory"
        found.append(Advice("warning", own if config.parallel.deepspeed_config else field, message, fix))
    return found + said
