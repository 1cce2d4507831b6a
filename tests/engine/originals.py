"""Tiny random models in their families' original layouts, and what those compute, written down independently.

The reference works on activations, as the published architectures do (a fused projection is taken apart after it was
applied), in plain float32 torch; nothing of the converter is used.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, normalize, silu, softmax

Tensors = dict[str, torch.Tensor]
HIDDEN, HEADS, KV, DIM, INNER, LAYERS, VOCAB = 64, 4, 2, 16, 96, 2, 320
CONFIGS: dict[str, dict[str, Any]] = {
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"], "bias": False, "num_key_value_heads": KV, "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    },
    "internlm2_bias": {"model_type": "internlm2", "bias": True, "num_key_value_heads": 1, "rope_scaling": None},
    "internlm": {"architectures": ["InternLMForCausalLM"], "bias": True, "rotary": {"base": 10000, "type": "dynamic"}},
    "baichuan": {"architectures": ["BaiChuanForCausalLM"]},
    "baichuan2": {"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "z_loss_weight": 0},
    "qwen": {
        "kv_channels": DIM, "intermediate_size": 2 * INNER, "layer_norm_epsilon": 1e-6, "no_bias": True,
        "rotary_emb_base": 10000, "rotary_pct": 1.0, "seq_length": 64, "use_dynamic_ntk": True, "use_logn_attn": True,
    },
    "chatglm": {
        "add_bias_linear": False, "add_qkv_bias": True, "ffn_hidden_size": INNER, "kv_channels": DIM,
        "layernorm_epsilon": 1e-5, "multi_query_attention": True, "multi_query_group_num": KV, "num_layers": LAYERS,
        "padded_vocab_size": VOCAB, "seq_length": 64, "original_rope": True, "rmsnorm": True, "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
    },
    "minicpm": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16, "num_key_value_heads": KV},
    "deepseek": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "norm_topk_prob": False, "scoring_func": "softmax", "moe_layer_freq": 1,
    },
    "aquila": {"num_key_value_heads": KV},
}  # fmt: skip
KINDS = tuple(CONFIGS)


def config_of(kind: str) -> dict[str, Any]:
    """config.json of a tiny model."""
    shared = {
        "model_type": kind.partition("_")[0], "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
        "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }  # fmt: skip
    if kind == "chatglm":
        shared = {
            key: shared[key] for key in ("model_type", "hidden_size", "num_attention_heads", "torch_dtype", "auto_map")
        }
    return shared | CONFIGS[kind]


def save_original(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, context: int = 64) -> Path:
    """A random model in two shards, trained for texts of `context` tokens, with the tokenizer file of its family."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(kind)
    config |= {name: context for name in ("max_position_embeddings", "seq_length") if name in config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_own.py").write_text("raise RuntimeError('this must never run')\n", encoding="utf-8")
    tensors = {name: value.to(dtype) for name, value in _random(kind, config).items()}
    names = list(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key].clone() for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    if config["model_type"] == "qwen":
        (folder / "qwen.tiktoken").write_bytes(tiktoken_file())
    else:
        (folder / "tokenizer.model").write_bytes(sentencepiece_file())
    return folder


def load_original(folder: Path) -> Tensors:
    """Every tensor of a folder, by name."""
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def _random(kind: str, config: dict[str, Any]) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    shapes = _SHAPES[config["model_type"]](config)

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        value = torch.randn(shape, generator=generator) * 0.15
        return value + 1 if "norm" in name or ".ln_" in name else value

    return {name: make(name, shape) for name, shape in shapes.items()}


def _mlp(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (inner, HIDDEN),
        f"{prefix}up_proj.weight": (inner, HIDDEN),
        f"{prefix}down_proj.weight": (HIDDEN, inner),
    }


def _llama_like(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """InternLM, Aquila, MiniCPM, DeepSeek: Llama's names."""
    kv = config.get("num_key_value_heads", HEADS) * DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if config["model_type"] != "minicpm":
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for n in range(LAYERS):
        own = f"model.layers.{n}."
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv), ("o", HIDDEN)):
            shapes[f"{own}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            if config.get("bias"):
                shapes[f"{own}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{own}self_attn.rotary_emb.inv_freq"] = (DIM // 2,)
        shapes[f"{own}input_layernorm.weight"] = shapes[f"{own}post_attention_layernorm.weight"] = (HIDDEN,)
        if config["model_type"] == "deepseek" and n >= config["first_k_dense_replace"]:
            shapes[f"{own}mlp.gate.weight"] = (config["n_routed_experts"], HIDDEN)
            shapes |= _mlp(f"{own}mlp.shared_experts.", 2 * 32)
            for expert in range(config["n_routed_experts"]):
                shapes |= _mlp(f"{own}mlp.experts.{expert}.", 32)
        else:
            shapes |= _mlp(f"{own}mlp.", INNER)
    return shapes


def _baichuan(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = _llama_like(config)
    for n in range(LAYERS):
        for name in "qkv":
            del shapes[f"model.layers.{n}.self_attn.{name}_proj.weight"]
        shapes[f"model.layers.{n}.self_attn.W_pack.weight"] = (3 * HIDDEN, HIDDEN)
    return shapes


def _internlm2(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    rows = (HEADS + 2 * config["num_key_value_heads"]) * DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "output.weight": (VOCAB, HIDDEN),
    }
    for n in range(LAYERS):
        own = f"model.layers.{n}."
        shapes |= {f"{own}attention.wqkv.weight": (rows, HIDDEN), f"{own}attention.wo.weight": (HIDDEN, HIDDEN)}
        if config["bias"]:
            shapes |= {f"{own}attention.wqkv.bias": (rows,), f"{own}attention.wo.bias": (HIDDEN,)}
        shapes |= {f"{own}feed_forward.w1.weight": (INNER, HIDDEN), f"{own}feed_forward.w3.weight": (INNER, HIDDEN)}
        shapes |= {f"{own}feed_forward.w2.weight": (HIDDEN, INNER)}
        shapes |= {f"{own}attention_norm.weight": (HIDDEN,), f"{own}ffn_norm.weight": (HIDDEN,)}
    return shapes


def _qwen(_: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, HIDDEN),
        "transformer.ln_f.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for n in range(LAYERS):
        own = f"transformer.h.{n}."
        shapes |= {f"{own}ln_1.weight": (HIDDEN,), f"{own}ln_2.weight": (HIDDEN,)}
        shapes |= {f"{own}attn.c_attn.weight": (3 * HIDDEN, HIDDEN), f"{own}attn.c_attn.bias": (3 * HIDDEN,)}
        shapes |= {f"{own}attn.c_proj.weight": (HIDDEN, HIDDEN), f"{own}mlp.c_proj.weight": (HIDDEN, INNER)}
        shapes |= {f"{own}mlp.w1.weight": (INNER, HIDDEN), f"{own}mlp.w2.weight": (INNER, HIDDEN)}
    return shapes


def _chatglm(_: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    rows = (HEADS + 2 * KV) * DIM
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": (DIM // 4,),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB, HIDDEN),
    }
    for n in range(LAYERS):
        own = f"transformer.encoder.layers.{n}."
        shapes |= {f"{own}input_layernorm.weight": (HIDDEN,), f"{own}post_attention_layernorm.weight": (HIDDEN,)}
        shapes |= {f"{own}self_attention.query_key_value.weight": (rows, HIDDEN)}
        shapes |= {f"{own}self_attention.query_key_value.bias": (rows,)}
        shapes |= {f"{own}self_attention.dense.weight": (HIDDEN, HIDDEN)}
        shapes |= {
            f"{own}mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN),
            f"{own}mlp.dense_4h_to_h.weight": (HIDDEN, INNER),
        }
    return shapes


_SHAPES: dict[str, Callable[[dict[str, Any]], dict[str, tuple[int, ...]]]] = {
    "internlm2": _internlm2,
    "baichuan": _baichuan,
    "qwen": _qwen,
    "chatglm": _chatglm,
    **dict.fromkeys(("internlm", "aquila", "minicpm", "deepseek"), _llama_like),
}


class Reference:
    """The published forward pass of one family, on one row of token ids."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.weights = {name: value.float() for name, value in load_original(folder).items()}
        self.kind = self.config["model_type"]

    def logits(self, ids: list[int]) -> torch.Tensor:
        """(length, vocabulary)."""
        names = {
            "internlm2": ("model.tok_embeddings", "model.layers.", "model.norm", "output"),
            "qwen": ("transformer.wte", "transformer.h.", "transformer.ln_f", "lm_head"),
            "chatglm": (
                "transformer.embedding.word_embeddings",
                "transformer.encoder.layers.",
                "transformer.encoder.final_layernorm",
                "transformer.output_layer",
            ),
        }.get(self.kind, ("model.embed_tokens", "model.layers.", "model.norm", "lm_head"))
        embedding, layers, norm, head = names
        scale = 1.0
        x = self.weights[f"{embedding}.weight"][torch.tensor(ids)]
        if self.kind == "minicpm":
            x, scale = x * self.config["scale_emb"], self.config["scale_depth"] / math.sqrt(LAYERS)
        first, second = {
            "internlm2": ("attention_norm", "ffn_norm"),
            "qwen": ("ln_1", "ln_2"),
        }.get(self.kind, ("input_layernorm", "post_attention_layernorm"))
        for n in range(LAYERS):
            own = f"{layers}{n}."
            x = x + scale * self.attention(own, self.norm(f"{own}{first}", x))
            x = x + scale * self.feed_forward(own, self.norm(f"{own}{second}", x))
        x = self.norm(norm, x)
        if self.kind == "minicpm":
            return linear(x / (HIDDEN / self.config["dim_model_base"]), self.weights[f"{embedding}.weight"])
        weight = self.weights[f"{head}.weight"]
        return linear(x, normalize(weight) if "z_loss_weight" in self.config else weight)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        eps = next(
            self.config[key]
            for key in ("layer_norm_epsilon", "layernorm_epsilon", "rms_norm_eps")
            if key in self.config
        )
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.weights[f"{name}.weight"]

    def project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def heads(self, own: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (length, heads, dim), keys and values (length, key-value heads, dim)."""
        length = len(x)
        if self.kind == "internlm2":  # "b q (h gs d)": each group holds its queries, then one key, then one value
            kv = self.config["num_key_value_heads"]
            mixed = self.project(f"{own}attention.wqkv", x).view(length, kv, HEADS // kv + 2, DIM)
            return mixed[:, :, :-2].reshape(length, HEADS, DIM), mixed[:, :, -2], mixed[:, :, -1]
        fused = {
            "baichuan": "self_attn.W_pack",
            "qwen": "attn.c_attn",
            "chatglm": "self_attention.query_key_value",
        }.get(self.kind)
        if fused:
            mixed = self.project(f"{own}{fused}", x)
            kv = (mixed.shape[1] - HIDDEN) // 2
            parts = mixed[:, :HIDDEN], mixed[:, HIDDEN : HIDDEN + kv], mixed[:, HIDDEN + kv :]
        else:
            parts = tuple(self.project(f"{own}self_attn.{name}_proj", x) for name in "qkv")  # type: ignore[assignment]
        return tuple(part.reshape(length, -1, DIM) for part in parts)  # type: ignore[return-value]

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """(length, heads, dim): the whole head by halves, or ChatGLM's first half by neighbours."""
        length, width = len(x), DIM // 2 if self.kind == "chatglm" else DIM
        base = float(self.config.get("rope_theta", 10000))
        limit = self.config.get("max_position_embeddings", 0)
        scaling = self.config.get("rope_scaling") or ({"factor": 1.0} if self.kind == "internlm" else None)
        if scaling and length > limit:
            stretch = scaling["factor"] * length / limit - (scaling["factor"] - 1)
            base *= stretch ** (width / (width - 2))
        angles = torch.arange(length)[:, None] / base ** (torch.arange(0, width, 2).float() / width)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
        if self.kind == "chatglm":
            pairs = torch.view_as_complex(x[..., :width].reshape(length, -1, width // 2, 2).contiguous())
            return torch.cat([torch.view_as_real(pairs * turn).flatten(-2), x[..., width:]], -1)
        turned = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    def attention(self, own: str, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.heads(own, x)
        queries, keys = self.rotate(queries), self.rotate(keys)
        group = HEADS // keys.shape[1]
        out = []
        for head in range(HEADS):
            scores = queries[:, head] @ keys[:, head // group].T / math.sqrt(DIM)
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out.append(softmax(scores, -1) @ values[:, head // group])
        name = {"internlm2": "attention.wo", "qwen": "attn.c_proj", "chatglm": "self_attention.dense"}
        return self.project(own + name.get(self.kind, "self_attn.o_proj"), torch.cat(out, -1))

    def feed_forward(self, own: str, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "internlm2":
            own += "feed_forward."
            return self.project(f"{own}w2", silu(self.project(f"{own}w1", x)) * self.project(f"{own}w3", x))
        own += "mlp."
        if self.kind == "qwen":
            return self.project(f"{own}c_proj", self.project(f"{own}w1", x) * silu(self.project(f"{own}w2", x)))
        if self.kind == "chatglm":
            left, right = self.project(f"{own}dense_h_to_4h", x).chunk(2, -1)
            return self.project(f"{own}dense_4h_to_h", silu(left) * right)
        if f"{own}gate.weight" not in self.weights:
            return self.expert(own, x)
        chosen, which = softmax(self.project(f"{own}gate", x), -1).topk(self.config["num_experts_per_tok"])
        rows = [
            sum(share * self.expert(f"{own}experts.{int(number)}.", row) for share, number in zip(*pair, strict=True))
            for row, pair in zip(x, zip(chosen, which, strict=True), strict=True)
        ]
        return torch.stack(rows) + self.expert(f"{own}shared_experts.", x)  # type: ignore[arg-type]

    def expert(self, own: str, x: torch.Tensor) -> torch.Tensor:
        return self.project(
            f"{own}down_proj", silu(self.project(f"{own}gate_proj", x)) * self.project(f"{own}up_proj", x)
        )


def sentencepiece_file(user_defined: tuple[str, ...] = ("<eoh>", "<eoa>"), *, algorithm: int = 2) -> bytes:
    """A tokenizer.model as SentencePiece writes it: three controls, 256 bytes, some letters and their merges."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((text, 0.0, 4) for text in user_defined)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    merged = ["▁t", "he", "▁the", "in", "er", "an", "你好"]
    pieces += [(text, -float(rank), 1) for rank, text in enumerate(merged)]
    letters = ["▁", *"etaoinshrdl", "你", "好"]
    pieces += [(text, -float(len(merged) + rank), 1) for rank, text in enumerate(letters)]
    trainer = _field(3, algorithm)
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0)
    return b"".join(_field(1, _piece(*piece)) for piece in pieces) + _field(2, trainer) + _field(3, normalizer)


def _piece(text: str, score: float, kind: int) -> bytes:
    return _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + (_field(3, kind) if kind != 1 else b"")


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def tiktoken_file() -> bytes:
    """A list of ranks: every byte, and one merge."""
    import base64

    tokens = [bytes([byte]) for byte in range(256)] + [b"he"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
