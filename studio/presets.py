"""Presets by name, and what a base-model reference stands for.

A preset name follows the notes' rule `model_method_dataset[_maxlen]_eN` and is composed from small data files
(`studio.preset_files`) by a grammar (`studio.preset_names`); each file holds only what differs from the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.config import RunConfig
from studio.model_cache import cached_model
from studio.model_files import faults
from studio.preset_files import PRESETS as PRESETS
from studio.preset_files import Library, ModelPreset, library
from studio.preset_names import PresetName, all_names, read_name
from studio.schema import merge, nearest

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = {"crucible/ember": ROOT / "assets" / "models" / "ember"}
MODEL_FIELD = "model.model_name_or_path"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class ModelError(ValueError):
    """A base model cannot be used: `message` says what is wrong, `hint` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}")
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class ModelRef:
    """A base model: `path_or_id` is what transformers loads, `local` says whether it is a folder on this machine."""

    ref: str
    path_or_id: str
    local: bool


def models() -> dict[str, ModelPreset]:
    """Every model preset by name, the built-in one first."""
    return library().models


def methods() -> list[str]:
    """The names of the training methods, least memory first."""
    return list(library().methods)


def datasets() -> list[str]:
    """The names of the datasets a preset can be composed with."""
    return list(library().datasets)


def list_presets(pattern: str = "") -> list[str]:
    """Every composable name, at the usual epochs of its dataset, that contains `pattern` (case does not matter)."""
    return [name for name in all_names(library()) if pattern.lower() in name.lower()]


def compose(name: str, parts: Library | None = None) -> dict[str, Any]:
    """A preset name -> nested mapping of everything it sets.

    Raises:
        ConfigError: no such name (names the nearest three), or a data file that is wrong.
    """
    parts = parts or library()
    return _layers(read_name(name, parts), parts)


def notes(name: str) -> tuple[str, ...]:
    """What a preset name leaves out or cannot do here, one sentence each. Raises ConfigError as `compose`."""
    return read_name(name, library()).notes


def _layers(read: PresetName, parts: Library) -> dict[str, Any]:
    """From the general to the particular: method, layer, model, dataset, then the suffixes of the name."""
    model, method, how = read.model, read.method.name, read.dataset.preset
    layer = parts.layers.get(how.layer or "")
    settings: list[Mapping[str, Any]] = [
        {"name": read.key, "model": {"model_name_or_path": model.model_name_or_path, "chat_template": model.template}},
        read.method.config,
        *(layer.settings(method) if layer else ()),
        *model.settings(method),
        *(model.xtuner.settings(method) if layer else ()),
        read.dataset.config,
        how.lengths.get(read.length or 0, {}),
        {"data": {"max_length": read.length}} if read.length else {},
        how.gpus.get(read.gpus or 0, {}),
        layer.names.get(read.key, {}) if layer else {},
        {"train": {"num_train_epochs": float(read.epochs)}},
    ]
    return merge(RunConfig, *(_with_prompts(part, parts.prompts) for part in settings))


def _with_prompts(settings: Mapping[str, Any], prompts: Mapping[str, str]) -> dict[str, Any]:
    """`system_prompt: NAME` in the data section and its sources becomes the system prompt of that name."""
    result = dict(settings)
    if "system_prompt" in result:
        result["system"] = prompts[result.pop("system_prompt")]
    if isinstance(result.get("data"), Mapping):
        result["data"] = _with_prompts(result["data"], prompts)
    if "sources" in result:
        result["sources"] = [_with_prompts(source, prompts) for source in result["sources"]]
    return result


def model_named(model_name_or_path: str) -> ModelPreset | None:
    """The preset of a model by what it is loaded from; None for models nobody described."""
    return next((model for model in models().values() if model.model_name_or_path == model_name_or_path), None)


def model_defaults(model_name_or_path: str, method: str) -> dict[str, Any]:
    """What the presets set for a model and a method, leaving dataset and name to the caller."""
    model, base = model_named(model_name_or_path), library().methods[method].config
    if model is None:
        return merge(RunConfig, base)
    template = {"model": {"chat_template": model.template}} if model.template else {}
    return merge(RunConfig, base, template, *model.settings(method))


def _missing(ref: str) -> ModelError:
    near = nearest(ref, [*BUILT_IN, *(model.model_name_or_path for model in models().values())])
    hint = f"did you mean {near}?" if near else "give a built-in model, an existing folder or a hub id like name/model"
    return ModelError(f"{MODEL_FIELD}: the model folder {ref[:200]!r} does not exist", hint)


def check_model_folder(folder: Path, *, seeing: bool = False) -> None:
    """Raises ModelError when a model folder cannot be used (see `studio.model_files.faults`)."""
    for fault in faults(folder, seeing=seeing):
        raise ModelError(f"{MODEL_FIELD}: {fault.message}", fault.fix)


def resolve_model(ref: str, *, seeing: bool = False) -> ModelRef:
    """A base-model reference -> what to load; `seeing`: also a model that sees pictures.

    Raises:
        ModelError: a folder that is missing or incomplete, or text that is neither a folder nor a hub id.
    """
    built_in = BUILT_IN.get(ref)
    folder = built_in or Path(ref).expanduser()
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError):  # a NUL or an over-long name
        is_folder = exists = False
    if is_folder:
        if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
            raise ModelError(
                f"{MODEL_FIELD}: the run {folder.name} left no model",
                "go on from its adapter (model.adapter), merge that first, or wait until the run has finished",
            )
        check_model_folder(folder, seeing=seeing)
        return ModelRef(ref, str(folder.resolve()), local=True)
    if exists:
        raise ModelError(f"{MODEL_FIELD}: {ref!r} is a file", "give the folder that holds the model")
    if ref.startswith("crucible/") or not _HUB_ID.fullmatch(ref):
        raise _missing(ref)
    downloaded = cached_model(ref)
    if downloaded is not None and not any(faults(downloaded, seeing=seeing)):
        return ModelRef(ref, str(downloaded), local=True)
    return ModelRef(ref, ref, local=False)
