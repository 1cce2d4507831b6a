"""Opens any file of rows people have; the one place that knows which reader belongs to which file."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable
from pathlib import Path

from studio.records.errors import DataError, shown
from studio.records.file_types import SUFFIXES, check_content, reader_of
from studio.records.files_csv import CsvRows
from studio.records.files_excel import SheetRows
from studio.records.files_json import open_json
from studio.records.files_text import FolderRows, TextRows
from studio.records.rowstream import Entry, Row, RowStream, fault_of
from studio.records.saved_dataset import is_saved_dataset, saved_parts
from studio.records.textfile import FAULTS

__all__ = ["SUFFIXES", "Entry", "Row", "RowStream", "head", "open_rows"]


def open_rows(
    path: Path, *, split: str | None = None, sheet: str | None = None, inside: Path | None = None
) -> RowStream:
    """The rows of a file or of a folder of texts or a saved dataset.

    `split` chooses in a saved dataset, `sheet` in a workbook. With `inside` the path, links followed, must lie in that
    folder. Raises DataError for whatever can be known without reading the whole file.
    """
    name = shown(path.name)
    try:
        real = _existing(path, name, inside)
        mode = real.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_folder(real, name, split)
        if not stat.S_ISREG(mode):
            raise DataError(f"{name} is not a file but a pipe, socket or device. Choose a file.")
        # The name of a link counts, not that of its target: download caches keep files under names without suffix.
        file = path.expanduser()
        reader = reader_of(file, name)
        if real.stat().st_size == 0:
            raise DataError(f"{name} is empty (0 bytes). Choose a file with at least one row.")
        check_content(file, name, reader)
        if reader == "xlsx":
            return SheetRows(file, name, sheet)
        return _OPENERS[reader](file, name)
    except (*FAULTS, ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read: {fault_of(error)}. Check the file and its permissions.") from None


def head(stream: RowStream, count: int) -> list[Entry]:
    """The first `count` rows, skipped ones included."""
    return list(itertools.islice(stream, count))


def _existing(path: Path, name: str, inside: Path | None) -> Path:
    """The path with all links followed. Raises DataError when it is missing or leads out of `inside`."""
    try:
        real = path.expanduser().resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise DataError(f"The file {shown(str(path), 120)} does not exist. Check the path.") from None
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} cannot be found: {fault_of(error)}. Check the path and its links.") from None
    if inside is not None and not real.is_relative_to(inside.resolve()):
        raise DataError(f"{name} leads out of the folder {shown(inside.name)}. Choose a file inside it.")
    return real


def _open_folder(path: Path, name: str, split: str | None) -> RowStream:
    if not is_saved_dataset(path):
        return FolderRows(path, name)
    from studio.records.files_arrow import open_parts

    parts, note = saved_parts(path, name, split)
    stream = open_parts(parts, name, "saved dataset")
    if note:
        stream.note(note)
    return stream


# pyarrow takes half a second to load; whoever reads texts need not wait for it.
def _open_parquet(path: Path, name: str) -> RowStream:
    from studio.records.files_arrow import open_parquet

    return open_parquet(path, name)


def _open_arrow(path: Path, name: str) -> RowStream:
    from studio.records.files_arrow import open_arrow

    return open_arrow(path, name)


_OPENERS: dict[str, Callable[[Path, str], RowStream]] = {
    "json": open_json,
    "csv": CsvRows,
    "text": TextRows,
    "parquet": _open_parquet,
    "arrow": _open_arrow,
}
