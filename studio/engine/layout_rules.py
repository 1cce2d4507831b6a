"""How the tensors of each original layout are named and arranged, and what becomes of them.

A rule takes one original tensor to its parts in the converted model, and back. Everything is a choice of rows, so both
ways are exact to the bit, but for two: Baichuan2's normalised output layer, and DeepSeek's shared experts, whose last
matrix is doubled (exact in floating point) because the gate in front of them is always half open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studio.layout_configs import baichuan_version

Parts = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of the attention: how many heads, how many of keys and values, how wide each is."""

    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Sizes:
        """From a converted config.json."""
        heads = config["num_attention_heads"]
        return cls(heads, config["num_key_value_heads"], config.get("head_dim") or config["hidden_size"] // heads)


@dataclass(frozen=True)
class Rule:
    """`original` -> `converted` names, with {n} a layer, {e} an expert, {p} weight or bias; none: left out.

    `split` takes the original tensor to its parts and `join` takes them back; `join` may be absent where information
    is lost, then the original tensor can only be copied.
    """

    original: str
    converted: tuple[str, ...]
    split: Callable[[torch.Tensor, Sizes], Parts] = lambda tensor, _: (tensor,)
    join: Callable[[Parts, Sizes], torch.Tensor] | None = lambda parts, _: parts[0]

    def targets(self, name: str) -> tuple[str, ...] | None:
        """The converted names for an original one; None when the rule is for others."""
        pattern = re.escape(self.original)
        for place, text in (("n", r"\d+"), ("e", r"\d+"), ("p", "weight|bias")):
            pattern = pattern.replace(rf"\{{{place}\}}", f"(?P<{place}>{text})", 1)
        match = re.fullmatch(pattern, name)
        return tuple(target.format(**match.groupdict()) for target in self.converted) if match else None


def _split_rows(tensor: torch.Tensor, sizes: Sizes) -> Parts:
    """All queries, then all keys, then all values."""
    kv = sizes.kv_heads * sizes.head_dim
    queries = sizes.heads * sizes.head_dim
    if tensor.shape[0] != queries + 2 * kv:
        raise ValueError("rows are missing")
    return tensor[:queries], tensor[queries : queries + kv], tensor[queries + kv :]


def _join_rows(parts: Parts, _: Sizes) -> torch.Tensor:
    return torch.cat(list(parts))


def _split_groups(tensor: torch.Tensor, sizes: Sizes) -> Parts:
    """InternLM2: for each key-value head its queries, then its key, then its value."""
    rest = tensor.shape[1:]
    groups = tensor.view(sizes.kv_heads, sizes.heads // sizes.kv_heads + 2, sizes.head_dim, *rest)
    return groups[:, :-2].reshape(-1, *rest), groups[:, -2].reshape(-1, *rest), groups[:, -1].reshape(-1, *rest)


def _join_groups(parts: Parts, sizes: Sizes) -> torch.Tensor:
    rest = parts[0].shape[1:]
    queries, keys, values = (part.reshape(sizes.kv_heads, -1, sizes.head_dim, *rest) for part in parts)
    return torch.cat([queries, keys, values], dim=1).reshape(-1, *rest)


def _normalised(tensor: torch.Tensor, _: Sizes) -> Parts:
    """Baichuan2 divides each row of its output layer by its length, every time; here it is done once."""
    return (torch.nn.functional.normalize(tensor.float()).to(tensor.dtype),)


def _with_gate(tensor: torch.Tensor, _: Sizes) -> Parts:
    """The router, and a gate of zeros for the shared experts: sigmoid(0) is exactly one half."""
    return tensor, torch.zeros(1, tensor.shape[1], dtype=tensor.dtype)


def _without_gate(parts: Parts, _: Sizes) -> torch.Tensor:
    if bool(parts[1].any()):
        raise ValueError("the gate of the shared experts was trained, and the original layout has none")
    return parts[0]


def _doubled(tensor: torch.Tensor, _: Sizes) -> Parts:
    return (tensor * 2,)


def _halved(parts: Parts, _: Sizes) -> torch.Tensor:
    return parts[0] / 2


LAYER = "model.layers.{n}."
ATTENTION = (f"{LAYER}self_attn.q_proj.{{p}}", f"{LAYER}self_attn.k_proj.{{p}}", f"{LAYER}self_attn.v_proj.{{p}}")


def _same(*names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name, (name,)) for name in names)


def _layer(renamed: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{LAYER}{old}", (f"{LAYER}{new}",)) for old, new in renamed.items())


_NORMS = (f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight", "model.norm.weight")
_MLP = tuple(f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
_OUTPUT = f"{LAYER}self_attn.o_proj.{{p}}"
_FREQUENCIES = Rule(f"{LAYER}self_attn.rotary_emb.inv_freq", ())
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

_LLAMA = (*_same(_EMBEDDING, _HEAD, *_NORMS, *_MLP, _OUTPUT, *ATTENTION), _FREQUENCIES)
_INTERNLM2 = (
    Rule("model.tok_embeddings.weight", (_EMBEDDING,)),
    Rule("output.weight", (_HEAD,)),
    Rule("model.norm.weight", ("model.norm.weight",)),
    Rule(f"{LAYER}attention.wqkv.{{p}}", ATTENTION, _split_groups, _join_groups),
    *_layer(
        {
            "attention.wo.{p}": "self_attn.o_proj.{p}",
            "attention_norm.weight": "input_layernorm.weight",
            "ffn_norm.weight": "post_attention_layernorm.weight",
            "feed_forward.w1.weight": "mlp.gate_proj.weight",
            "feed_forward.w3.weight": "mlp.up_proj.weight",
            "feed_forward.w2.weight": "mlp.down_proj.weight",
        }
    ),
    Rule(f"{LAYER}attention.rotary_emb.inv_freq", ()),
)
_BAICHUAN = (
    *_same(_EMBEDDING, *_NORMS, *_MLP, _OUTPUT),
    Rule(f"{LAYER}self_attn.W_pack.{{p}}", ATTENTION, _split_rows, _join_rows),
    _FREQUENCIES,
)
_DEEPSEEK = (
    *_LLAMA,
    *_same(*(f"{LAYER}mlp.experts.{{e}}.{name}_proj.weight" for name in ("gate", "up", "down"))),
    *_layer(
        {f"mlp.shared_experts.{name}_proj.weight": f"mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up")}
    ),
    Rule(
        f"{LAYER}mlp.gate.weight",
        (f"{LAYER}mlp.gate.weight", f"{LAYER}mlp.shared_expert_gate.weight"),
        _with_gate,
        _without_gate,
    ),
    Rule(
        f"{LAYER}mlp.shared_experts.down_proj.weight",
        (f"{LAYER}mlp.shared_expert.down_proj.weight",),
        _doubled,
        _halved,
    ),
)


def _blocks(prefix: str, renamed: dict[str, str], fused: str) -> tuple[Rule, ...]:
    """The rules of layers that are called `prefix`."""
    rules = tuple(Rule(f"{prefix}{old}", (f"{LAYER}{new}",)) for old, new in renamed.items())
    return (*rules, Rule(f"{prefix}{fused}.{{p}}", ATTENTION, _split_rows, _join_rows))


_QWEN = (
    Rule("transformer.wte.weight", (_EMBEDDING,)),
    Rule("transformer.ln_f.weight", ("model.norm.weight",)),
    *_same(_HEAD),
    *_blocks(
        "transformer.h.{n}.",
        {
            "ln_1.weight": "input_layernorm.weight",
            "ln_2.weight": "post_attention_layernorm.weight",
            "attn.c_proj.weight": "self_attn.o_proj.weight",
            "mlp.w2.weight": "mlp.gate_proj.weight",
            "mlp.w1.weight": "mlp.up_proj.weight",
            "mlp.c_proj.weight": "mlp.down_proj.weight",
        },
        "attn.c_attn",
    ),
    Rule("transformer.rotary_emb.inv_freq", ()),
    Rule("transformer.h.{n}.attn.rotary_emb.inv_freq", ()),
)
_CHATGLM = (
    Rule("transformer.embedding.word_embeddings.weight", (_EMBEDDING,)),
    Rule("transformer.encoder.final_layernorm.weight", ("model.norm.weight",)),
    Rule("transformer.output_layer.weight", (_HEAD,)),
    *_blocks(
        "transformer.encoder.layers.{n}.",
        {
            "input_layernorm.weight": "input_layernorm.weight",
            "post_attention_layernorm.weight": "post_attention_layernorm.weight",
            "self_attention.dense.weight": "self_attn.o_proj.weight",
            "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
            "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
        },
        "self_attention.query_key_value",
    ),
    Rule("transformer.rotary_pos_emb.inv_freq", ()),
)
_RULES = {
    "internlm2": _INTERNLM2,
    "internlm": _LLAMA,
    "aquila": _LLAMA,
    "minicpm": _LLAMA,
    "deepseek": _DEEPSEEK,
    "qwen": _QWEN,
    "chatglm": _CHATGLM,
}


def rules_for(family: str, config: dict[str, Any]) -> tuple[Rule, ...]:
    """The rules of a family; `config` is the original config.json, which tells its generations apart."""
    if family != "baichuan":
        return _RULES[family]
    head = Rule(_HEAD, (_HEAD,), _normalised, None) if baichuan_version(config) == 2 else Rule(_HEAD, (_HEAD,))
    return (*_BAICHUAN, head)
