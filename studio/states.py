"""What one process holds of weights, gradients and optimizer states, whole or divided. Sizes are bytes.

Divided sizes follow DeepSpeed's ZeRO optimizers (`runtime/zero/stage_1_and_2.py`, `stage3.py`) and torch's FSDP2 and
DDP; a test holds them against what real processes hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from studio.activations import Load
from studio.sharding import SUB_GROUP

NF4_BYTES, DOUBLE_QUANT_BYTES = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
"""Four bits a weight and a scaling factor for each 64; double quantisation packs the factors into 8 bits."""
_PACKED = 0.5
"""Of these, the weight itself: the factors are no parameters, so no stage divides them."""
_STATES = {"adamw": 2, "ademamix": 3, "lion": 1, "adagrad": 1, "rmsprop": 1, "sgd": 0}
"""Numbers an optimizer remembers for each trained weight."""
_BYTES_8BIT = 1 + 4 / 256
"""Of one such number in 8 bits: a scaling factor for each 256."""


@dataclass(frozen=True)
class Held:
    """Bytes one process holds all the time; `host` in main memory, `paged` where there is room."""

    weights: float
    adapter: float
    optimizer: float
    host: float = 0.0
    paged: float = 0.0


def held(load: Load) -> Held:
    """What a process holds between two steps, without gradients."""
    sharding, on_cpu = load.sharding, load.target == "cpu"
    weights, adapter = divided_weights(load), load.held * _adapter(load) / sharding.of_weights
    optimizer = (optimizer_bytes(load) + master_bytes(load)) / sharding.of_states
    host = paged = 0.0
    if sharding.offload_optimizer:
        # 32-bit gradients and, before stage 3, the updated weights lie beside the states
        beside = 4 + (load.number if sharding.stage < 3 else gradient_number(load))
        host, optimizer = optimizer + beside * load.trained / sharding.of_states, 0.0
    elif load.config.train.optim.startswith("paged_") and not on_cpu:
        paged, optimizer = optimizer, 0.0
    if sharding.offload_parameters:
        host, weights, adapter = host + weights + adapter, 0.0, 0.0
    if on_cpu:  # there is only one memory
        return Held(weights, adapter, optimizer + host)
    return Held(weights, adapter, optimizer, host, paged)


def _adapter(load: Load) -> int:
    """Weights of the adapter."""
    return 0 if load.method == "full" else load.trained


def weight_bytes(load: Load) -> float:
    """The base model as it is held: 4 bits pack the linear layers, never embeddings, output layer, norms, experts."""
    shape = load.shape
    if load.method == "full":
        return shape.parameters * load.held
    if load.method == "lora":
        return shape.parameters * load.stored
    rest = shape.parameters - shape.linear_parameters
    return shape.linear_parameters * _packed_bytes(load) + rest * load.stored


def _packed_bytes(load: Load) -> float:
    return DOUBLE_QUANT_BYTES if load.config.quantization.bnb_4bit_use_double_quant else NF4_BYTES


def divided_weights(load: Load) -> float:
    """The share of one process. FSDP2 does not divide packed weights."""
    if load.method != "qlora" or load.sharding.of_weights == 1:
        return weight_bytes(load) / load.sharding.of_weights
    if load.sharding.engine == "fsdp2":
        rest = load.shape.parameters - load.shape.linear_parameters
        return load.shape.linear_parameters * _packed_bytes(load) + rest * load.stored / load.sharding.of_weights
    factors = load.shape.linear_parameters * (_packed_bytes(load) - _PACKED)
    return factors + (weight_bytes(load) - factors) / load.sharding.of_weights


def optimizer_bytes(load: Load) -> float:
    """States of the optimizer, undivided."""
    name = load.config.train.optim.removeprefix("paged_")
    if name == "adafactor":  # a number for each row and column instead of each weight
        return 4.0 * (load.trained if flat(load) else _rows_and_columns(load))
    states = _STATES[name.split("_")[0]]
    if not name.endswith("8bit"):
        return 4.0 * states * load.trained
    # transformers keeps the states of embeddings in 32 bits; in DeepSpeed's flat buffers it cannot tell them
    wide = load.shape.embedding_parameters if load.method == "full" and not flat(load) else 0
    return states * (4.0 * wide + _BYTES_8BIT * (load.trained - wide))


def flat(load: Load) -> bool:
    """DeepSpeed hands the optimizer one long row of numbers instead of the layers."""
    return load.sharding.engine == "zero" and load.sharding.stage >= 1


def master_bytes(load: Load) -> float:
    """DeepSpeed's own 32-bit copy of the trained weights, undivided; at every stage, also where they are 32-bit."""
    copies = load.sharding.engine == "zero" and (load.sharding.stage >= 1 or load.rounded)
    return 4.0 * load.trained if copies else 0.0


def _rows_and_columns(load: Load) -> int:
    shape, rank = load.shape, load.config.lora.r
    layers = load.targets.values() if load.method != "full" else shape.linears.values()
    sides = sum(i + o + (2 * rank if load.method != "full" else 0) for i, o in layers) * shape.num_hidden_layers
    if load.method != "full":
        return sides
    return sides + (1 if shape.tie_word_embeddings else 2) * (shape.vocab_size + shape.hidden_size)


def gradient_number(load: Load) -> int:
    """Bytes of a gradient."""
    return load.held


class Gradients:
    """Gradients of one process: `always` there, `before` the batch (of earlier batches), of the `head`, of `all`, what
    comes `last`, beside the `embedding`, and at the `update`."""

    def __init__(self, load: Load) -> None:
        shape, sharding, number = load.shape, load.sharding, gradient_number(load)
        full, trained = load.method == "full", load.trained
        matrix = float(number * shape.embedding_parameters)
        whole = number * trained / sharding.of_gradients
        away = sharding.offload_optimizer and sharding.stage >= 2 and load.target == "cuda"
        self.all = 0.0 if away else whole
        # torch's DDP sends gradients from copies of its own; stage 3 has its part from the start
        self.always = 4.0 * trained if sharding.engine == "torch" and sharding.processes > 1 else 0.0
        self.before = self.all if _accumulates(load) or (flat(load) and sharding.stage == 3) else 0.0
        self.head = matrix if load.trains_head else 0.0
        self.last = self.all / shape.num_hidden_layers + (matrix if full and not shape.tie_word_embeddings else 0)
        # a shared matrix gets its second gradient as a whole before the two are added
        again = matrix if full and shape.tie_word_embeddings else 0
        self.embedding = float(number * load.tokens * shape.hidden_size) + again
        self.update = self._at_update(load, number * trained)

    def _at_update(self, load: Load, whole: float) -> float:
        """DeepSpeed widens its part to 32 bits: all of it at once, from stage 3 on group by group."""
        sharding = load.sharding
        if not flat(load):
            return self.all
        if sharding.offload_optimizer and load.target == "cuda":
            return 0.0
        part = load.trained / sharding.of_states
        return whole / sharding.of_states + 4.0 * (min(part, SUB_GROUP) if sharding.stage == 3 else part)


def _accumulates(load: Load) -> bool:
    return load.config.train.gradient_accumulation_steps > 1


@dataclass(frozen=True)
class Buffers:
    """Working memory of the division: weights gathered for the layers at work, and the buckets gradients leave in."""

    gathered: float = 0.0
    buckets: float = 0.0

    @property
    def total(self) -> float:
        """Both, in the middle of the backward pass."""
        return self.gathered + self.buckets


def buffers(load: Load) -> Buffers:
    """Of one process, where something is divided."""
    sharding = load.sharding
    if sharding.engine == "fsdp2":
        return Buffers(gathered=_gathered_by_fsdp(load))
    if not flat(load):
        return Buffers()
    bucket = sharding.bucket if sharding.bucket is not None else load.shape.hidden_size**2
    if load.target == "cpu":  # main memory is only taken once it is written to
        bucket = min(bucket, load.trained)
    buckets = float(bucket * load.number * (2 if sharding.overlap and sharding.stage < 3 else 1))
    return Buffers(_gathered_by_zero(load) if sharding.stage == 3 else 0.0, buckets)


def _gathered_by_zero(load: Load) -> float:
    """Weights that are whole at one time: those needed again soon (at the turn from forward to backward half of the
    distance), those fetched ahead, and the largest layer."""
    if load.sharding.processes == 1 and not load.sharding.offload_parameters:
        return 0.0  # its part is the whole
    numbers, size = elements(load), load.sharding
    prefetch = size.prefetch if size.prefetch is not None else round(0.9 * load.shape.hidden_size**2)
    largest = max(layer_elements(load), float(load.shape.embedding_parameters))
    live = min(numbers, size.reuse / 2 + prefetch + largest)
    return gathered_bytes(load) * live / numbers


def elements(load: Load) -> float:
    """Numbers of all parameters as DeepSpeed counts them: a packed byte is one."""
    packed = load.shape.linear_parameters * (1 - _PACKED) if load.method == "qlora" else 0
    return load.shape.parameters - packed + _adapter(load)


def gathered_bytes(load: Load) -> float:
    """All parameters once, as they are gathered."""
    shape = load.shape
    adapter = load.number * _adapter(load) if load.rounded else 4 * _adapter(load)
    if load.method != "qlora":
        return shape.parameters * load.stored + adapter
    packed = 0.0 if load.sharding.engine == "fsdp2" else _PACKED * shape.linear_parameters
    return packed + (shape.parameters - shape.linear_parameters) * load.stored + adapter


def layer_elements(load: Load) -> float:
    """Numbers of a decoder layer, as DeepSpeed counts them."""
    packed = _PACKED if load.method == "qlora" else 1.0
    return (packed * load.shape.linear_parameters + load.shape.expert_parameters) / load.shape.num_hidden_layers


def _gathered_by_fsdp(load: Load) -> float:
    """The layer at work and the next one, embedding and output layer, and gradients of the layer, sent in 32 bits."""
    shape = load.shape
    layers = (shape.linear_parameters * (load.method != "qlora") + shape.expert_parameters) / shape.num_hidden_layers
    adapter = _adapter(load) / shape.num_hidden_layers
    matrices = (1 if shape.tie_word_embeddings else 2) * shape.embedding_parameters
    trained = (layers if load.method == "full" else 0.0) + adapter
    return load.stored * (2 * (layers + adapter) + matrices) + (load.number + 4) * trained


def update_workspace(load: Load) -> float:
    """torch's own Adam on a GPU makes one more copy of all trained weights; others go tensor by tensor."""
    optimizer, sharding = load.config.train.optim, load.sharding
    if sharding.offload_optimizer and load.target == "cuda":
        return 0.0
    part = load.trained / sharding.of_states
    if load.target == "cuda" and optimizer == "adamw_torch":
        return 4.0 * (min(part, SUB_GROUP) if flat(load) and sharding.stage == 3 else part)
    if flat(load):
        biggest = min(part, SUB_GROUP) if sharding.stage == 3 else part
    else:
        biggest = load.shape.embedding_parameters / sharding.of_states if load.method == "full" else 0
    return 4.0 * biggest * (2 if optimizer in ("adamw_torch", "adafactor") else 0)
