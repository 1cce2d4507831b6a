"""What a process sends to the others for one optimizer update, and how long the links take for it.

Counts follow the calls DeepSpeed, torch's DDP and FSDP2 make (a test counts those of real processes). A ring of N
processes sends (N-1)/N of what is gathered or scattered, and twice that of what is summed for all.
"""

from __future__ import annotations

from studio.activations import Load
from studio.devices import Device
from studio.states import elements, flat, gathered_bytes, layer_elements

NETWORK = 1.25
"""GB/s between machines, where nothing else is known: 10 Gbit/s Ethernet."""
CPU_UPDATES = 1e9
"""Trained weights a machine's processors update in a second, where the optimizer's states are in main memory."""


def sent_bytes(load: Load) -> float:
    """Bytes one process sends for one update, with all the batches of its accumulation."""
    count = load.sharding.processes
    if count == 1:
        return 0.0
    batches = load.config.train.gradient_accumulation_steps
    return (count - 1) / count * _moved(load, batches) + batches * _shared_rows(load)


def _moved(load: Load, batches: int) -> float:
    """Bytes of what is gathered and scattered once and summed twice, before a ring takes its share."""
    stage = load.sharding.stage
    gradients = float(load.trained * load.held)
    match load.sharding.engine:
        case "torch":
            return 2 * gradients
        case "fsdp2":
            return batches * (2 * gathered_bytes(load) + gradients)
    if stage == 3:
        return batches * (gathers(load) * gathered_bytes(load) + gradients)
    weights = float(load.trained * load.held) if stage else 0.0
    # DeepSpeed sums its buckets for all and keeps its part (use_multi_rank_bucket_allreduce); from stage 2 on for each
    # batch, for nobody has the gradients of earlier ones as a whole
    return 2 * gradients * (batches if stage == 2 else 1) + weights


def gathers(load: Load) -> float:
    """How often stage 3 gathers each weight for one batch: forward, backward, and where layers are computed again; not
    for those that are kept until they are needed again. An upper bound: what was fetched ahead stays, too."""
    numbers, kept = elements(load), load.sharding.reuse
    backward = max(0.0, 1 - kept / 2 / numbers)
    if not load.config.train.gradient_checkpointing:
        return 1 + backward
    # what a layer computes again needs its weights; the backward pass right after it the same ones
    return 1 + backward * (1 + max(0.0, 1 - kept / 2 / layer_elements(load)))


def _shared_rows(load: Load) -> float:
    """Bytes for a batch of shared rows: queries, keys, values and results change from parts of rows to parts of heads
    and back, and so do their gradients."""
    parts = load.sharding.sequence
    if parts == 1:
        return 0.0
    shape = load.shape
    widths = 2 * shape.query_size + 2 * shape.key_size
    passes = 3 if load.config.train.gradient_checkpointing else 2
    return passes * shape.num_hidden_layers * load.number * load.tokens * widths * (parts - 1) / parts


def link_of(load: Load, device: Device, network: float = NETWORK) -> float:
    """GB/s a process has to its neighbour: a machine's processes take turns at its network."""
    return min(device.link, network) if load.sharding.machines > 1 else device.link


def sending_seconds(load: Load, device: Device, network: float = NETWORK) -> float:
    """Seconds for what is sent for one update, as if nothing were computed meanwhile."""
    return sent_bytes(load) / (link_of(load, device, network) * 1e9)


def offload_seconds(load: Load, device: Device) -> float:
    """Seconds one update takes longer because of main memory: copies over the bus, and the processors' work."""
    sharding = load.sharding
    if device.kind == "cpu" or not (sharding.offload_optimizer or sharding.offload_parameters):
        return 0.0
    batches = load.config.train.gradient_accumulation_steps
    part = load.trained / sharding.of_states
    copied, work = 0.0, 0.0
    if sharding.offload_optimizer:
        copied += part * load.number * (batches + 1)
        work = part * sharding.local / CPU_UPDATES
    if sharding.offload_parameters and flat(load):
        copied += batches * gathers(load) * gathered_bytes(load) / sharding.of_weights
    return copied / (device.bus * 1e9) + work
