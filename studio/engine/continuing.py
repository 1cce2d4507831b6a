"""A training that goes on from an adapter: the same weights and layers, a fresh optimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from studio.config import LoraSection
from studio.engine.adapter import AdapterFiles, continuing
from studio.engine.loading import blaming, check_all_layers, check_fits
from studio.engine.model import Loaded


def with_adapter(loaded: Loaded, files: AdapterFiles, section: LoraSection) -> Loaded:
    """The same model with an adapter to be trained further; of `section` only the dropout counts.

    Raises EngineError of kind model, field model.adapter: damaged, or of another base model.
    """
    from peft import LoraConfig, PeftModel

    with continuing():
        check_fits(loaded.model, files)
        with blaming("adapter"):
            settings: Any = LoraConfig.from_pretrained(str(files.folder))
            settings.lora_dropout = section.lora_dropout
            wrapped = PeftModel.from_pretrained(loaded.model, str(files.folder), is_trainable=True, config=settings)
        check_all_layers(wrapped, "default", files)
    return replace(loaded, model=wrapped)
