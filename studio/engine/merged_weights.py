"""The sums of a merge: base weights plus what the adapter adds, computed in float32, saved in the wanted format."""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from studio import __version__
from studio.config import QuantizationSection
from studio.engine.failure import EngineError, model_failure
from studio.engine.journal import Journal
from studio.engine.loading import Holding, adapter_tokenizer, attach, blaming, count_parameters, load_base, quiet
from studio.engine.mergeplan import Plan
from studio.engine.proof import Merged, probe_prompts, probe_weights
from studio.engine.questions import ask
from studio.engine.stopping import add_to_saved, saved_endings

NAME = "merging"
_SETTINGS: Any = GenerationConfig


def build(plan: Plan, journal: Journal) -> Merged:
    """Load, ask base + adapter, merge, save. Raises EngineError when base and adapter do not fit."""
    quiet()
    compute = compute_dtype(plan)
    model = load(plan, compute)
    tokenizer = adapter_tokenizer(plan.base, plan.adapter.folder)
    traces = ask(model, tokenizer, probe_prompts(plan), journal, "base + adapter")
    journal.phase("merge", f"{plan.config.merge_base} base, {plan.config.dtype}")
    if plan.config.merge_base == "dequantized":
        model = _unpack(plan, model, compute)
    dtype: torch.dtype = getattr(torch, plan.config.dtype)
    samples = probe_weights(model, dtype)
    whole = add(model, journal)
    del model
    journal.phase("save", plan.name)
    save(plan, whole.to(dtype), tokenizer)
    shards = sorted(plan.work.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in plan.work.rglob("*") if file.is_file())
    return Merged(traces, samples, tokenizer, compute, len(shards), size)


def compute_dtype(plan: Plan) -> torch.dtype:
    """float32 when the model fits into memory that way, else the format it will be saved in."""
    with blaming("base"):
        needed = count_parameters(plan.base) * 4 * 1.25
    fits = needed < psutil.virtual_memory().available
    wanted: torch.dtype = getattr(torch, plan.config.dtype)
    return torch.float32 if fits else wanted


def load(plan: Plan, compute: torch.dtype) -> PreTrainedModel:
    """Base and adapter, not yet merged, on the CPU: packed in 4 bits if those are what is merged into."""
    bits = 4 if plan.config.merge_base == "dequantized" else 16
    model = load_base(plan.base, Holding(bits, compute, _packing(plan)), device="cpu")
    return attach(model, {NAME: plan.adapter})


def _packing(plan: Plan) -> QuantizationSection:
    """4 bits as in the training, computed in the format of everything else here."""
    section = plan.adapter.trained.quantization if plan.adapter.trained else QuantizationSection()
    return section.model_copy(update={"bnb_4bit_compute_dtype": "auto"})


def _unpack(plan: Plan, model: Any, compute: torch.dtype) -> PreTrainedModel:
    """The same model with its 4-bit layers written out, the adapter on it again."""
    plain = model.unload()
    plain = plain.dequantize(dtype=compute)
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    return attach(plain, {NAME: plan.adapter})


def add(model: Any, journal: Journal) -> Any:
    """Add every adapted layer's change to its weights, one layer at a time in float32; returns the plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for done, (name, layer) in enumerate(layers, start=1):
        _add_layer(name, layer)
        journal.progress(done, len(layers), "layers")
    with warnings.catch_warnings():  # it finds every layer merged already, and says so each time
        warnings.simplefilter("ignore")
        return model.merge_and_unload()


def _add_layer(name: str, layer: Any) -> None:
    weight = layer.get_base_layer().weight
    kept = weight.dtype
    weight.data = weight.data.float()
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        place = name.removeprefix("base_model.model.")
        raise model_failure(
            f"adapter: its change to layer {place} is not a number.",
            "The training has blown up; use an earlier checkpoint or train again with a lower learning rate.",
            "adapter",
        ) from error
    merged = layer.get_base_layer().weight
    merged.data = merged.data.to(kept)


def save(plan: Plan, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Everything a model folder needs, into the working folder."""
    settings, model.generation_config = model.generation_config, _SETTINGS()
    try:
        model.save_pretrained(plan.work, max_shard_size=plan.config.max_shard_size)
    except ValueError as error:
        raise _bad_shard_size(plan, error) from error
    _copy_generation_config(plan, settings)
    template = tokenizer.chat_template
    tokenizer.save_pretrained(plan.work)
    if isinstance(template, str):  # written as it was, byte for byte
        (plan.work / "chat_template.jinja").write_bytes(template.encode("utf-8"))
    (plan.work / "README.md").write_text(model_card(plan), encoding="utf-8")
    for file in plan.work.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # transformers writes files nobody else can read


def _bad_shard_size(plan: Plan, error: ValueError) -> EngineError:
    return model_failure(
        f"max_shard_size: the model cannot be saved in files of {plan.config.max_shard_size} ({str(error)[:160]}).",
        "Choose another size, like 2GB.",
        "max_shard_size",
    )


def _copy_generation_config(plan: Plan, settings: GenerationConfig | None) -> None:
    """The base's own file: transformers refuses to write some that it reads without complaint.

    Added is what ended the answers the adapter was trained on.
    """
    source = cached_file(
        plan.base.path_or_id,
        "generation_config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if source:
        shutil.copyfile(source, plan.work / "generation_config.json")
    elif settings is not None:
        settings.save_pretrained(plan.work)
    add_to_saved(plan.work, saved_endings(plan.adapter.folder))


def model_card(plan: Plan) -> str:
    """README.md of the merged model: what it is made of. No path of this machine goes into it."""
    base = plan.base.ref if not Path(plan.base.ref).is_absolute() else Path(plan.base.ref).name
    trained = plan.adapter.trained
    made_from = {"original": "the original weights", "dequantized": "the 4-bit weights, unpacked"}
    lines = [
        "---",
        *([f"base_model: {base}"] if not plan.base.local else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [crucible, merged]",
        "---",
        "",
        f"# {plan.name}",
        "",
        f"`{base}` with a LoRA adapter merged into it by Crucible {__version__} on {time.strftime('%Y-%m-%d')}.",
        "",
        f"* Merged into {made_from[plan.config.merge_base]}, saved as {plan.config.dtype}.",
        *([f"* Layout: {plan.layout}."] if plan.layout else []),
        f"* Adapter: rank {plan.adapter.config.get('r')}, alpha {plan.adapter.config.get('lora_alpha')}.",
        *([f"* Training: {trained.method}, dataset `{Path(trained.data.dataset).name}`."] if trained else []),
        "",
        "The licence and the limits of the base model apply.",
        "",
    ]
    return "\n".join(lines)
