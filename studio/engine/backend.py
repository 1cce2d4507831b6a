"""Loads what the chat server serves: one base model, its adapters, and how each of them reads and writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from studio.config import QuantizationSection, RunConfig
from studio.engine.adapter import AdapterFiles, open_adapter, open_base, training_config
from studio.engine.converted import ready
from studio.engine.dialogue import BASE, ModelFacts, Options
from studio.engine.generation import Turns
from studio.engine.generation_pictures import Eyes
from studio.engine.generation_voice import Voice
from studio.engine.generation_weights import SharedWeights
from studio.engine.loading import (
    Holding,
    adapter_tokenizer,
    attach,
    check_room,
    choose_holding,
    load_base,
    load_processor,
    quiet,
)
from studio.engine.resident import Loaded, Resident
from studio.engine.stopping import saved_endings
from studio.presets import ModelRef


def open_backend(options: Options, enter: Callable[[str], None]) -> Resident:
    """Everything loaded and tried once; `enter` is told each phase, now and whenever it is loaded again.

    Raises:
        EngineError: base or adapter missing, incomplete, damaged, or not made for each other.
    """
    quiet()
    load = partial(_load, options, enter)
    return Resident(load, idle_s=options.idle_minutes * 60, with_system=options.with_system)


def _load(options: Options, enter: Callable[[str], None]) -> Loaded:
    enter("model")
    ref = ready(open_base(options.base, seeing=True), options.workspace, field="base")
    files = {name: open_adapter(path) for name, path in options.adapters.items()}
    holding = _as_trained(choose_holding(options.bits, ref), files)
    check_room(ref, holding)
    model = load_base(ref, holding)
    enter("adapter" if files else "voice")
    inner = {name: f"adapter{number}" for number, name in enumerate(files)}  # PEFT allows no dot in a name
    base_config = model.config
    if files:
        model = attach(model, {inner[name]: one for name, one in files.items()})
    voices = _voices(ref, model, files, _eyes(ref, model))
    enter("first word")
    weights = SharedWeights(model, inner)
    _warm_up(weights)
    told = _told(model, holding) | {"context_length": voices[BASE].context, "type": base_config.model_type}
    own = _system(training_config(Path(ref.path_or_id))) if ref.local else None
    systems = {BASE: own or options.base_system}
    systems |= {name: _system(one.trained) for name, one in files.items()}
    known = {name: _facts(voice, systems[name]) for name, voice in voices.items()}
    enter("ready")
    return Loaded(Turns(weights, voices, told), known, torch.cuda.empty_cache)


def _system(trained: RunConfig | None) -> str | None:
    return (trained.data.system or None) if trained else None


def _facts(voice: Voice, system: str | None) -> ModelFacts:
    template: Any = voice.tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return ModelFacts(template, system, voice.context, images=voice.eyes is not None)


def _as_trained(holding: Holding, files: dict[str, AdapterFiles]) -> Holding:
    """4 bits are packed the way the first adapter saw them in its training."""
    trained = next((one.trained for one in files.values() if one.trained), None)
    section = trained.quantization if trained else QuantizationSection()
    return Holding(holding.bits, holding.dtype, section)


def _eyes(ref: ModelRef, model: PreTrainedModel) -> Eyes | None:
    processor = load_processor(ref, model)
    if processor is None:
        return None
    wrapped: Any = model
    inner = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    return Eyes(processor, frozenset(inspect.signature(inner.forward).parameters) - {"input_ids", "attention_mask"})


def _voices(
    ref: ModelRef, model: PreTrainedModel, files: dict[str, AdapterFiles], eyes: Eyes | None
) -> dict[str, Voice]:
    tuned = {
        name: Voice(adapter_tokenizer(ref, one.folder), model, saved_endings(one.folder), eyes)
        for name, one in files.items()
    }
    base = Voice(adapter_tokenizer(ref, None), model, eyes=eyes)
    if not base.tokenizer.chat_template and tuned:  # a bare base model: asked the way its adapter was taught
        base = next(iter(tuned.values()))
    return {BASE: base, **tuned}


@torch.inference_mode()
def _warm_up(weights: SharedWeights) -> None:
    """One token from every model, so that the first question is not the first computation."""
    for name in (BASE, *weights.adapters):
        weights.select(name)
        weights.model(input_ids=torch.tensor([[0]], device=weights.model.device), use_cache=False)


def _told(model: PreTrainedModel, holding: Holding) -> dict[str, object]:
    return {
        "device": model.device.type,
        "dtype": str(holding.dtype).removeprefix("torch."),
        "bits": holding.bits,
        "parameters": model.num_parameters(),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
