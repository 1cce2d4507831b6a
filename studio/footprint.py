"""What one training step holds in memory, by a closed formula: instant, and the same arithmetic for every model.

The terms follow what transformers, PEFT and TRL keep for the backward pass, as `studio.engine.counter` counts them; a
test holds the two together. Sizes are bytes; "tokens" are those of one batch on one device, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from studio.activations import (
    Load,
    Target,
    backward_workspace,
    checkpoint,
    last_norm,
    lasting,
    layer_activations,
    loss_bytes,
)
from studio.sharding import WHOLE
from studio.states import Gradients, Held, buffers, held, update_workspace, weight_bytes

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "workspace")


@dataclass(frozen=True)
class Footprint:
    """Bytes by component at the fullest `moment` of a step; `paged` may move to, `host` is in the machine's memory."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    moment: str
    paged: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All components together."""
        return sum(getattr(self, part) for part in PARTS)


@dataclass(frozen=True)
class Measurement:
    """One optimizer update as `studio.engine meter` counts it. Sizes in bytes.

    `static_bytes` are held all the time (weights, adapter), `optimizer_bytes` from the first update on;
    `activation_bytes` is what `peak_bytes` has beside the two; `calls` are operations of the libraries.
    """

    peak_bytes: int
    static_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    trainable: int
    flops: int
    calls: int
    rows: int
    length: int
    target: Target

    @property
    def activation_bytes(self) -> int:
        """What comes and goes, at the fullest moment."""
        return self.peak_bytes - self.static_bytes - self.optimizer_bytes


@dataclass(frozen=True)
class _Moment:
    """What is alive beside weights and optimizer at one moment of a step."""

    name: str
    activations: float
    gradients: float = 0
    logits: float = 0
    workspace: float = 0

    @property
    def total(self) -> float:
        return self.activations + self.gradients + self.logits + self.workspace


def footprint(load: Load) -> Footprint:
    """The memory of one step in one process, at its fullest moment."""
    kept = held(load)
    fullest = max(_moments(load, kept), key=lambda moment: moment.total)
    return Footprint(
        weights=round(kept.weights),
        adapter=round(kept.adapter),
        gradients=round(fullest.gradients),
        optimizer=round(kept.optimizer),
        activations=round(fullest.activations),
        logits=round(fullest.logits),
        workspace=round(fullest.workspace),
        moment=fullest.name,
        paged=round(kept.paged),
        host=round(kept.host),
    )


def divided(found: Measurement, load: Load) -> int:
    """The peak of a step counted in one process, with what the division of a run changes of it by the formula."""
    alone = replace(load, sharding=WHOLE)
    return max(0, found.peak_bytes - footprint(alone).total + footprint(load).total)


def _moments(load: Load, kept: Held) -> list[_Moment]:
    """The moments at which a step can be at its fullest."""
    shape = load.shape
    layer = layer_activations(load)
    stays = checkpoint(load) if load.config.train.gradient_checkpointing else layer
    layers = shape.num_hidden_layers * stays + lasting(load)
    one, beside = Gradients(load), buffers(load)
    work = backward_workspace(load) + beside.total
    again = layer if load.config.train.gradient_checkpointing else 0.0
    always = one.always
    return [
        _Moment("loss", layers + last_norm(load), always + one.before, loss_bytes(load) + one.head, beside.gathered),
        _Moment("backward", layers + again, always + max(one.before, one.head), 0, work),
        _Moment("first layer", stays + again, always + max(one.before, one.all - one.last), 0, work),
        _Moment("embedding", 0, always + one.all, 0, one.embedding + beside.total),
        _Moment("update", 0, always + one.update, 0, update_workspace(load)),
        _Moment("loading", 0, 0, 0, _loading(load, kept)),
    ]


def _loading(load: Load, kept: Held) -> float:
    """4-bit weights are whole in every process before DeepSpeed divides them; there are no states yet."""
    sharding = load.sharding
    divides = sharding.processes > 1 or sharding.offload_parameters
    if load.method != "qlora" or sharding.stage < 3 or not divides or load.target == "cpu":
        return 0.0
    return max(0.0, weight_bytes(load) - kept.weights - kept.adapter - kept.optimizer)
