"""Files that came from a browser and that a run reads: they lie in the workspace as long as a run names them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from studio.library import folder_bytes
from studio.workspace import Workspace, slug

YOUNG_S = 3600.0
"""A folder this young may belong to a run that is just being made."""


def _parent(workspace: Workspace) -> Path:
    return workspace.path / "cache" / "uploads"


def new_upload(workspace: Workspace, stem: str) -> Path:
    """An empty folder for one upload; what no run needs any more goes first. Raises OSError."""
    parent = _parent(workspace)
    parent.mkdir(parents=True, exist_ok=True)
    sweep(workspace)
    # The end of the name is plain ASCII: it reads the same however a configuration is written.
    return Path(tempfile.mkdtemp(prefix=f"{slug(stem, 'upload')}-", dir=parent))


def sweep(workspace: Workspace, gone: Iterable[str] = ()) -> int:
    """Remove uploads that no run names; returns their bytes.

    `gone` are the configurations of runs that were deleted just now: what they name goes however young it is. Where a
    configuration cannot be read, nobody knows what it names, and nothing is removed.
    """
    folders = [folder for folder in _folders(workspace) if folder.is_dir() and not folder.is_symlink()]
    if not folders:
        return 0
    try:
        kept = "\n".join(_configurations(workspace))
    except OSError:
        return 0
    deleted, removed = "\n".join(gone), 0
    for folder in folders:
        token = folder.name.rpartition("-")[2]
        if token in kept or (token not in deleted and _newest(folder) > time.time() - YOUNG_S):
            continue
        size = folder_bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        removed += 0 if folder.exists() else size
    return removed


def _folders(workspace: Workspace) -> list[Path]:
    try:
        return list(_parent(workspace).iterdir())
    except OSError:
        return []


def _configurations(workspace: Workspace) -> Iterator[str]:
    for run in workspace.list_runs():
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            yield run.config_file.read_text(encoding="utf-8", errors="replace")


def _newest(folder: Path) -> float:
    """When something in it was written last: a large file takes its time."""
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            times.append(os.lstat(path).st_mtime)
    return max(times)
