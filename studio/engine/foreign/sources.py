"""What a person names when they want to import an adapter, and the adapter in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from studio.chains import adapter_settings
from studio.engine.adapter import check_supported
from studio.engine.failure import EngineError, model_failure
from studio.engine.foreign.checkpoint_file import damaged, load, unreadable
from studio.engine.foreign.settings import Settings, find_settings, of_peft
from studio.engine.foreign.tensor_names import Named, named, whole_model
from studio.engine.foreign.zero_shards import assemble, is_shards

Kind = Literal["checkpoint", "shards", "folder"]
SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
SAID: dict[Kind, str] = {
    "checkpoint": "a checkpoint that torch wrote",
    "shards": "a checkpoint directory of DeepSpeed",
    "folder": "an adapter's folder",
}


@dataclass(frozen=True)
class Place:
    """Where an adapter lies: `path` is the file or folder that holds its weights."""

    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """How people call it."""
        return self.path.parent.name if self.kind == "folder" else self.path.name

    @property
    def beside(self) -> list[Path]:
        """Folders in which its configuration may lie, the nearest first."""
        inside = [self.path] if self.path.is_dir() else []
        return [*inside, self.path.parent]

    @property
    def folder(self) -> Path | None:
        """The adapter's folder, which may hold a tokenizer and a template of its own; None for a bare checkpoint."""
        return self.path.parent if self.kind == "folder" else None


@dataclass(frozen=True)
class Found:
    """An adapter as it was found: its tensors by PEFT's names, how it was trained, and what a person should know."""

    place: Place
    named: Named
    settings: Settings
    notes: list[str] = field(default_factory=list)
    weights: dict[str, torch.Tensor] | None = None
    """Of a training of every weight: the whole model; then there is no adapter."""


def find_place(reference: str) -> Place:
    """What lies at a path. Raises EngineError of kind model, field source, when nothing that is known."""
    path = Path(reference).expanduser()
    try:
        path = path.resolve()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # a NUL, an over-long name, an unknown ~user
        is_folder = is_file = False
    if is_file:
        return _of_file(path)
    if is_folder:
        try:
            return _of_folder(path)
        except OSError as error:
            raise unreadable(path, error) from error
    raise model_failure(
        f"source: {reference[:200]!r} is no file, no folder and no run.",
        "Give the checkpoint or the adapter's folder, or a run's id.",
        "source",
    )


def _of_file(path: Path) -> Place:
    if path.name in (SAFE, PICKLED):
        return Place("folder", path)
    if path.suffix == ".pt" and is_shards(path.parent):
        return Place("shards", path.parent)
    if path.suffix == ".safetensors":
        return Place("folder", path)
    return Place("checkpoint", path)


def _of_folder(folder: Path, *, pointed_to: bool = False) -> Place:
    for name in (SAFE, PICKLED):
        if (folder / name).is_file():
            return Place("folder", folder / name)
    if is_shards(folder):
        return Place("shards", folder)
    latest = None if pointed_to else _last(folder)
    if latest is not None:
        return _of_file(latest) if latest.is_file() else _of_folder(latest, pointed_to=True)
    raise _nothing_known(folder)


def _last(folder: Path) -> Path | None:
    """The checkpoint a work folder points to, as XTuner (last_checkpoint) and DeepSpeed (latest) write it."""
    for name in ("last_checkpoint", "latest"):
        try:
            named_there = Path((folder / name).read_text(encoding="utf-8").strip()).name
        except (OSError, UnicodeDecodeError):
            continue
        found = folder / named_there
        if named_there not in ("", "..") and found.exists():
            return found
    checkpoints = [path for path in folder.iterdir() if path.suffix == ".pth"]
    return checkpoints[0] if len(checkpoints) == 1 else None


def _nothing_known(folder: Path) -> EngineError:
    several = sorted(path.name for path in folder.iterdir() if path.suffix == ".pth")
    if several:
        return model_failure(
            f"source: {folder.name} holds {len(several)} checkpoints ({', '.join(several)[:120]}).",
            "Name the one to import.",
            "source",
        )
    if (folder / "adapter_config.json").is_file():
        return model_failure(
            f"source: {folder.name} is no complete adapter: {SAFE} is missing.", "Copy the folder again.", "source"
        )
    if (folder / "config.json").is_file():
        return model_failure(
            f"source: {folder.name} is a whole model, not an adapter.", "Use it as the model it is.", "source"
        )
    return model_failure(
        f"source: {folder.name} holds no adapter and no checkpoint that is known here.",
        "Choose a .pth file or folder of XTuner, a folder with adapter_config.json, or shards of DeepSpeed.",
        "source",
    )


def read(place: Place, settings: str | None) -> Found:
    """The adapter at a place; `settings` names the configuration it was trained with.

    Raises EngineError: field source (damaged, no adapter in it, a shard missing) or settings.
    """
    if place.kind == "folder":
        return _read_folder(place, settings)
    notes: list[str] = []
    state: Mapping[str, Any]
    if place.kind == "shards":
        assembled = assemble(place.path)
        state, meta, notes = assembled.tensors, assembled.meta, list(assembled.notes)
    else:
        state, meta = _state_of(place.path, load(place.path))
    known = find_settings(settings, _config_text(meta), place.beside)
    weights = whole_model(state)
    if weights is not None:
        return Found(place, Named({}, ()), known, notes, weights)
    found = named(state, place.name)
    return Found(place, found, known, [*notes, *_left_out(found)])


def _read_folder(place: Place, settings: str | None) -> Found:
    path, folder = place.path, place.path.parent
    known = find_settings(settings, None, [])
    if not settings:
        known = _own_settings(folder) or find_settings(None, None, [folder])
    check_supported(place.name, {"peft_type": "LORA"} | dict(known.lora), "source")
    state = _safetensors(path) if path.suffix == ".safetensors" else _state_of(path, load(path))[0]
    found = named(state, place.name, saved=True)
    return Found(place, found, known, _left_out(found))


def _own_settings(folder: Path) -> Settings | None:
    """adapter_config.json of a folder, with what XTuner's configuration beside it says of the conversation."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    own = adapter_settings(str(folder))
    if own is None:
        raise damaged(path, ValueError("it is no JSON object"))
    known = of_peft(own, path.name)
    if (folder / "xtuner_config.py").is_file():
        more = find_settings(str(folder / "xtuner_config.py"), None, [])
        known = replace(
            known, template=more.template, system=more.system, questions=more.questions, training=more.training
        )
    return known


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # SafetensorError is no class one can name, and the file may be anything
        raise damaged(path, error) from error


def _state_of(path: Path, content: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(tensors by name, what was written beside them) of a loaded checkpoint: of XTuner, DeepSpeed, or bare."""
    if not isinstance(content, Mapping):
        raise damaged(path, ValueError("it holds no table of tensors"))
    for key in ("state_dict", "module", "model"):
        if isinstance(content.get(key), Mapping):
            return content[key], content
    return content, {}


def _config_text(content: Mapping[str, Any]) -> str | None:
    """The text of the configuration that XTuner writes into its checkpoints."""
    meta = content.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    return text if isinstance(text, str) and text.strip() else None


def _left_out(found: Named) -> list[str]:
    """What of a checkpoint is no part of the adapter, if that is worth saying: the base's own weights are not."""
    told = [key for key in found.left if "lora_" in key or "projector" in key or "visual_encoder" in key]
    if not told:
        return []
    return [f"{len(told)} tensors that are not the language model's were left out (first {told[0]})."]


def fingerprint(place: Place) -> str:
    """SHA-256 of what was imported: of the file, or of the names and hashes of a folder's weight files."""
    if place.path.is_file():
        return _sha256(place.path)
    digest = hashlib.sha256()
    for path in sorted(place.path.glob("*.pt")):
        digest.update(f"{path.name}:{_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
