"""Writes the result of a run: whole or not at all, usable without this project, with a card that says what it is."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from studio.config import RunConfig
from studio.engine.model import Loaded
from studio.events import SavedEvent
from studio.rundir import RunDir, write_atomic
from studio.schema import dump_yaml

CARD = "README.md"


def save_result(run: RunDir, config: RunConfig, loaded: Loaded, card: str) -> SavedEvent:
    """`adapter/` in PEFT's format, or `model/` when every weight was trained; each with tokenizer, template and card.

    Replaces an earlier result. Raises OSError (or safetensors' own error) when the disk is full; then the earlier
    result is still there.
    """
    whole = config.method == "full"
    target = run.model if whole else run.adapter
    with _replacing(target) as folder:
        if whole:
            _save_model(loaded, folder)
        else:
            _save_adapter(loaded, folder, config.model.model_name_or_path)
        # Encoding in batches leaves padding switched on, and it would be written to tokenizer.json.
        loaded.tokenizer.backend_tokenizer.no_padding()
        loaded.tokenizer.backend_tokenizer.no_truncation()
        loaded.tokenizer.save_pretrained(folder)
        loaded.model.generation_config.save_pretrained(folder)
        (folder / CARD).write_text(card, encoding="utf-8")
    return SavedEvent(path=target.name, what="model" if whole else "adapter")


def rewrite_card(run: RunDir, config: RunConfig, card: str) -> None:
    """Replace the card beside the saved weights."""
    write_atomic((run.model if config.method == "full" else run.adapter) / CARD, card)


def model_card(config: RunConfig, dataset_sha256: str, steps: int, summary: str = "") -> str:
    """Markdown: base model, method, data fingerprint, steps, verdict and the complete configuration."""
    library = "transformers" if config.method == "full" else "peft"
    facts = (
        f"Base model: `{_plain(config.model.model_name_or_path)}`",
        f"Method: {config.method}",
        f"Dataset: `{_plain(config.data.dataset)}`, SHA-256 `{dataset_sha256}`",
        f"Optimizer updates: {steps}",
    )
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n---",
        f"# {_plain(config.name) or 'Fine-tuned model'}",
        "\n".join(f"* {fact}" for fact in facts),
        *([f"## Verdict\n\n{summary}"] if summary else []),
        f"## Configuration\n\n~~~~yaml\n{dump_yaml(config, full=True)}~~~~",
    ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _save_adapter(loaded: Loaded, folder: Path, base: str) -> None:
    """The adapter, naming its base model as the run's configuration does, not by a path on this machine."""
    settings = loaded.model.active_peft_config
    path = settings.base_model_name_or_path
    settings.base_model_name_or_path = base
    try:
        # "auto" would ask the hub about the base model
        loaded.model.save_pretrained(folder, save_embedding_layers=False)
    finally:
        settings.base_model_name_or_path = path


def _save_model(loaded: Loaded, folder: Path) -> None:
    """All weights, in the number format the base model was stored in."""
    dtype, model = loaded.saved_dtype, loaded.model
    weights = {
        name: value.to(dtype) if value.is_floating_point() and dtype is not torch.float32 else value
        for name, value in model.state_dict().items()
    }
    cache, model.config.use_cache = model.config.use_cache, True
    model.config.dtype = dtype
    try:
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
        if target.exists():
            target.rename(old)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
