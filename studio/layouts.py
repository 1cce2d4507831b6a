"""Which model families are read without their own code, and which are not; looks at config.json only.

Some families are known architectures in another arrangement of weights: their original folders are converted exactly
while loading (`studio.engine.converted`). Others compute something no installed architecture does: those need code of
their own, which is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.layout_configs import CONVERTERS, Config, Refused


@dataclass(frozen=True)
class Family:
    """One `model_type` that the installed transformers does not know.

    `becomes` is the architecture it is converted to, empty for one that needs its own code; `template` names the chat
    template for folders that bring none; `note` says what is worth knowing about the conversion, or why there is none.
    """

    key: str
    title: str
    becomes: str = ""
    template: str = ""
    note: str = ""


FAMILIES = {
    family.key: family
    for family in (
        Family(
            "internlm2", "InternLM2, InternLM2.5", "llama", "internlm2_chat", "queries, keys and values in one matrix"
        ),
        Family("internlm", "InternLM", "llama", "internlm_chat", "biases on every attention projection"),
        Family(
            "baichuan",
            "Baichuan-7B, Baichuan2-7B",
            "llama",
            "baichuan2_chat",
            "Baichuan2's output layer is normalised once; the 13B models (ALiBi) need their own code",
        ),
        Family("qwen", "Qwen (first)", "qwen2", "qwen_chat", "the same up to the trained length, 8192 tokens for most"),
        Family("chatglm", "ChatGLM2, ChatGLM3, GLM-4", "glm", "chatglm3", "the first ChatGLM-6B needs its own code"),
        Family(
            "minicpm", "MiniCPM 1B, 2B", "granite", "minicpm", "MiniCPM4 and the mixture of experts need their own code"
        ),
        Family(
            "deepseek",
            "DeepSeek MoE",
            "qwen2_moe",
            "deepseek_moe",
            "the shared experts under a gate that is always open",
        ),
        Family(
            "aquila",
            "Aquila, Aquila2",
            "llama",
            "",
            "the same unless an attention score passes ±1024, where Aquila cuts it",
        ),
        Family("moss", "MOSS", note="it computes as CodeGen does, but no conversion has been checked"),
    )
}


@dataclass(frozen=True)
class Layout:
    """An original layout that is converted: the family and the configuration it was found in."""

    family: Family
    config: Config

    def converted_config(self) -> Config:
        """config.json of the converted model. Raises Refused as `detect`."""
        return CONVERTERS[self.family.key](self.config)

    @property
    def sentence(self) -> str:
        """What will happen to the model, for people."""
        name = self.family.becomes.replace("_", " ")
        return f"stored in the layout of {self.family.title}; it is converted exactly to {name} when it is first loaded"


def detect(config: Mapping[str, Any]) -> Layout | None:
    """The original layout a config.json describes; None for one that transformers reads itself.

    Raises:
        Refused: the model needs code of its own, or its config.json lacks something.
    """
    family = FAMILIES.get(str(config.get("model_type", "")).lower())
    if family is None:
        return None
    if not family.becomes:
        raise Refused(family.note)
    if config.get("quantization_config"):
        raise Refused("its weights are quantised already; take the original 16-bit model")
    layout = Layout(family, dict(config))
    layout.converted_config()
    return layout


def read_layout(folder: Path) -> Layout | None:
    """The same for a model folder; None when it has no readable config.json. Raises Refused."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return detect(config) if isinstance(config, dict) else None


def layouts_table() -> str:
    """A Markdown table of the families, for the documentation."""
    lines = ["| `model_type` | Models | Loading | Read as | Worth knowing |", "| --- | --- | --- | --- | --- |"]
    for key, family in FAMILIES.items():
        loading, target = ("converted", f"`{family.becomes}`") if family.becomes else ("remote code", "–")
        lines.append(f"| `{key}` | {family.title} | {loading} | {target} | {family.note} |")
    return "\n".join(lines) + "\n"
