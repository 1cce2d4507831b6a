"""Writes the result of a run: whole or not at all, usable without this project, with a card that says what it is."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase

from studio.chains import lineage
from studio.checkpoints import step_of
from studio.config import RunConfig
from studio.durable import sync, sync_tree, write_atomic
from studio.engine import fsdp, ranks, zero3
from studio.engine.best import Ending
from studio.engine.converted import layout_note
from studio.engine.model import Loaded
from studio.engine.public_names import public_name
from studio.engine.stopping import SETTINGS
from studio.events import SavedEvent
from studio.rundir import RunDir
from studio.schema import dump_yaml

CARD = "README.md"
_GENERATION: Any = GenerationConfig  # the library's own types are too loose to be checked against
SectionT = TypeVar("SectionT", bound=BaseModel)
PATHS = ("model_name_or_path", "adapter", "dataset", "validation_dataset")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def save_result(run: RunDir, config: RunConfig, loaded: Loaded, card: str) -> SavedEvent:
    """`adapter/` in PEFT's format, or `model/` when every weight was trained; each with tokenizer, template and card.

    Replaces an earlier result. Raises OSError (or safetensors' own error) when the disk is full; then the earlier
    result is still there. Every process must come here when the weights are divided; the first one writes.
    """
    whole = config.method == "full"
    target = run.model if whole else run.adapter
    event = SavedEvent(path=target.name, what="model" if whole else "adapter")
    first = ranks.is_first()
    trained = (weight for weight in loaded.model.parameters() if weight.requires_grad)
    weights = {}
    if whole:
        weights = zero3.whole_weights(loaded.model, loaded.saved_dtype, keep=first)
    elif fsdp.is_divided(loaded.model):
        weights = fsdp.trained_weights(loaded.model, keep=first)
    else:
        weights = zero3.trained_in_32_bits(loaded.model, keep=first)
    with zero3.whole([] if whole else trained):
        if first:
            _write_result(target, config, loaded, card, weights)
    return event


def _write_result(target: Path, config: RunConfig, loaded: Loaded, card: str, weights: dict[str, torch.Tensor]) -> None:
    """The folder of a result; `weights`: all of them where every one was trained, the trained ones under FSDP2."""
    with _replacing(target) as folder:
        if config.method == "full":
            _save_model(loaded, folder, weights)
        else:
            _save_adapter(loaded, folder, config.model.model_name_or_path, weights or None)
        save_tokenizer(loaded.tokenizer, folder)
        _save_generation(loaded, folder)
        (folder / CARD).write_text(card, encoding="utf-8")


def complete_checkpoint(folder: Path, config: RunConfig, loaded: Loaded, datasets: Sequence[tuple[str, str]]) -> None:
    """Everything a checkpoint lacks to be given away as it is: what ends an answer, the base by its name, a card.

    Raises OSError when the disk is full.
    """
    save_tokenizer(loaded.tokenizer, folder)
    _save_generation(loaded, folder)
    settings = folder / "adapter_config.json"
    if settings.is_file():  # PEFT writes the folder the base was loaded from
        known = json.loads(settings.read_text(encoding="utf-8"))
        known["base_model_name_or_path"] = config.model.model_name_or_path
        write_atomic(settings, json.dumps(known, indent=2, sort_keys=True))
    step = step_of(folder)
    (folder / CARD).write_text(model_card(config, datasets, Ending(step, step, early=False)), encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A tokenizer that neither pads nor cuts, its chat template byte for byte."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # encoding in batches leaves padding switched on, and it would be written to tokenizer.json
        backend.no_padding()
        backend.no_truncation()
    template = tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_bytes(template.encode("utf-8"))


def _save_generation(loaded: Loaded, folder: Path) -> None:
    """What ends an answer, and the model's own settings, also those transformers reads but refuses to write."""
    settings = loaded.model.generation_config
    try:
        settings.save_pretrained(folder)
    except ValueError:
        (folder / SETTINGS).write_text(settings.to_json_string(), encoding="utf-8")


@contextlib.contextmanager
def without_generation_settings(model: Any) -> Iterator[None]:
    """Inside, transformers can save the model whatever its generation settings are; they are written apart."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, inner.generation_config = inner.generation_config, _GENERATION()
    try:
        yield
    finally:
        inner.generation_config = kept


def rewrite_card(run: RunDir, config: RunConfig, card: str) -> None:
    """Replace the card beside the saved weights."""
    write_atomic((run.model if config.method == "full" else run.adapter) / CARD, card)


def model_card(config: RunConfig, datasets: Sequence[tuple[str, str]], ending: Ending, summary: str = "") -> str:
    """Markdown: base model, method, (name, SHA-256) of each dataset, ending, verdict and the complete configuration."""
    library = "transformers" if config.method == "full" else "peft"
    layout = layout_note(config.model.model_name_or_path)
    facts = (
        f"Base model: `{plain(public_name(config.model.model_name_or_path))}`",
        *([layout] if layout else []),
        *(f"Continued from: `{plain(run)}`" for run in continued_from(config)),
        f"Method: {config.method}",
        *(f"Dataset: `{plain(public_name(name))}`, SHA-256 `{sha256}`" for name, sha256 in datasets),
        f"Optimizer updates: {ending.steps}",
        *ending.sentences,
    )
    parts = [
        front_matter(config.model.model_name_or_path, library),
        f"# {plain(config.name) or 'Fine-tuned model'}",
        "\n".join(f"* {fact}" for fact in facts),
        *([f"## Verdict\n\n{summary}"] if summary else []),
        f"## Configuration\n\n~~~~yaml\n{dump_yaml(_public(config), full=True)}~~~~",
    ]
    return "\n\n".join(parts) + "\n"


def continued_from(config: RunConfig) -> list[str]:
    """The runs whose adapter or model this one started from; of an adapter that lies in no run, its folder's name."""
    adapter = config.model.adapter
    found = [lineage(config.model.model_name_or_path), adapter and (lineage(adapter) or Path(adapter).name)]
    return [run for run in found if run]


def front_matter(base: str, library: str) -> str:
    """The head of a card that hubs read; a base that only this machine knows is not named there."""
    known = [f"base_model: {base}"] if _HUB_ID.fullmatch(base) and not base.startswith("crucible/") else []
    return "\n".join(["---", *known, f"library_name: {library}", "pipeline_tag: text-generation", "---"])


def _public(section: SectionT) -> SectionT:
    """A configuration without the paths of this machine, in all its sections."""
    changes: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            changes[name] = _public(value)
        elif isinstance(value, list):
            changes[name] = [_public(item) if isinstance(item, BaseModel) else item for item in value]
        elif name in PATHS and isinstance(value, str):
            changes[name] = public_name(value)
    return section.model_copy(update=changes)


def plain(text: str) -> str:
    """Text for one line of Markdown, inside backquotes too."""
    return " ".join(text.replace("`", "'").split())


def _save_adapter(loaded: Loaded, folder: Path, base: str, weights: dict[str, torch.Tensor] | None) -> None:
    """The adapter, naming its base model as the run's configuration does, not by a path on this machine."""
    settings = loaded.model.active_peft_config
    path = settings.base_model_name_or_path
    settings.base_model_name_or_path = base
    try:
        with _start_as_files(loaded) as start:
            # "auto" would ask the hub about the base model
            loaded.model.save_pretrained(
                folder, save_embedding_layers=False, path_initial_model_for_weight_conversion=start, state_dict=weights
            )
    finally:
        settings.base_model_name_or_path = path


@contextlib.contextmanager
def _start_as_files(loaded: Loaded) -> Iterator[str | None]:
    """Where PEFT reads what a changed base has lost to the adapter, so that what it saves fits the original."""
    if loaded.start is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"  # PEFT takes the last part for an adapter's name
        start.mkdir()
        save_file(loaded.start, start / "adapter_model.safetensors")
        yield str(start)


def _save_model(loaded: Loaded, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """All weights, in the number format the base model was stored in."""
    dtype, model = loaded.saved_dtype, loaded.model
    cache, model.config.use_cache = model.config.use_cache, True
    model.config.dtype = dtype
    try:
        with without_generation_settings(model):
            model.save_pretrained(folder, state_dict=weights)
    finally:
        model.config.use_cache = cache


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place at the end; on any error it vanishes and `target` stays."""
    part, old = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        sync_tree(part)
        if target.exists():
            target.rename(old)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
