"""Folders that `datasets.save_to_disk` wrote: which of their files hold the rows. Read without that library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studio.records.errors import DataError, nearest, shown

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_LARGEST_STATE = 4 * 1024 * 1024
_FIELD = "data.split"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def split_names(folder: Path, name: str) -> list[str]:
    """The splits of a folder called `name`; [] when it is no saved dataset or has none. Raises DataError."""
    if not (folder / _SPLITS).is_file():
        return []
    splits = _state(folder / _SPLITS, name).get("splits")
    return [str(found) for found in splits if _is_plain(found)] if isinstance(splits, list) else []


def saved_parts(folder: Path, name: str, split: str | None = None) -> tuple[list[Path], str]:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote, and a sentence about the splits left out or "".

    `split` chooses; else it is `train` or the only one. Raises DataError naming the splits or what is missing.
    """
    chosen, note = folder, ""
    if (folder / _SPLITS).is_file():
        names = split_names(folder, name)
        found = _chosen_split(names, name, split)
        chosen = folder / found
        if chosen.is_symlink():
            raise DataError(f"{shown(found)} in {name} is a link. Copy the whole folder again.", field=_FIELD)
        others = ", ".join(f"'{shown(other, 40)}'" for other in names if other != found)
        note = f"Only the split '{shown(found, 40)}' of {name} is read, not {others}." if others else ""
    parts = _state(chosen / _STATE, name).get("_data_files")
    files = [part.get("filename") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if not files or not all(_is_plain(file) for file in files):
        raise DataError(f"{name} is a saved dataset whose {_STATE} names no data files. Save the dataset again.")
    paths = [chosen / str(file) for file in files]
    missing = next((path.name for path in paths if not path.is_file() or path.is_symlink()), None)
    if missing:
        raise DataError(f"{name} is a saved dataset without its file {shown(missing)}. Copy the whole folder again.")
    return paths, note


def _chosen_split(names: list[str], name: str, split: str | None) -> str:
    listed = ", ".join(f"'{shown(found, 40)}'" for found in names[:12])
    if not names:
        raise DataError(f"{name} is a saved dataset whose {_SPLITS} names no splits. Save the dataset again.")
    if split is not None and split not in names:
        raise DataError(
            f"{name} has no split '{shown(split, 40)}'. It has {listed}.{nearest(split, names)}", field=_FIELD
        )
    if split is None and len(names) > 1 and "train" not in names:
        raise DataError(f"{name} has the splits {listed}. Choose one of them.", field=_FIELD)
    return split or (names[0] if len(names) == 1 else "train")


def _state(path: Path, name: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_LARGEST_STATE))
    except FileNotFoundError:
        where = shown(f"{path.parent.name}/{path.name}")
        raise DataError(f"{name} is a saved dataset without its file {where}. Copy the whole folder again.") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path.name} of the saved dataset {name} is damaged. Save the dataset again.")
    return found


def _is_plain(name: Any) -> bool:
    """Whether a name from a file is that of something right beside it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\x00")
