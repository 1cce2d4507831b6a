"""Adapters with random weights, for tests of merge and chat: they change every answer, and cost no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

COMPLETE = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
}
"""The files of an adapter's folder that can be given away."""


def save_adapter(base: Path, folder: Path, *, strength: float = 1.0, template: str | None = None, **lora: Any) -> Path:
    """An adapter on every linear layer of `base`; `strength` 0 is one that changes nothing."""
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False} | lora
    wrapped: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data *= strength
    wrapped.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder
