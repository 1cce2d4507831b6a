"""Writes the result of a run: whole or not at all, usable without this project, with a card that says what it is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from studio.chains import lineage
from studio.config import RunConfig
from studio.durable import sync, sync_tree, write_atomic
from studio.engine.best import Ending
from studio.engine.converted import layout_note
from studio.engine.model import Loaded
from studio.events import SavedEvent
from studio.rundir import RunDir
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


def model_card(config: RunConfig, datasets: Sequence[tuple[str, str]], ending: Ending, summary: str = "") -> str:
    """Markdown: base model, method, (name, SHA-256) of each dataset, ending, verdict and the complete configuration."""
    library = "transformers" if config.method == "full" else "peft"
    layout = layout_note(config.model.model_name_or_path)
    facts = (
        f"Base model: `{_plain(config.model.model_name_or_path)}`",
        *([layout] if layout else []),
        *(f"Continued from: `{_plain(run)}`" for run in continued_from(config)),
        f"Method: {config.method}",
        *(f"Dataset: `{_plain(name)}`, SHA-256 `{sha256}`" for name, sha256 in datasets),
        f"Optimizer updates: {ending.steps}",
        *ending.sentences,
    )
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n---",
        f"# {_plain(config.name) or 'Fine-tuned model'}",
        "\n".join(f"* {fact}" for fact in facts),
        *([f"## Verdict\n\n{summary}"] if summary else []),
        f"## Configuration\n\n~~~~yaml\n{dump_yaml(config, full=True)}~~~~",
    ]
    return "\n\n".join(parts) + "\n"


def continued_from(config: RunConfig) -> list[str]:
    """The runs whose adapter or model this one started from; of an adapter that lies in no run, its folder's name."""
    adapter = config.model.adapter
    found = [lineage(config.model.model_name_or_path), adapter and (lineage(adapter) or Path(adapter).name)]
    return [run for run in found if run]


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _save_adapter(loaded: Loaded, folder: Path, base: str) -> None:
    """The adapter, naming its base model as the run's configuration does, not by a path on this machine."""
    settings = loaded.model.active_peft_config
    path = settings.base_model_name_or_path
    settings.base_model_name_or_path = base
    try:
        with _start_as_files(loaded) as start:
            # "auto" would ask the hub about the base model
            loaded.model.save_pretrained(
                folder, save_embedding_layers=False, path_initial_model_for_weight_conversion=start
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
