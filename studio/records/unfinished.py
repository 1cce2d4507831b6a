"""Folders that appear whole or not at all, and locks on folders.

A folder is written under a hidden name and renamed when it is complete. The writer holds a lock on it, so that what a
killed writer left behind can be told from what is being written right now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from studio.records.errors import DataError

HALF = ".half-"
WAIT_S = 30.0
_POLL_S = 0.05
_YOUNG_S = 60.0  # between the birth of a folder and its lock lies a moment in which it looks left behind


def half_name() -> str:
    """A new hidden name."""
    return f"{HALF}{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def half_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, locked; it is removed at the end unless it was renamed. Raises OSError."""
    half = parent / half_name()
    half.mkdir(parents=True)
    try:
        with locked(half):
            yield half
    finally:
        remove(half)


def remove(folder: Path) -> None:
    """Removes a hidden folder; what cannot be removed now is found by `left_behind` later."""
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other program that asks for the same lock is at work in `folder`.

    A network disk that cannot lock is used without. Raises DataError when the lock stays taken, OSError when the
    folder is gone.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _acquire(handle):
            raise DataError(f"Another program is changing {folder.name}. Try again when it has finished.")
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):  # noqa: PTH116 - renamed or replaced while we waited
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(handle)


def left_behind(parent: Path) -> list[Path]:
    """Hidden folders nobody is writing any more."""
    return [path for path in _halves(parent) if _is_free(path)]


def clear(parent: Path) -> None:
    """Removes what writers that no longer live have left in `parent`."""
    for path in left_behind(parent):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _YOUNG_S:
                shutil.rmtree(path, ignore_errors=True)


def _acquire(handle: int) -> bool:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        except OSError:  # NFS locks only files that are open for writing
            return True


def _is_free(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _halves(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.name.startswith(HALF) and path.is_dir())
    except OSError:
        return []
