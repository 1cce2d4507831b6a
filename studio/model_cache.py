"""Models that the hubs' own clients have downloaded: where they keep them, and what is there. Nothing is copied.

Hugging Face's folder is read by its client. ModelScope's client needs not be installed: its folders are plain ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.model_files import CONFIG

Hub = Literal["huggingface", "modelscope"]
MAIN = "main"


@dataclass(frozen=True)
class Cached:
    """One downloaded state of a model: its id, folder and bytes on disk.

    `revision` is empty for the one meant by the id alone, else a branch or a commit.
    """

    id: str
    path: Path
    hub: Hub
    size_bytes: int
    revision: str = ""


def cached_model(model_id: str) -> Path | None:
    """The folder of a downloaded model, maybe an incomplete one: Hugging Face's main revision, else ModelScope's."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_id, CONFIG, cache_dir=hub_folder())
    except (HFValidationError, OSError):
        return None
    if isinstance(found, str):
        return Path(found).parent
    return next((folder for folder in _modelscope_folders() if modelscope_id(folder) == model_id), None)


def cached_models() -> Iterator[Cached]:
    """Everything the hubs' clients have downloaded that could be a language model."""
    yield from _huggingface()
    for folder in _modelscope_folders():
        yield Cached(modelscope_id(folder), folder, "modelscope", sum(file.stat().st_size for file in _files(folder)))


def _huggingface() -> Iterator[Cached]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(hub_folder()).repos
    except (CacheNotFound, ValueError, OSError):
        return
    for repository in sorted((item for item in repositories if item.repo_type == "model"), key=lambda r: r.repo_id):
        for state in sorted(repository.revisions, key=lambda item: item.commit_hash):
            names = {file.file_name for file in state.files}
            if names and "adapter_config.json" not in names:
                named = "" if MAIN in state.refs else min(state.refs, default=state.commit_hash)
                yield Cached(repository.repo_id, state.snapshot_path, "huggingface", state.size_on_disk, named)


def modelscope_root() -> Path:
    """ModelScope's cache folder."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope").expanduser()


def _modelscope_folders() -> Iterator[Path]:
    """Every model folder under it, in any of the arrangements its versions have had."""
    root = modelscope_root()
    for base in (root, root / "models", root / "hub", root / "hub" / "models"):
        for pattern in (f"[!.]*/*/{CONFIG}", f"[!.]*--*/snapshots/*/{CONFIG}"):
            yield from sorted(file.parent for file in base.glob(pattern))


def modelscope_id(folder: Path) -> str:
    """owner/name of a folder in ModelScope's cache; dots may be written as three underscores there."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.replace("--", "/", 1)
    return f"{folder.parent.name}/{folder.name.replace('___', '.')}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def hub_folder() -> Path:
    """The folder Hugging Face's client downloads to."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def offline() -> bool:
    """Whether the hubs are switched off (HF_HUB_OFFLINE); no look-up is made."""
    words = (os.environ.get(name, "").strip().lower() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(word in ("1", "on", "yes", "true") for word in words)
