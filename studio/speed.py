"""How long a step takes: its arithmetic, and what a device makes of it; or what earlier runs here really reached.

The efficiencies are rules of thumb from published runs (Hugging Face stack, 7B and 8B models): good for comparing
configurations and for a first promise, off by up to half in absolute terms. A recorded run replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studio.activations import Load
from studio.config import RunConfig
from studio.devices import Device
from studio.schema import ConfigError
from studio.sharding import sharding_of
from studio.traffic import NETWORK, offload_seconds, sending_seconds
from studio.workspace import Workspace

GPU_EFFICIENCY = {2: 0.4, 4: 0.1}
"""Share of a card's 16-bit throughput that training reaches, by bytes of a number: 32-bit numbers use other units."""
CPU_EFFICIENCY = {2: 1.5, 4: 1.0}
FOUR_BIT_PRICE, FOUR_BIT_FREE_TOKENS = 0.4, 8192
"""4 bits cost 1.4 times the time on small batches (published: 1.35 to 1.8); nothing from so many tokens on."""
LAUNCH_SECONDS = {"qlora": 0.004, "lora": 0.003, "full": 0.0015}
"""A GPU waits for the program on small batches: about so long for each layer and pass."""
RECENT_RUNS = 50


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all processes while training, and where the number is from."""

    tokens_per_second: float
    source: Literal["recorded", "computed"]


def step_flops(load: Load) -> float:
    """Operations of one forward and backward pass over a batch."""
    shape, tokens = load.shape, load.tokens
    active = _active_experts(load)
    linear = shape.linear_parameters + shape.num_hidden_layers * active
    head = shape.embedding_parameters
    trains_all = load.method == "full"
    lora = load.config.lora
    # DoRA sends the dropped input through the layer once more
    twice = 2 if not trains_all and lora.use_dora and lora.lora_dropout else 0
    again = 1 if load.config.train.gradient_checkpointing else 0
    pairs = 2.0 * load.length * shape.query_size * shape.num_hidden_layers * tokens
    found = 2.0 * linear * tokens * (2 + trains_all + twice + again)
    found += 2.0 * head * tokens * (3 + load.trains_head)  # the loss computes its tiles twice
    found += pairs * (3.5 + again)
    if load.adapts_experts:  # their adapters are added to them first, so they get whole gradients
        found += 2.0 * shape.num_hidden_layers * active * tokens + 10.0 * lora.r * shape.expert_parameters
    beside = load.adapter_parameters - shape.num_hidden_layers * load.expert_adapter
    return found + 2.0 * beside * tokens * (3 + again)


def useful_flops(load: Load) -> float:
    """Operations of one forward and backward pass that the result needs: nothing computed twice, no filler."""
    shape, tokens = load.shape, load.tokens
    linear = shape.linear_parameters + shape.num_hidden_layers * _active_experts(load)
    pairs = 2.0 * load.length * shape.query_size * shape.num_hidden_layers * tokens
    found = 2.0 * linear * tokens * (2 + (load.method == "full"))
    found += 2.0 * shape.embedding_parameters * tokens * (2 + load.trains_head)
    adapters = load.adapter_parameters - shape.num_hidden_layers * load.expert_adapter
    return found + 3.0 * pairs + 6.0 * adapters * tokens


def _active_experts(load: Load) -> int:
    """Weights of the experts a token goes through in one layer."""
    shape = load.shape
    return shape.num_experts_per_tok * (3 if shape.gated_mlp else 2) * shape.hidden_size * shape.moe_intermediate_size


def step_seconds(load: Load, device: Device) -> float:
    """Seconds for one forward and backward pass over a batch, by rule of thumb."""
    if device.kind == "cpu":
        return step_flops(load) / (device.tflops * 1e12 * CPU_EFFICIENCY[load.number])
    seconds = step_flops(load) / (device.tflops * 1e12 * GPU_EFFICIENCY[load.number])
    if load.method == "qlora":
        seconds *= 1 + FOUR_BIT_PRICE * max(0.0, 1 - load.tokens / FOUR_BIT_FREE_TOKENS)
    passes = 4 if load.config.train.gradient_checkpointing else 3
    waiting = LAUNCH_SECONDS[load.method] * load.shape.num_hidden_layers * passes / 3
    return max(seconds, waiting)


def update_seconds(load: Load, device: Device, network: float = NETWORK) -> float:
    """Seconds for an optimizer update with all its batches and all that is sent for it, by rule of thumb."""
    batches = load.config.train.gradient_accumulation_steps
    beside = sending_seconds(load, device, network) + offload_seconds(load, device)
    return batches * step_seconds(load, device) + beside


def seconds_per_token(load: Load, device: Device, network: float = NETWORK) -> float:
    """Seconds of the whole run for a token, by rule of thumb: all processes compute at the same time."""
    tokens = load.tokens * load.config.train.gradient_accumulation_steps * load.sharding.processes
    return update_seconds(load, device, network) / tokens


def computed(load: Load, device: Device) -> Speed:
    """Tokens a second of all processes, by rule of thumb."""
    return Speed(1 / seconds_per_token(load, device), "computed")


def recorded(config: RunConfig, workspace: Workspace) -> Speed | None:
    """What the newest finished run of the same model, method, precision and spread reached here; None without one."""
    for run in workspace.list_runs()[:RECENT_RUNS]:
        reached = (run.read_report() or {}).get("tokens_per_second")
        if not isinstance(reached, int | float) or not reached > 0:
            continue
        try:
            earlier = run.config()
        except ConfigError:
            continue
        if isinstance(earlier, RunConfig) and _kind(earlier) == _kind(config):
            return Speed(float(reached), "recorded")
    return None


def _kind(config: RunConfig) -> tuple[object, ...]:
    return (
        config.model.model_name_or_path,
        config.method,
        config.model.dtype,
        config.train.gradient_checkpointing,
        sharding_of(config),
    )
