"""Which models can be written as GGUF, the format of llama.cpp and its relatives.

Reads small files of a model folder only, so that what is not supported is said before anything is started.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studio.gguf_vocabulary import Unsupported, vocabulary
from studio.layout_configs import Refused
from studio.layouts import detect
from studio.model_files import CONFIG, Fault, read_object
from studio.ollama_template import Unsayable, modelfile_template
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.errors import DataError
from studio.records.original_tokenizer import read_original
from studio.records.sentencepiece_file import BPE, parse

# model_type of transformers -> architecture of llama.cpp
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "internlm3": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
TITLES = "Llama, Mistral, InternLM2, InternLM3, Qwen2, Qwen2.5, Qwen3, Gemma 1, 2 and 3"
SEEING = "gemma3"
BLIND_NOTE = "what sees pictures is left out; the file holds the language model"
ROPES = ("default", "linear", "llama3", "yarn", "dynamic")
_PERIODS = {"gemma2": 2, "gemma3_text": 6}  # of layers that look back over a window only, and one that sees all
_LARGE = {"gemma2": 46, "gemma3_text": 62}  # layers of the 27B models, whose attention llama.cpp scales otherwise


def obstacle(folder: Path) -> str | None:
    """Why the model in `folder` cannot be written as GGUF, in a sentence for people; None when it can."""
    config = read_object(folder, CONFIG)
    if isinstance(config, Fault):
        return f"{config.message}; {config.fix}."
    try:
        layout = detect(config)
        for reason in _reasons(layout.converted_config() if layout else language_part(config)):
            return f"{folder.name} cannot be written as GGUF: {reason}."
        _check_tokenizer(folder, original=layout is not None)
    except (Refused, Unsupported) as error:
        return f"{folder.name} cannot be written as GGUF: {error}."
    except DataError as error:
        return error.message
    return None


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json of the language model within a Gemma 3 that also sees; any other as it is."""
    text = config.get("text_config")
    if config.get("model_type") == SEEING and isinstance(text, Mapping):
        return {"quantization_config": config.get("quantization_config"), **text, "model_type": "gemma3_text"}
    return config


def modelfile_obstacle(folder: Path, template: str | None = None, adapter: Path | None = None) -> str | None:
    """Why Ollama cannot be told how the model in `folder` is spoken to, in a sentence; None when it can.

    `template`: a chat template's text or name, instead of the folder's own; so is the one saved with an `adapter`.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        template = (adapter / "chat_template.jinja").read_text(encoding="utf-8") if adapter else template
    try:
        modelfile_template(ChatTokenizer.from_folder(folder, template).template, drop_begin=False)
    except Unsayable as error:
        return f"The chat template of {folder.name} cannot be written for Ollama: {error}."
    except DataError:  # without a template there is nothing to say; a broken one is told where it is used
        return None
    return None


def context_length(config: Mapping[str, Any]) -> int:
    """The most tokens for which llama.cpp computes what the model does.

    Where it leaves a sliding window out (it has one for Gemma only), that is the window.
    """
    most = int(config.get("max_position_embeddings") or 2048)
    kind, window = config.get("model_type"), config.get("sliding_window")
    if kind in _PERIODS or not window or config.get("use_sliding_window") is False:
        return most
    if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        return most
    return min(most, int(window))


def layer_period(config: Mapping[str, Any]) -> int | None:
    """One layer in how many sees everything, where the others look back over a window; None for other models."""
    kind = str(config.get("model_type"))
    if kind not in _PERIODS:
        return None
    for name in ("sliding_window_pattern", "_sliding_window_pattern"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return _PERIODS[kind]


def _reasons(config: Mapping[str, Any]) -> Iterator[str]:
    kind = str(config.get("model_type", ""))[:60]
    if config.get("quantization_config"):
        yield "its weights are quantised already, and GGUF is written from 16-bit or 32-bit weights"
    elif kind not in ARCHITECTURES:
        yield f"it is of the type {kind!r}, and possible are {TITLES}"
    else:
        yield from _rope_reasons(config)
        yield from _gemma_reasons(config, kind) if kind.startswith("gemma") else _llama_reasons(config, kind)


def _rope_reasons(config: Mapping[str, Any]) -> Iterator[str]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    parts = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    for part in parts:
        kind = part.get("rope_type") or part.get("type") or "default"
        if kind not in ROPES:
            yield f"it stretches positions in a way that is not written ({str(kind)[:40]!r})"
        if any(part.get(name) for name in ("mscale", "mscale_all_dim", "attention_factor")):
            yield "it scales its attention with the stretched positions in a way that is not written"
        if (part.get("partial_rotary_factor") or 1) != 1:
            yield "it rotates only a part of each head"


def _llama_reasons(config: Mapping[str, Any], kind: str) -> Iterator[str]:
    if (config.get("hidden_act") or "silu") != "silu":
        yield f"its activation is {str(config['hidden_act'])[:40]!r}, and llama.cpp takes silu for it"
    if kind == "qwen3" and config.get("attention_bias"):
        yield "its attention has biases, which llama.cpp has no place for in this architecture"


def _gemma_reasons(config: Mapping[str, Any], kind: str) -> Iterator[str]:
    activation = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    if activation not in ("gelu_pytorch_tanh", "gelu"):
        yield f"its activation is {str(activation)[:40]!r}, and llama.cpp takes gelu for it"
    if config.get("attention_bias"):
        yield "its attention has biases, which llama.cpp has no place for in this architecture"
    if config.get("use_bidirectional_attention"):
        yield "its attention looks ahead, which llama.cpp does not do in this architecture"
    if kind == "gemma":
        return
    if kind == "gemma3_text" and (config.get("attn_logit_softcapping") or config.get("final_logit_softcapping")):
        yield "it caps its logits, which llama.cpp does not do in this architecture"
    heads, head_dim = int(config.get("num_attention_heads", 8)), int(config.get("head_dim") or 256)
    large = config.get("num_hidden_layers") == _LARGE[kind]
    expected = int(config.get("hidden_size", 2304)) // heads if large else head_dim
    if int(config.get("query_pre_attn_scalar") or 256) != expected:
        yield f"it scales its attention by {config.get('query_pre_attn_scalar')}, and llama.cpp by {expected}"
    layers, period = config.get("layer_types"), layer_period(config) or 1
    wanted = ["sliding_attention" if (n + 1) % period else "full_attention" for n in range(len(layers or ()))]
    if layers and list(layers) != wanted:
        yield "its layers with a sliding window are not those llama.cpp takes for such"


def _check_tokenizer(folder: Path, *, original: bool) -> None:
    """Raises Unsupported, or DataError for files that cannot be read."""
    if original:
        tokenizer = read_original(folder)
        vocabulary(json.loads(tokenizer.backend) if tokenizer else {})
        return
    content = read_object(folder, "tokenizer.json")
    if not isinstance(content, Fault):
        vocabulary(content)
        return
    pieces = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not pieces.is_file():
        raise Unsupported(content.message)
    try:
        algorithm = parse(pieces.read_bytes()).algorithm
    except (OSError, ValueError) as error:
        raise Unsupported(f"tokenizer.model cannot be read ({error})") from None
    if algorithm != BPE:
        raise Unsupported("its tokenizer is SentencePiece's unigrams, and only BPE is written")
