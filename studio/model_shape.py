"""The shape of a language model, enough to count its parameters without having it: what a config.json says.

Presets carry the same block under `shape:`, so that a model can be planned for before it is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.config import RunConfig
from studio.presets import BUILT_IN, models

_Count = Field(gt=0, le=10_000_000)
# Other names for the same number, in config files and in the presets' `shape:` blocks.
_OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("layers", "n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("heads", "n_head", "n_heads"),
    "num_key_value_heads": ("kv_heads", "multi_query_group_num", "num_kv_heads"),
    "intermediate_size": ("ffn", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "vocab_size": ("vocab", "padded_vocab_size"),
    "tie_word_embeddings": ("tied",),
    "gated_mlp": ("gated",),
    "max_position_embeddings": ("seq_length", "n_positions", "model_max_length"),
    "num_experts": ("experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token",),
    "moe_intermediate_size": ("expert_ffn",),
    "dense_layers": ("first_k_dense_replace",),
    "shared_intermediate_size": ("shared_expert_ffn", "shared_expert_intermediate_size"),
}
_ATTENTION_BIAS = {"qwen2", "qwen2_moe", "qwen"}
"""Families whose query, key and value layers have a bias that the configuration does not mention."""
_ALL_BIAS = {"gpt2", "starcoder2", "phi"}
_QK_NORM = {"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2"}
_FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text", "glm4"}
_TIED = {"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "cohere", "cohere2"}
_EAGER = {"gemma2", "gpt_oss"}
_PLAIN_MLP = {"gpt2", "starcoder2", "phi", "gpt_neox"}
_FAMILIES = (
    (r"^qwen3.*a\d+b", "qwen3_moe"), (r"^qwen3", "qwen3"), (r"^(qwen|qwq|deepseek-r1-distill-qwen)", "qwen2"),
    (r"^gemma-?3", "gemma3_text"), (r"^gemma-?2", "gemma2"), (r"gemma", "gemma"), (r"^mixtral", "mixtral"),
    (r"^mistral|zephyr", "mistral"), (r"^olmo-?2", "olmo2"), (r"^starcoder2", "starcoder2"), (r"^glm-?4", "glm4"),
    (r"^c4ai|^aya", "cohere"),
)  # fmt: skip


class ModelShape(BaseModel):
    """Sizes of a decoder-only model, under the names of transformers' configurations."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_type: str = "llama"
    """The architecture, as transformers calls it."""
    hidden_size: int = _Count
    num_hidden_layers: int = _Count
    num_attention_heads: int = _Count
    num_key_value_heads: int = _Count
    head_dim: int = _Count
    intermediate_size: int = _Count
    vocab_size: int = _Count
    tie_word_embeddings: bool = False
    """One matrix is both embedding and output layer."""
    attention_bias: bool = False
    """Query, key and value layers have a bias."""
    mlp_bias: bool = False
    gated_mlp: bool = True
    """Three matrices in the feed-forward part (gate, up, down) instead of two."""
    qk_norm: bool = False
    """Queries and keys are normalised."""
    norms_per_layer: int = Field(2, ge=1, le=8)
    num_experts: int = Field(0, ge=0, le=4096)
    """Experts in each layer; 0 for a dense model."""
    num_experts_per_tok: int = Field(0, ge=0, le=4096)
    moe_intermediate_size: int = Field(0, ge=0, le=10_000_000)
    """Width of one expert."""
    shared_intermediate_size: int = Field(0, ge=0, le=10_000_000)
    """Width of the expert every token goes through; 0 without one."""
    dense_layers: int = Field(0, ge=0, le=10_000)
    """First layers of a mixture of experts that have none."""
    kv_lora_rank: int = Field(0, ge=0, le=100_000)
    """Keys and values come from a compressed row of this width (multi-head latent attention); 0: they do not."""
    q_lora_rank: int = Field(0, ge=0, le=100_000)
    qk_rope_head_dim: int = Field(0, ge=0, le=100_000)
    v_head_dim: int = Field(0, ge=0, le=100_000)
    max_position_embeddings: int = Field(4096, gt=0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape in a parsed config.json; multimodal ones: of their language model. Raises ValueError."""
        if isinstance(config.get("text_config"), Mapping):
            config = {"model_type": config.get("model_type", ""), **config["text_config"]}
        kind = str(config.get("model_type", "llama"))
        found = {name: value for name in cls.model_fields if (value := _look_up(config, name)) is not None}
        try:
            return cls.model_validate(_with_defaults(found, kind, config))
        except (ValidationError, TypeError, ZeroDivisionError, KeyError) as error:
            raise ValueError(f"its configuration does not say how large the model is ({_first(error)})") from None

    def to_config(self) -> dict[str, Any]:
        """Settings for transformers' configuration class of `model_type`."""
        names = (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "vocab_size", "tie_word_embeddings", "max_position_embeddings",
        )  # fmt: skip
        settings = {name: getattr(self, name) for name in names}
        if self.num_experts:
            settings["num_experts_per_tok"] = self.num_experts_per_tok
            name = "num_local_experts" if self.model_type == "mixtral" else "num_experts"
            settings |= {name: self.num_experts, "moe_intermediate_size": self.moe_intermediate_size}
        return settings

    @property
    def eager(self) -> bool:
        """transformers has no fused attention for it."""
        return self.model_type in _EAGER

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer, without experts: name -> (inputs, outputs)."""
        hidden, ffn = self.hidden_size, self.dense_width
        found = self._latent_attention() if self.kv_lora_rank else {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.key_size),
            "v_proj": (hidden, self.key_size),
            "o_proj": (self.query_size, hidden),
        }  # fmt: skip
        if ffn:
            found |= {"gate_proj": (hidden, ffn)} if self.gated_mlp else {}
            found |= {"up_proj": (hidden, ffn), "down_proj": (ffn, hidden)}
        return found

    def _latent_attention(self) -> dict[str, tuple[int, int]]:
        hidden, heads, rank = self.hidden_size, self.num_attention_heads, self.kv_lora_rank
        queries = heads * (self.head_dim + self.qk_rope_head_dim)
        found = {
            "kv_a_proj_with_mqa": (hidden, rank + self.qk_rope_head_dim),
            "kv_b_proj": (rank, heads * (self.head_dim + self.v_head_dim)),
            "o_proj": (heads * self.v_head_dim, hidden),
        }
        if not self.q_lora_rank:
            return {"q_proj": (hidden, queries)} | found
        return {"q_a_proj": (hidden, self.q_lora_rank), "q_b_proj": (self.q_lora_rank, queries)} | found

    @property
    def dense_width(self) -> int:
        """Width of the feed-forward part every token goes through."""
        return self.shared_intermediate_size if self.num_experts else self.intermediate_size

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the linear layers of all decoder layers, without experts: what 4 bits pack."""
        per_layer = sum(inputs * outputs for inputs, outputs in self.linears.values())
        matrices = 3 if self.gated_mlp else 2
        wider = self.dense_layers * matrices * self.hidden_size * (self.intermediate_size - self.dense_width)
        return self.num_hidden_layers * per_layer + (wider if self.num_experts else 0)

    @property
    def expert_parameters(self) -> int:
        """Weights of all experts and their routers."""
        if not self.num_experts:
            return 0
        matrices = 3 if self.gated_mlp else 2
        expert = matrices * self.hidden_size * self.moe_intermediate_size
        return (self.num_hidden_layers - self.dense_layers) * self.num_experts * (expert + self.hidden_size)

    @property
    def embedding_parameters(self) -> int:
        """One vocabulary matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def small_parameters(self) -> int:
        """Norms and biases."""
        norms = self.norms_per_layer * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        bias = (self.query_size + 2 * self.key_size) * self.attention_bias
        bias += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        return self.num_hidden_layers * (norms + bias) + self.hidden_size

    @cached_property
    def parameters(self) -> int:
        """All of them; shared ones once."""
        matrices = 1 if self.tie_word_embeddings else 2
        return (
            self.linear_parameters + self.expert_parameters + matrices * self.embedding_parameters
            + self.small_parameters
        )  # fmt: skip


def _look_up(config: Mapping[str, Any], name: str) -> Any:
    for spelling in (name, *_OTHER_NAMES.get(name, ())):
        if config.get(spelling) is not None:
            return config[spelling]
    return None


def _with_defaults(found: dict[str, Any], kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a family implies and its config.json leaves out."""
    heads = int(found["num_attention_heads"])
    implied: dict[str, Any] = {
        "model_type": kind,
        "num_key_value_heads": heads,
        "head_dim": int(found["hidden_size"]) // heads,
        "intermediate_size": 4 * int(found["hidden_size"]),
        "tie_word_embeddings": kind in _TIED,
        "attention_bias": kind in _ATTENTION_BIAS | _ALL_BIAS,
        "mlp_bias": kind in _ALL_BIAS,
        "gated_mlp": kind not in _PLAIN_MLP,
        "qk_norm": kind in _QK_NORM,
        "norms_per_layer": 4 if kind in _FOUR_NORMS else 2,
    }
    if found.get("num_experts"):
        width = found.get("moe_intermediate_size") or found.get("intermediate_size")
        shared = int(config.get("n_shared_experts") or 0) * int(width or 0)
        implied |= {"num_experts_per_tok": 2, "moe_intermediate_size": width, "shared_intermediate_size": shared}
    return implied | found


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def shape_of(config: RunConfig) -> ModelShape | None:
    """The shape of a run's base model; None if unknown."""
    return shape_named(config.model.model_name_or_path)


def shape_named(reference: str) -> ModelShape | None:
    """The shape of a model: of its folder, else of the hub's cache, else of its preset; None if unknown."""
    folder = BUILT_IN.get(reference) or Path(reference).expanduser()
    try:
        file = folder / "config.json"
        if file.is_file():
            return _from_file(file, file.stat().st_mtime_ns)
    except (OSError, ValueError):  # a name no file can have
        return None
    return _from_cache(reference) or _from_preset(reference)


@lru_cache(maxsize=64)
def _from_file(file: Path, _changed: int) -> ModelShape | None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return ModelShape.from_config(config) if isinstance(config, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def _from_cache(reference: str) -> ModelShape | None:
    """config.json of a model downloaded before; the hub's own client knows where it put it."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(reference, "config.json")
    except ValueError:  # no hub id
        return None
    return _from_file(Path(found), Path(found).stat().st_mtime_ns) if isinstance(found, str) else None


def _from_preset(reference: str) -> ModelShape | None:
    """Presets name no architecture; the name of the model does."""
    for model in models().values():
        if model.model_name_or_path == reference and model.shape:
            return ModelShape.from_config({"model_type": _family(reference)} | dict(model.shape))
    return None


def _family(reference: str) -> str:
    name = reference.rsplit("/", 1)[-1].lower()
    return next((kind for pattern, kind in _FAMILIES if re.search(pattern, name)), "llama")
