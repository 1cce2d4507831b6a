"""Which models can be written as GGUF, the format of llama.cpp and its relatives; reads small files of a folder only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.layout_configs import Refused
from studio.layouts import detect
from studio.model_files import CONFIG, Fault, read_object

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
ROPES = ("default", "linear", "llama3", "yarn", "dynamic")


def obstacle(folder: Path) -> str | None:
    """Why the model in `folder` cannot be written as GGUF, in a sentence for people; None when it can."""
    config = read_object(folder, CONFIG)
    if isinstance(config, Fault):
        return f"{config.message}; {config.fix}."
    try:
        layout = detect(config)
        config = layout.converted_config() if layout else config
    except Refused as error:
        return f"{folder.name} cannot be written as GGUF: {error}."
    return _config_obstacle(config, folder.name)


def _config_obstacle(config: Mapping[str, Any], name: str) -> str | None:
    kind = str(config.get("model_type", ""))[:60]
    if config.get("quantization_config"):
        return f"The weights of {name} are quantised already; GGUF is written from 16-bit or 32-bit weights."
    if kind not in ARCHITECTURES:
        return f"Models of the type {kind!r} are not written as GGUF here; possible are {TITLES}."
    return None
