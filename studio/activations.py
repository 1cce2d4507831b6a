"""What a training step keeps for its backward pass, term by term.

The terms follow what transformers, PEFT and TRL keep, as `studio.engine.counter` counts them; a test holds the two
together. Sizes are bytes; "tokens" are those of one batch on one device, padding included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from studio.config import RunConfig
from studio.model_shape import ModelShape
from studio.sharding import WHOLE, Sharding

Target = Literal["cuda", "cpu"]
_VOCABULARY = {"embed_tokens", "lm_head", "wte", "tok_embeddings", "output"}
LOSS_TOKENS, LOSS_VOCABULARY = 4096, 32768
"""TRL computes the loss in tiles of so many tokens and words: whole logits never exist."""
CPU_LOSS_COPIES = 7.25
"""32-bit copies of a tile alive at once where no GPU kernel works in place."""


@dataclass(frozen=True)
class Load:
    """One step: the configuration, the model, where it runs and the batch it computes.

    `number` is the bytes of a number in the computation; `masked` is True for rows that are padded or packed.
    """

    config: RunConfig
    shape: ModelShape
    target: Target
    number: int
    length: int
    masked: bool
    sharding: Sharding = WHOLE

    @property
    def method(self) -> str:
        """qlora, lora or full."""
        return self.config.method

    @property
    def rows(self) -> int:
        """Rows in a batch."""
        return self.config.train.per_device_train_batch_size

    @property
    def tokens(self) -> int:
        """Tokens of a batch in one process: processes that share a row have a part of it each."""
        return self.rows * -(-self.length // self.sharding.sequence)

    @property
    def mixed(self) -> bool:
        """Computed in 16 bits."""
        return self.number == 2

    @property
    def rounded(self) -> bool:
        """Trained weights are 16-bit where they are used: DeepSpeed's own, or those FSDP2 gathers."""
        sharding = self.sharding
        return self.mixed and (sharding.engine == "fsdp2" or (sharding.engine == "zero" and sharding.rounds))

    @property
    def casts(self) -> bool:
        """32-bit trained weights are rounded each time they are used (autocast)."""
        return self.mixed and not self.rounded

    @property
    def stored(self) -> int:
        """Bytes of a weight as it is used, of those that are not packed: trained weights are 32-bit."""
        return 4 if self.method == "full" and not self.rounded else self.number

    @property
    def held(self) -> int:
        """Bytes of a trained weight as it is held."""
        return self.number if self.rounded and self.sharding.engine == "zero" else 4

    @cached_property
    def targets(self) -> dict[str, tuple[int, int]]:
        """The layers of one decoder layer that get an adapter: name -> (inputs, outputs)."""
        linears = self.shape.linears
        chosen = self.config.lora.target_modules
        if self.method == "full":
            return {}
        if chosen == "all-linear":
            return linears
        names = re.split(r"[,\s]+", chosen) if isinstance(chosen, str) else chosen
        return {name: sizes for name, sizes in linears.items() if name in {n.rsplit(".", 1)[-1] for n in names}}

    @cached_property
    def adapter_parameters(self) -> int:
        """Trained weights of the adapter."""
        extra = 1 if self.config.lora.use_dora else 0  # one size for each output
        rank = self.config.lora.r
        per_layer = sum(rank * (inputs + outputs) + extra * outputs for inputs, outputs in self.targets.values())
        return self.shape.num_hidden_layers * (per_layer + self.expert_adapter)

    @property
    def adapts_experts(self) -> bool:
        """Experts get adapters."""
        return (
            bool(self.shape.num_experts) and self.method != "full" and self.config.lora.target_modules == "all-linear"
        )

    @property
    def expert_adapter(self) -> int:
        """PEFT puts an adapter on every expert (twice the rank on gate and up, which are one) and on the router."""
        shape, rank = self.shape, self.config.lora.r
        if not self.adapts_experts:
            return 0
        hidden, width = shape.hidden_size, shape.moe_intermediate_size
        return rank * (shape.num_experts * (2 * (hidden + 2 * width) + hidden + width) + hidden + shape.num_experts)

    @property
    def whole_matrices(self) -> int:
        """Vocabulary matrices trained completely beside an adapter."""
        return 0 if self.method == "full" else len(_VOCABULARY & set(self.config.lora.modules_to_save))

    @property
    def trains_head(self) -> bool:
        """The output layer gets gradients."""
        return self.method == "full" or "lm_head" in self.config.lora.modules_to_save

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        if self.method == "full":
            return self.shape.parameters
        return self.adapter_parameters + self.whole_matrices * self.shape.embedding_parameters


def layer_activations(load: Load) -> float:
    """What one decoder layer keeps for the backward pass, when everything is kept."""
    attention = _attention(load)
    per_token = _norms(load) + attention + _feed_forward(load) + _inputs(load)
    return load.tokens * (per_token + _dora(load)) + _weight_copies(load)


def _norms(load: Load) -> float:
    """A norm keeps its input in 32 bits; trained, also the normalised row."""
    shape, both = load.shape, 4.0 + (load.stored if load.method == "full" else 0)
    found = shape.norms_per_layer * (both * shape.hidden_size + 4)
    if shape.qk_norm:
        found += both * (shape.query_size + shape.key_size)
    return found


def _attention(load: Load) -> float:
    shape, number = load.shape, load.number
    heads = shape.num_attention_heads
    if shape.eager or load.config.model.attn_implementation == "eager":
        capped = number if shape.model_type == "gemma2" else 0  # Gemma 2 bounds its scores
        weights = heads * load.length * (4 + capped + (number if load.mixed else 0))
        return weights + number * 3 * shape.query_size
    shared = shape.query_size if load.masked else shape.key_size  # with a mask, key and value heads are repeated
    mask = number * load.length if load.masked else 0
    return number * (2 * shape.query_size + 2 * shared) + 4 * heads + mask


def _feed_forward(load: Load) -> float:
    """Input, output and gate of the activation function."""
    shape, number = load.shape, load.number
    width = shape.dense_width
    if shape.num_experts:
        width += shape.num_experts_per_tok * shape.moe_intermediate_size
    kept = 3 if shape.gated_mlp else 1
    return float(number * kept * width)


def _inputs(load: Load) -> float:
    """Inputs of linear layers, kept where a weight or an adapter is trained."""
    shape, number = load.shape, load.number
    if load.method == "full":
        hidden, width = shape.hidden_size, shape.dense_width
        copies = (4 if not shape.gated_mlp else 5) if load.casts else 2  # each 16-bit layer has its own copy
        return float(number * (copies * hidden + width))
    rank = load.config.lora.r * number * len(load.targets)
    if load.config.lora.lora_dropout:
        mask = 1 if load.target == "cuda" else (load.number if load.rounded else 4)
        return float(rank + sum((number + mask) * inputs for inputs, _ in load.targets.values()))
    if load.casts:  # each adapter has its own 16-bit copy
        return float(rank + sum(number * inputs for inputs, _ in load.targets.values()))
    names = set(load.targets)
    hidden = bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(names & {"gate_proj", "up_proj"})
    return float(rank + number * (hidden * shape.hidden_size + ("down_proj" in names) * shape.dense_width))


def _dora(load: Load) -> float:
    """DoRA keeps what the layer and what the adapter said, to scale both."""
    if not load.config.lora.use_dora:
        return 0.0
    return 2.0 * load.number * sum(outputs for _, outputs in load.targets.values())


def _weight_copies(load: Load) -> float:
    """16-bit copies of 32-bit trained weights, and experts with their adapters added, kept from forward to backward."""
    if load.adapts_experts:
        copies = load.number * (load.shape.expert_parameters + load.adapter_parameters * load.casts)
        return copies / load.shape.num_hidden_layers
    if not load.casts:
        return 0.0
    if load.method != "full":
        return 2.0 * load.adapter_parameters / load.shape.num_hidden_layers
    return 2.0 * (load.shape.linear_parameters + load.shape.expert_parameters) / load.shape.num_hidden_layers


def checkpoint(load: Load) -> float:
    """What one layer keeps when it is computed again in the backward pass: its input."""
    return float(load.tokens * load.shape.hidden_size * load.stored)


def lasting(load: Load) -> float:
    """What is kept once, for the whole step: rotation tables, and the mask where layers are computed again."""
    rotation = 2 * load.length * load.shape.head_dim * load.stored
    mask = load.tokens * load.length if load.masked and load.config.train.gradient_checkpointing else 0
    return float(rotation + mask)


def last_norm(load: Load) -> float:
    """The last norm and its output, gone once the loss has been taken back through them."""
    kept = 4 + (load.stored if load.method == "full" else 0) + load.stored
    return float(load.tokens * load.shape.hidden_size * kept)


def loss_bytes(load: Load) -> float:
    """The tile of logits the loss is computed in, and the gradients of rows and output layer beside it."""
    shape, number = load.shape, load.number
    width = min(shape.vocab_size, LOSS_VOCABULARY)
    # main memory is only taken once it is written to, a GPU's at once
    tile = min(load.tokens, LOSS_TOKENS) * (LOSS_VOCABULARY if load.target == "cuda" else width)
    cast = width * shape.hidden_size * number if load.stored != number else 0
    rows = 4.0 * load.tokens * shape.hidden_size
    if load.target == "cuda":
        return tile * number + cast + rows
    used = min(load.tokens, LOSS_TOKENS) * width
    return tile * number + cast + rows + 4.0 * CPU_LOSS_COPIES * used


def backward_workspace(load: Load) -> float:
    """Gradients of intermediate results while the feed-forward part is taken back, and one unpacked weight."""
    shape, dropped = load.shape, load.config.lora.lora_dropout > 0
    width = max(shape.dense_width, shape.num_experts_per_tok * shape.moe_intermediate_size)
    hidden = shape.hidden_size
    if load.method == "full":
        per_token = 2.0 * load.number * width
    elif load.casts:  # an adapter's input is cast to 32 bits and back on its way
        per_token = 10.0 * hidden + (10.0 if dropped else 6.0) * width
    else:
        per_token = max(7.0 * width, 4.0 * width + 12.0 * hidden) if dropped else 8.0 * width
        per_token *= load.number / 4
    unpacked = load.number * hidden * width if load.method == "qlora" else 0
    return load.tokens * per_token + unpacked
