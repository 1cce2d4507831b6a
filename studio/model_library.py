"""The base models that are on this machine already: built in, downloaded, made here, or in a folder somebody named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from studio.model_cache import cached_model, cached_models
from studio.model_files import CONFIG, Fault, facts, faults
from studio.presets import BUILT_IN, ModelError, models
from studio.workspace import Workspace

FOLDERS = "CRUCIBLE_MODELS"
"""Environment variable: folders of models, or of folders of models, divided as in PATH."""
UNPROVEN = ".unproven"
"""In the name of a folder that is kept although its proof failed."""
Where = Literal["built-in", "workspace", "folder", "huggingface", "modelscope"]


@dataclass(frozen=True)
class OnDisk:
    """One model on this machine; `value` is what a configuration names it by, `problem` why it cannot be used."""

    id: str
    value: str
    path: Path
    where: Where
    size_bytes: int
    kind: str
    dtype: str
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether it can be trained on."""
        return not self.problem

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"path": str(self.path), "complete": self.complete}


def list_models(workspace: Workspace) -> list[OnDisk]:
    """Every model on this machine, a folder once, however many ways lead to it."""
    found: dict[Path, OnDisk] = {}
    for model in (*_built_in(), *_made_here(workspace), *_named_folders(), *_downloaded()):
        found.setdefault(model.path.resolve(), model)
    return list(found.values())


def choices(workspace: Workspace) -> list[tuple[str, str]]:
    """(label, value) of everything a form can offer: the complete models on this machine, then the known ones."""
    here = [model for model in list_models(workspace) if model.complete]
    titles = {model.model_name_or_path: model.title for model in models().values()}
    offered = [(titles.get(model.value, model.id), model.value) for model in here]
    taken = {model.value for model in here}
    return offered + [(title, value) for value, title in titles.items() if value not in taken]


def folder_of(reference: str) -> Path:
    """The folder of a built-in or downloaded model or of a path. Raises ModelError when there is none."""
    folder = BUILT_IN.get(reference) or Path(reference).expanduser()
    try:
        there = folder.is_dir()
    except (OSError, ValueError):  # a name no folder can have
        there = False
    cached = None if there else cached_model(reference)
    if not there and cached is None:
        raise ModelError(f"the folder {reference[:200]!r} does not exist", "check the path")
    return cached or folder


def check(reference: str) -> list[Fault]:
    """Everything that keeps a folder or downloaded model from being used; nothing for a good one. Raises ModelError."""
    return list(faults(folder_of(reference)))


def _built_in() -> Iterator[OnDisk]:
    for name, folder in BUILT_IN.items():
        yield _described(folder, "built-in", name, name)


def _made_here(workspace: Workspace) -> Iterator[OnDisk]:
    """Merged and exported models, models that runs trained whole, and what was put into models/ by hand."""
    for parent in (workspace.exports, workspace.path / "models"):
        yield from (_described(folder, "workspace") for folder in _folders(parent))
    for run in workspace.list_runs():
        if (run.model / CONFIG).is_file():
            yield _described(run.model, "workspace", run.id)


def _named_folders() -> Iterator[OnDisk]:
    for text in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        named = Path(text).expanduser()
        if (named / CONFIG).is_file():
            yield _described(named, "folder")
        yield from (_described(folder, "folder") for folder in _folders(named))


def _downloaded() -> Iterator[OnDisk]:
    for cached in cached_models():
        name = f"{cached.id} ({cached.revision})" if cached.revision else cached.id
        value = str(cached.path) if cached.revision else cached.id
        yield _described(cached.path, cached.hub, name, value, cached.size_bytes)


def _folders(parent: Path) -> list[Path]:
    """The model folders directly in a folder; links are followed."""
    try:
        return [path for path in results(parent) if (path / CONFIG).is_file()]
    except OSError:
        return []


def results(parent: Path) -> list[Path]:
    """What lies in a folder, by name: nothing that is being made there or has failed its proof. Raises OSError."""
    return sorted(path for path in parent.iterdir() if not path.name.startswith(".") and UNPROVEN not in path.name)


def _described(folder: Path, where: Where, name: str = "", value: str = "", size: int = 0) -> OnDisk:
    known, fault = facts(folder), next(faults(folder), None)
    return OnDisk(
        id=name or folder.name,
        value=value or str(folder.absolute()),
        path=folder,
        where=where,
        size_bytes=size or _size(folder),
        kind=known.model_type,
        dtype=known.dtype,
        problem=fault.message if fault else "",
    )


def _size(folder: Path) -> int:
    """Bytes of the files directly in a folder."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone, or a link to nothing
            continue
    return total
