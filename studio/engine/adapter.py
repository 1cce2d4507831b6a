"""The base and the adapter a merge or a chat is given: what lies in their folders, and which run they came from.

Looks at files only, loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.chains import other_base
from studio.config import CHANGES_BASE, RunConfig
from studio.engine.failure import EngineError, model_failure
from studio.presets import ModelError, ModelRef, resolve_model
from studio.rundir import RunDir
from studio.schema import ConfigError


@dataclass(frozen=True)
class AdapterFiles:
    """A folder that holds an adapter in PEFT's format; `trained` is the run it came from, if it lies in one."""

    folder: Path
    config: dict[str, Any]
    trained: RunConfig | None


def open_base(reference: str, *, seeing: bool = False) -> ModelRef:
    """What the base reference stands for; `seeing`: also a model that sees pictures.

    Raises EngineError of kind model, field base.
    """
    try:
        return resolve_model(reference, seeing=seeing)
    except ModelError as error:
        message = error.message.removeprefix("model.model_name_or_path: ")
        raise model_failure(f"base: {message}", error.hint, "base") from error


def open_adapter(reference: str) -> AdapterFiles:
    """An adapter folder (or the run directory around it), checked.

    Raises:
        EngineError: kind model, field adapter: no such folder, incomplete, not LoRA, or a run that has no adapter.
    """
    folder = _folder(reference)
    config = _read_config(folder)
    if not (folder / "adapter_model.safetensors").is_file():
        if (folder / "adapter_model.bin").exists():
            raise model_failure(
                f"adapter: {folder.name} holds a pickle file (adapter_model.bin), which is never loaded.",
                "Import it first (convert), which reads its weights only and saves them in safetensors format.",
                "adapter",
            )
        raise _incomplete(folder, "adapter_model.safetensors")
    check_supported(folder.name, config)
    return AdapterFiles(folder, config, training_config(folder))


def check_supported(name: str, config: Mapping[str, Any], field: str = "adapter") -> None:
    """Raises EngineError, naming `field`, for an adapter that is no LoRA or fits no model but a changed one."""
    if config.get("peft_type") != "LORA":
        raise model_failure(
            f"{field}: {name} is of type {config.get('peft_type')}, and only LORA is supported.",
            "Choose a LoRA or QLoRA adapter.",
            field,
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise model_failure(
            f"{field}: {name} fits only the base weights as {start} changed them, to resume its run.",
            "Choose the adapter that the run saved at its end, which fits the original model.",
            field,
        )


def adapter_to_continue(config: RunConfig) -> AdapterFiles | None:
    """The adapter a training goes on from, or None. Raises EngineError of kind model, field model.adapter."""
    if not config.model.adapter:
        return None
    with continuing():
        files = open_adapter(config.model.adapter)
    trained_on = other_base(files.config, config.model.model_name_or_path)
    if trained_on:
        raise model_failure(
            f"model.adapter: it was trained on {trained_on}, and the base model is {config.model.model_name_or_path}.",
            f"Choose {trained_on} as the base model.",
            "model.adapter",
        )
    return files


@contextlib.contextmanager
def continuing() -> Iterator[None]:
    """What is wrong with an adapter is here said of the field model.adapter."""
    try:
        yield
    except EngineError as error:
        raise model_failure(f"model.{error.error.message}", error.error.hint, "model.adapter") from error


def _folder(reference: str) -> Path:
    try:
        folder = Path(reference).expanduser().resolve()
        exists = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # a NUL, an over-long name, an unknown ~user
        folder, exists = Path("?"), False
    if not exists:
        raise model_failure(
            f"adapter: the folder {reference!r} does not exist.", "Choose a run, or an adapter's folder.", "adapter"
        )
    if (folder / "config.yaml").is_file():
        return _of_run(RunDir(folder))
    return folder


def _of_run(run: RunDir) -> Path:
    if (run.adapter / "adapter_config.json").is_file():
        return run.adapter
    with contextlib.suppress(ConfigError):
        config = run.config()
        if isinstance(config, RunConfig) and config.method == "full":
            raise nothing_to_merge(run.model)
    raise model_failure(
        f"adapter: run {run.id} has no adapter; its state is {run.state()}.",
        "Wait until the run has finished, or resume it; or choose one of its checkpoints.",
        "adapter",
    )


def nothing_to_merge(model: Path) -> Exception:
    """A full training has no adapter."""
    return model_failure(
        "adapter: this run trained every weight (method full), so there is nothing to merge.",
        f"Its model is complete as it is: {model}.",
        "adapter",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "config.json").is_file() and (folder / "tokenizer_config.json").is_file():
            raise nothing_to_merge(folder) from None
        raise _incomplete(folder, path.name) from None
    except (OSError, ValueError) as error:
        raise model_failure(
            f"adapter: {path.name} in {folder.name} cannot be read ({str(error)[:120]}).",
            "Copy the adapter again.",
            "adapter",
        ) from error
    if not isinstance(config, dict):
        raise model_failure(f"adapter: {path.name} is not an object.", "Copy the adapter again.", "adapter")
    return config


def _incomplete(folder: Path, missing: str) -> Exception:
    return model_failure(
        f"adapter: {folder.name} is no complete adapter: {missing} is missing.",
        "Choose a run's adapter folder or a checkpoint, or copy the missing file again.",
        "adapter",
    )


def training_config(adapter: Path) -> RunConfig | None:
    """The configuration of the run an adapter folder lies in (adapter/ or checkpoints/checkpoint-N), or None."""
    for folder in (adapter.parent, adapter.parent.parent):
        if (folder / "config.yaml").is_file():
            with contextlib.suppress(ConfigError):
                config = RunDir(folder).config()
                return config if isinstance(config, RunConfig) else None
    return None
