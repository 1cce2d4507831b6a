"""Presets by name, and what a base-model reference stands for.

A preset name follows the notes' rule `model_method_dataset[_maxlen]_eN` and is composed from one small file each in
`presets/models`, `presets/methods` and `presets/datasets`; a file holds only what differs from the defaults.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from studio.config import RunConfig
from studio.schema import ConfigError, FieldError, merge, nearest

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "presets"
BUILT_IN = {"crucible/ember": ROOT / "assets" / "models" / "ember"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TAIL = re.compile(r"^(?P<dataset>.+?)(?:_(?P<length>\d+k?))?_e(?P<epochs>\d+)$")


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


@dataclass(frozen=True)
class ModelPreset:
    """One file of presets/models."""

    name: str
    title: str
    model_name_or_path: str
    context_length: int
    licence: str
    order: int
    config: dict[str, Any]
    methods: dict[str, dict[str, Any]]


@cache
def _files(kind: str) -> dict[str, dict[str, Any]]:
    folder = PRESETS / kind
    return {p.stem: yaml.safe_load(p.read_text(encoding="utf-8")) or {} for p in sorted(folder.glob("*.yaml"))}


def models() -> dict[str, ModelPreset]:
    """Every model preset by name, the built-in one first."""
    found = [
        ModelPreset(
            name=name,
            title=data["title"],
            model_name_or_path=data["model_name_or_path"],
            context_length=data["context_length"],
            licence=data["licence"],
            order=data.get("order", 1000),
            config=data.get("config", {}),
            methods=data.get("methods", {}),
        )
        for name, data in _files("models").items()
    ]
    return {m.name: m for m in sorted(found, key=lambda m: (m.order, m.name))}


def methods() -> list[str]:
    """The names of the training methods, least memory first."""
    return sorted(_files("methods"), key=("qlora", "lora", "full").index)


def datasets() -> list[str]:
    """The names of the datasets a preset can be composed with."""
    return [name for name, data in _files("datasets").items() if "config" in data]


def list_presets(pattern: str = "") -> list[str]:
    """Every composable name at its usual three epochs that contains `pattern` (case does not matter)."""
    names = [f"{m}_{method}_{d}_e3" for m in models() for method in methods() for d in datasets()]
    return [name for name in names if pattern.lower() in name.lower()]


def _unknown(name: str) -> ConfigError:
    near = nearest(name, list_presets())
    hint = f"did you mean {near}?" if near else "`list-cfg` shows every name"
    return ConfigError(
        [FieldError("preset", f"there is no preset {name!r}; {hint}", "unknown", {"nearest": near or ""})]
    )


def _length(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    number = int(text[:-1]) * 1024 if text.endswith("k") else int(text)
    return {"data": {"max_length": number}}


def compose(name: str) -> dict[str, Any]:
    """A preset name -> nested mapping of everything it sets.

    Raises:
        ConfigError: no such name (names the nearest), or an epoch count of 0.
    """
    for model in sorted(models().values(), key=lambda m: -len(m.name)):
        for method in methods():
            head = f"{model.name}_{method}_"
            tail = _TAIL.match(name[len(head) :]) if name.startswith(head) else None
            if tail and tail["dataset"] in datasets():
                return _layers(name, model, method, tail)
    raise _unknown(name)


def _layers(name: str, model: ModelPreset, method: str, tail: re.Match[str]) -> dict[str, Any]:
    return merge(
        RunConfig,
        {"name": name, "model": {"model_name_or_path": model.model_name_or_path}},
        _files("methods")[method]["config"],
        model.config,
        model.methods.get(method, {}),
        _files("datasets")[tail["dataset"]]["config"],
        _length(tail["length"]),
        {"train": {"num_train_epochs": float(tail["epochs"])}},
    )


def model_defaults(model_name_or_path: str, method: str) -> dict[str, Any]:
    """What the presets set for a model and a method, leaving dataset and name to the caller; {} for unknown models."""
    for model in models().values():
        if model.model_name_or_path == model_name_or_path:
            return merge(RunConfig, _files("methods")[method]["config"], model.config, model.methods.get(method, {}))
    return merge(RunConfig, _files("methods")[method]["config"])


def _missing(ref: str) -> ModelError:
    near = nearest(ref, [*BUILT_IN, *(m.model_name_or_path for m in models().values())])
    hint = f"did you mean {near}?" if near else "give a built-in model, an existing folder or a hub id like name/model"
    return ModelError(f"model.model_name_or_path: the model folder {ref[:200]!r} does not exist", hint)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"model.model_name_or_path: {folder.name} has no {name}", "choose a folder in Hugging Face format"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.model_name_or_path: {name} in {folder.name} cannot be read ({error})", "copy the model again"
        ) from None
    if not isinstance(data, dict):
        raise ModelError(f"model.model_name_or_path: {name} in {folder.name} is not an object", "copy the model again")
    return data


def check_model_folder(folder: Path) -> None:
    """Raises ModelError when a model folder lacks configuration, weights (any shard) or tokenizer."""
    config = _read_json(folder, "config.json")
    if "model_type" not in config and "auto_map" not in config:
        raise ModelError(
            f"model.model_name_or_path: config.json in {folder.name} does not say its model_type",
            "copy the model again",
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = set(_read_json(folder, index.name).get("weight_map", {}).values())
        gone = sorted(s for s in shards if not (folder / str(s)).is_file())
    else:
        gone = [] if (folder / "model.safetensors").is_file() else ["model.safetensors"]
    if gone:
        raise ModelError(f"model.model_name_or_path: {folder.name} lacks {gone[0]}", "copy the missing file again")
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise ModelError(f"model.model_name_or_path: {folder.name} has no tokenizer", "copy tokenizer.json beside it")


def resolve_model(ref: str) -> ModelRef:
    """A base-model reference -> what to load.

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
        check_model_folder(folder)
        return ModelRef(ref, str(folder.resolve()), local=True)
    if exists:
        raise ModelError(f"model.model_name_or_path: {ref!r} is a file", "give the folder that holds the model")
    if ref.startswith("crucible/") or not _HUB_ID.fullmatch(ref):
        raise _missing(ref)
    return ModelRef(ref, ref, local=False)
