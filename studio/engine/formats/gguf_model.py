"""The head of a GGUF file: what a model's config.json says, in llama.cpp's keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter, LlamaFileType, RopeScalingType
from transformers import AutoConfig, PretrainedConfig

from studio.engine.failure import model_failure
from studio.gguf_support import SEEING, context_length, layer_period
from studio.layouts import read_layout

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
Settings = dict[str, Any]


def read_config(source: Path) -> PretrainedConfig:
    """The configuration of the language model in a folder; of an original layout, what it is converted to."""
    layout = read_layout(source)
    if layout is None:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True)
        return config.get_text_config() if config.model_type == SEEING else config
    settings = layout.converted_config()
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def describe(writer: GGUFWriter, config: PretrainedConfig, name: str, kind: str) -> None:
    """Write sizes, positions and number formats."""
    settings: Any = config
    head_dim = head_size(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    if kind == "q8_0":
        writer.add_quantization_version(2)
    writer.add_context_length(context_length(config.to_dict()))
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_vocab_size(settings.vocab_size)
    _gemma(writer, config)
    _positions(writer, config)


def head_size(config: Any) -> int:
    """Numbers of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _gemma(writer: GGUFWriter, config: Any) -> None:
    period = layer_period(config.to_dict())
    if period is None:
        return
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(period)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def rope_of(config: Any) -> Settings:
    """How positions are rotated: rope_type, rope_theta and what belongs to them; of layers that see everything."""
    rope = dict(config.rope_parameters or {})
    return dict(rope.get("full_attention") or rope)


def _positions(writer: GGUFWriter, config: Any) -> None:
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    local = dict(config.rope_parameters or {}).get("sliding_attention")
    if local:
        if local.get("rope_type", "default") != "default":
            raise model_failure(
                "model: it stretches positions within its sliding window, which GGUF cannot say.",
                "Choose another format.",
                "model",
            )
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def rope_factors(config: Any) -> torch.Tensor | None:
    """By what Llama 3.1 divides each frequency [half of a head]; None for models that do not."""
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return None
    dim, base, factor = head_size(config), float(rope["rope_theta"]), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = int(rope["original_max_position_embeddings"])
    factors = []
    for place in range(0, dim, 2):
        turns = original * base ** (-place / dim) / (2 * math.pi)  # within the original context
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)
