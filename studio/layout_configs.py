"""config.json of an original layout -> config.json of the architecture that computes the same.

One function per family. Whatever an architecture could not express exactly is refused, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Config = dict[str, Any]
_COPIED = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
GLM4_VOCABULARY = 151552


class Refused(ValueError):
    """A model that cannot be converted exactly; the text is the reason, a part of a sentence."""


def internlm2(config: Config) -> Config:
    """InternLM2 is Llama with one matrix for queries, keys and values."""
    _expect(config, {"hidden_act": "silu"})
    _only_language_models(config, "InternLM2ForCausalLM")
    return _llama(config) | {
        "attention_bias": bool(config.get("bias", False)),
        "rope_parameters": _rope(_number(config, "rope_theta", 10000), config.get("rope_scaling")),
    }


def internlm(config: Config) -> Config:
    """InternLM is Llama with biases in the attention; without a word about rotation it stretches it dynamically."""
    _expect(config, {"hidden_act": "silu"})
    _only_language_models(config, "InternLMForCausalLM")
    rotary = config.get("rotary") or {"base": 10000, "type": "dynamic"}
    scaling = None
    if rotary.get("type") == "dynamic":
        scaling = {"type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    elif rotary.get("type") != "origin":
        raise Refused(f"it rotates positions in a way nobody knows ({str(rotary.get('type'))[:40]!r})")
    return _llama(config, kv_heads=_whole(config, "num_attention_heads")) | {
        "attention_bias": bool(config.get("bias", True)),
        "rope_parameters": _rope(_number(rotary, "base", 10000), scaling),
    }


def baichuan(config: Config) -> Config:
    """The 7B models are Llama; the 13B models weight distance (ALiBi) instead of rotating positions."""
    _expect(config, {"hidden_act": "silu"})
    if baichuan_version(config) == 0:
        raise Refused("it orders words by ALiBi, which no installed architecture of this shape does")
    return _llama(config, kv_heads=_whole(config, "num_attention_heads")) | {"rope_parameters": _rope(10000, None)}


def baichuan_version(config: Mapping[str, Any]) -> int:
    """1 or 2 for the 7B models, 0 for those with ALiBi. Only Baichuan2 normalises its output layer.

    The two generations spell their class differently; the 13B models have no `max_position_embeddings`.
    """
    name = (config.get("architectures") or [""])[0]
    if "max_position_embeddings" not in config or config.get("num_attention_heads") == 40:
        return 0
    if name not in ("BaiChuanForCausalLM", "BaichuanForCausalLM"):
        raise Refused("config.json does not say which generation of Baichuan it is (architectures)")
    return 1 if name == "BaiChuanForCausalLM" else 2


def qwen(config: Config) -> Config:
    """The first Qwen is Qwen2; it changes its arithmetic only beyond `seq_length`, so that is where it ends here."""
    _expect(config, {"rotary_pct": 1.0, "no_bias": True, "scale_attn_weights": True})
    if "visual" in config:
        raise Refused("it sees pictures, which this version does not")
    heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
    if _whole(config, "kv_channels", hidden // heads) * heads != hidden:
        raise Refused("its attention is of another width than the model")
    renamed = config | {
        "intermediate_size": _whole(config, "intermediate_size") // 2,
        "rms_norm_eps": _number(config, "layer_norm_epsilon", 1e-6),
        "max_position_embeddings": _whole(config, "seq_length", 8192),
    }
    rope = _rope(_number(config, "rotary_emb_base", 10000), None)
    result = _llama(renamed, kind="qwen2", kv_heads=heads) | {"rope_parameters": rope}
    for name, token in (("bos_token_id", None), ("eos_token_id", 151643)):
        result.setdefault(name, token)
    return result


def chatglm(config: Config) -> Config:
    """ChatGLM2, ChatGLM3 and GLM-4 are GLM: half of each head is rotated, in neighbouring pairs."""
    if "multi_query_attention" not in config or "vision_config" in config:
        raise Refused("only the text models from ChatGLM2 on compute as an installed architecture does")
    _expect(
        config,
        {
            "multi_query_attention": True,
            "rmsnorm": True,
            "post_layer_norm": True,
            "apply_residual_connection_post_layernorm": False,
            "add_bias_linear": False,
            "original_rope": True,
            "quantization_bit": 0,
            "pre_seq_len": None,
        },
    )
    vocabulary, ratio = _whole(config, "padded_vocab_size"), _number(config, "rope_ratio", 1)
    if ratio != 1 and vocabulary != GLM4_VOCABULARY:
        raise Refused("the long-context models of ChatGLM stretch positions each in its own way (rope_ratio)")
    renamed = config | {
        "vocab_size": vocabulary,
        "intermediate_size": _whole(config, "ffn_hidden_size"),
        "num_hidden_layers": _whole(config, "num_layers"),
        "rms_norm_eps": _number(config, "layernorm_epsilon", 1e-5),
        "max_position_embeddings": _whole(config, "seq_length"),
    }
    return _llama(renamed, kind="glm", kv_heads=_whole(config, "multi_query_group_num")) | {
        "head_dim": _whole(config, "kv_channels"),
        "attention_bias": bool(config.get("add_qkv_bias", False)),
        "eos_token_id": config.get("eos_token_id", 2),
        "pad_token_id": config.get("pad_token_id", 0),
        "rope_parameters": _rope(10000 * ratio, None) | {"partial_rotary_factor": 0.5},
    }


def minicpm(config: Config) -> Config:
    """MiniCPM scales embeddings, residuals and logits by constants, as Granite does."""
    _expect(config, {"hidden_act": "silu", "attention_bias": False})
    if config.get("num_experts") or config.get("sparse_config"):
        raise Refused("its experts or its sparse attention are in no installed architecture")
    heads, hidden, layers = (
        _whole(config, name) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    )
    result = _llama(config, kind="granite") | {
        "attention_bias": False,
        "attention_multiplier": (hidden // heads) ** -0.5,
        "embedding_multiplier": _number(config, "scale_emb"),
        "residual_multiplier": _number(config, "scale_depth") / math.sqrt(layers),
        "logits_scaling": hidden / _number(config, "dim_model_base"),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", True)),
        "rope_parameters": _rope(_number(config, "rope_theta", 10000), config.get("rope_scaling")),
    }
    return result


def deepseek(config: Config) -> Config:
    """DeepSeek's first mixture of experts: Qwen2's, whose gate of the shared experts is held open."""
    _expect(
        config,
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "scoring_func": "softmax",
            "moe_layer_freq": 1,
            "rope_scaling": None,
        },
    )
    shared = _whole(config, "n_shared_experts") * _whole(config, "moe_intermediate_size")
    return _llama(config, kind="qwen2_moe") | {
        "moe_intermediate_size": _whole(config, "moe_intermediate_size"),
        "shared_expert_intermediate_size": shared,
        "num_experts": _whole(config, "n_routed_experts"),
        "num_experts_per_tok": _whole(config, "num_experts_per_tok"),
        "norm_topk_prob": bool(config.get("norm_topk_prob", False)),
        "mlp_only_layers": list(range(_whole(config, "first_k_dense_replace", 0))),
        "decoder_sparse_step": 1,
        "qkv_bias": False,
        "rope_parameters": _rope(_number(config, "rope_theta", 10000), None),
    }


def aquila(config: Config) -> Config:
    """Aquila is Llama under another name."""
    _expect(config, {"hidden_act": "silu", "attention_bias": False})
    rope = _rope(_number(config, "rope_theta", 10000), config.get("rope_scaling"))
    return _llama(config) | {"rope_parameters": rope}


CONVERTERS: dict[str, Callable[[Config], Config]] = {
    "internlm2": internlm2,
    "internlm": internlm,
    "baichuan": baichuan,
    "qwen": qwen,
    "chatglm": chatglm,
    "minicpm": minicpm,
    "deepseek": deepseek,
    "aquila": aquila,
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "glm": "GlmForCausalLM",
    "granite": "GraniteForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
}


def _llama(config: Config, kind: str = "llama", kv_heads: int | None = None) -> Config:
    """What all of these architectures have in common."""
    heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
    kv_heads = kv_heads or _whole(config, "num_key_value_heads", heads)
    if hidden % heads or heads % kv_heads:
        raise Refused("its heads do not divide its width evenly (config.json)")
    result = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": _whole(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": _whole(config, "intermediate_size"),
        "num_hidden_layers": _whole(config, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": _whole(config, "max_position_embeddings", 2048),
        "rms_norm_eps": _number(config, "rms_norm_eps", 1e-6),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_cache": True,
    }
    result |= {name: config[name] for name in _COPIED if name in config}
    dtype = config.get("dtype") or config.get("torch_dtype")
    return result | ({"dtype": dtype} if dtype in ("float32", "float16", "bfloat16") else {})


def _rope(theta: float, scaling: Any) -> Config:
    """Rotary positions with this base, stretched as the original's `rope_scaling` says."""
    if not scaling:
        return {"rope_type": "default", "rope_theta": float(theta)}
    kind = scaling.get("type") or scaling.get("rope_type") if isinstance(scaling, Mapping) else None
    if kind not in ("linear", "dynamic"):
        raise Refused(f"it stretches positions in a way that was not checked ({str(kind)[:40]!r})")
    return {"rope_type": kind, "rope_theta": float(theta), "factor": _number(scaling, "factor")}


def _expect(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Settings the converted architecture takes for granted; one that is absent is as the family has it."""
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise Refused(f"its setting {name} is {str(config[name])[:40]!r}, and only {value!r} is the same there")


def _only_language_models(config: Mapping[str, Any], name: str) -> None:
    found = (config.get("architectures") or [name])[0]
    if found != name:
        raise Refused(f"it is a {str(found)[:60]}, and only {name} generates text")


def _whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value == 0 and default != 0):
        raise Refused(f"config.json gives no usable {name}")
    return value


def _number(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise Refused(f"config.json gives no usable {name}")
    return value
