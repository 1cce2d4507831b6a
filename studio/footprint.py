"""What one training step holds in memory, by a closed formula: instant, and the same arithmetic for every model.

The terms follow what transformers, PEFT and TRL keep for the backward pass, as `studio.engine.counter` counts them; a
test holds the two together. Sizes are bytes; "tokens" are those of one batch on one device, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass

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

NF4_BYTES, DOUBLE_QUANT_BYTES = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
"""Four bits a weight and a scaling factor for each 64; double quantisation packs the factors into 8 bits."""
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "workspace")
_STATES = {"adamw": 2, "ademamix": 3, "lion": 1, "adagrad": 1, "rmsprop": 1, "sgd": 0}
"""Numbers an optimizer remembers for each trained weight."""
_BYTES_8BIT = 1 + 4 / 256
"""Of one such number in 8 bits: a scaling factor for each 256."""


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
    """The memory of one step, at its fullest moment."""
    shards = load.sharding.processes
    stage, on_cpu = load.sharding.stage, load.target == "cpu"
    weights = weight_bytes(load) / (shards if stage >= 3 else 1)
    optimizer = optimizer_bytes(load) / (shards if stage >= 1 else 1)
    fullest = max(_moments(load), key=lambda moment: moment.total)
    host = paged = 0.0
    if load.sharding.offload_parameters and not on_cpu:
        host, weights = host + weights, 0.0
    if load.sharding.offload_optimizer and not on_cpu:
        host, optimizer = host + optimizer, 0.0
    elif load.config.train.optim.startswith("paged_") and not on_cpu:
        paged, optimizer = optimizer, 0.0
    return Footprint(
        weights=round(weights),
        adapter=load.adapter_bytes,
        gradients=round(fullest.gradients),
        optimizer=round(optimizer),
        activations=round(fullest.activations),
        logits=round(fullest.logits),
        workspace=round(fullest.workspace),
        moment=fullest.name,
        paged=round(paged),
        host=round(host),
    )


def weight_bytes(load: Load) -> float:
    """The base model as it is held: 4 bits pack the linear layers, never embeddings, output layer, norms, experts."""
    shape = load.shape
    if load.method != "qlora":
        return shape.parameters * load.stored
    factor = DOUBLE_QUANT_BYTES if load.config.quantization.bnb_4bit_use_double_quant else NF4_BYTES
    rest = shape.parameters - shape.linear_parameters
    return shape.linear_parameters * factor + rest * load.stored


def optimizer_bytes(load: Load) -> float:
    """States of the optimizer."""
    name = load.config.train.optim.removeprefix("paged_")
    if name == "adafactor":  # a number for each row and column instead of each weight
        return 4.0 * _rows_and_columns(load)
    states = _STATES[name.split("_")[0]]
    if not name.endswith("8bit"):
        return 4.0 * states * load.trained
    # transformers keeps the states of embeddings in 32 bits
    wide = load.shape.embedding_parameters if load.method == "full" else 0
    return states * (4.0 * wide + _BYTES_8BIT * (load.trained - wide))


def _rows_and_columns(load: Load) -> int:
    shape, rank = load.shape, load.config.lora.r
    layers = load.targets.values() if load.method != "full" else shape.linears.values()
    sides = sum(i + o + (2 * rank if load.method != "full" else 0) for i, o in layers) * shape.num_hidden_layers
    if load.method != "full":
        return sides
    return sides + (1 if shape.tie_word_embeddings else 2) * (shape.vocab_size + shape.hidden_size)


def _moments(load: Load) -> list[_Moment]:
    """The moments at which a step can be at its fullest."""
    shape = load.shape
    layer = layer_activations(load)
    kept = checkpoint(load) if load.config.train.gradient_checkpointing else layer
    layers = shape.num_hidden_layers * kept + lasting(load)
    work = backward_workspace(load)
    again = layer if load.config.train.gradient_checkpointing else 0.0
    one = _Gradients(load)
    return [
        _Moment("loss", layers + last_norm(load), one.before, loss_bytes(load) + one.head),
        _Moment("backward", layers + again, max(one.before, one.head), 0, work),
        _Moment("first layer", kept + again, max(one.before, one.all - one.last), 0, work),
        _Moment("embedding", 0, one.all, 0, one.embedding),
        _Moment("update", 0, one.all, 0, update_workspace(load)),
    ]


class _Gradients:
    """32-bit gradients: `before` the batch (of earlier batches), of the `head`, of `all`, and what comes `last`."""

    def __init__(self, load: Load) -> None:
        shape, full = load.shape, load.method == "full"
        divided = load.sharding.processes if load.sharding.stage >= 2 else 1
        matrix = 4.0 * shape.embedding_parameters
        self.all = 4.0 * load.trained / divided
        self.before = self.all if load.config.train.gradient_accumulation_steps > 1 else 0.0
        self.head = matrix if load.trains_head else 0.0
        self.last = self.all / shape.num_hidden_layers + (matrix if full and not shape.tie_word_embeddings else 0)
        # a shared matrix gets its second gradient as a whole before the two are added
        again = matrix if full and shape.tie_word_embeddings else 0
        self.embedding = 4.0 * load.tokens * shape.hidden_size + again


def update_workspace(load: Load) -> float:
    """torch's own Adam on a GPU makes one more copy of all trained weights; others go tensor by tensor."""
    if load.target == "cuda" and load.config.train.optim == "adamw_torch":
        return 4.0 * load.trained
    largest = load.shape.embedding_parameters if load.method == "full" else 0
    return 4.0 * largest * (2 if load.config.train.optim in ("adamw_torch", "adafactor") else 0)
