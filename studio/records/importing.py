"""From any file, or pasted text, to a dataset of the workspace; and which paths of the server may be asked for."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from studio.records.conversation import Conversation, Record, broken_text
from studio.records.errors import DataError, Skipped, shown
from studio.records.formats import ReadOptions, RecordStream, open_records
from studio.records.store import DatasetInfo, DatasetStore, Kind

FOLDERS_VARIABLE = "CRUCIBLE_DATA"
SKIPPED_KEPT = 200
Heard = Callable[[int, int], object]
"""Told how much of a file is read: done, total, in the file's own unit."""
_PROGRESS_EVERY = 200
_PATH_FIELD = "path"
_TABLE_LINES = 20
_LONGEST_COLUMN_NAME = 60


@dataclass
class Tally:
    """What becomes of the rows of a stream while they pass: `skipped` in all, the first of them in `first_skipped`."""

    conversations: int = 0
    texts: int = 0
    rejected: int = 0
    skipped: int = 0
    first_skipped: list[Skipped] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows read."""
        return self.conversations + self.texts + self.skipped

    @property
    def kind(self) -> Kind:
        """What a dataset of these records is."""
        if self.texts and not self.conversations:
            return "text"
        if self.rejected and self.rejected == self.conversations and not self.texts:
            return "preference"
        return "import"

    def add(self, entry: tuple[int, Record] | Skipped) -> Record | None:
        """Counts one entry; the record, if it is one."""
        if isinstance(entry, Skipped):
            self.skipped += 1
            if len(self.first_skipped) < SKIPPED_KEPT:
                self.first_skipped.append(entry)
            return None
        record = entry[1]
        if isinstance(record, Conversation):
            self.conversations += 1
            self.rejected += bool(record.rejected)
        else:
            self.texts += 1
        return record


@dataclass(frozen=True)
class Imported:
    """A dataset made from a file, the first rows that had to be left out, and sentences about the file."""

    info: DatasetInfo
    skipped: list[Skipped]
    notes: list[str]


def import_file(
    store: DatasetStore,
    path: Path,
    options: ReadOptions | None = None,
    title: str = "",
    progress: Heard | None = None,
) -> Imported:
    """Reads a file or folder of any format into a new dataset, in bounded memory. Raises DataError; nothing is left."""
    return import_stream(store, open_records(path, options or ReadOptions()), title or path.stem, path.name, progress)


def import_text(
    store: DatasetStore,
    text: str,
    options: ReadOptions | None = None,
    title: str = "",
    progress: Heard | None = None,
) -> Imported:
    """Reads pasted text of any format into a new dataset. Raises DataError."""
    problem = broken_text(text) or (None if text.strip() else "is empty")
    if problem:
        raise DataError(f"The pasted text {problem}. Correct it and paste it again.", field="text")
    with tempfile.TemporaryDirectory(prefix="crucible-") as folder:
        path = Path(folder) / f"pasted{suffix_of(text)}"
        path.write_text(text, encoding="utf-8", newline="")
        return import_stream(
            store, open_records(path, options or ReadOptions()), title or "pasted", "pasted text", progress
        )


def import_stream(
    store: DatasetStore, stream: RecordStream, title: str, source: str, progress: Heard | None = None
) -> Imported:
    """Saves what a stream of records yields as a new dataset. Raises DataError; then nothing is left behind."""
    tally = Tally()

    def records() -> Iterator[Record]:
        for entry in stream:
            record = tally.add(entry)
            if record is not None:
                yield record
            if progress and tally.rows % _PROGRESS_EVERY == 0:
                progress(stream.done, stream.total)
        if not tally.conversations + tally.texts:
            raise DataError(_nothing(shown(source), tally))

    def info() -> DatasetInfo:
        return DatasetInfo(
            kind=tally.kind,
            source=shown(source, 200),
            format=stream.mapping.name,
            encoding=stream.rows.encoding,
            skipped=tally.skipped,
        )

    saved = store.save_stream(title, records(), [], info)
    return Imported(saved, tally.first_skipped, list(stream.notes))


def _nothing(name: str, tally: Tally) -> str:
    if not tally.first_skipped:
        return f"{name} has no rows. Choose a file with at least one."
    first = tally.first_skipped[0]
    count = "the only row" if tally.skipped == 1 else f"all {tally.skipped} rows"
    return (
        f"{name} has no usable row: {count} had to be skipped; row {first.row}: {first.reason}. "
        "Correct the file and try again."
    )


# ---- pasted text -----------------------------------------------------------------------------------------------------


def suffix_of(text: str) -> str:
    """The suffix of a file with this content: .json, .jsonl, .tsv, .csv or .txt."""
    start = text.lstrip()
    if start.startswith("["):
        return ".json"
    if start.startswith("{"):
        return ".jsonl" if _is_object(start.split("\n", 1)[0]) else ".json"
    for suffix, delimiter in ((".tsv", "\t"), (".csv", ",")):
        if _is_table(start, delimiter):
            return suffix
    return ".txt"


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_table(text: str, delimiter: str) -> bool:
    """A line of short, different column names, then lines with as many cells: prose with commas has neither."""
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        rows = [row for row, _ in zip(lines, range(_TABLE_LINES), strict=False) if row]
    except csv.Error:
        return False
    if len(rows) < 2 or len(rows[0]) < 2:
        return False
    names = [cell.strip() for cell in rows[0]]
    good = all(0 < len(name) <= _LONGEST_COLUMN_NAME for name in names) and len(set(names)) == len(names)
    return good and all(len(row) == len(names) for row in rows)


# ---- paths on the server ---------------------------------------------------------------------------------------------


def allowed_folders(workspace: Path) -> tuple[Path, ...]:
    """Where a path typed in the browser may lie: the workspace, the folder the studio was started in, CRUCIBLE_DATA.

    The start folder does not count when it holds the home folder: then nearly everything of the user would be open.
    """
    named = [Path(text).expanduser() for text in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if text.strip()]
    here = Path.cwd()
    start = [] if Path.home().resolve().is_relative_to(here.resolve()) else [here]
    found: dict[Path, None] = {}
    for folder in [workspace, *start, *named]:
        try:
            found[folder.resolve()] = None
        except OSError:
            continue
    return tuple(found)


def allowed_path(text: str, workspace: Path) -> Path:
    """The file or folder a visitor of the browser named, links followed. Raises DataError when it may not be read.

    A path that is not absolute is looked for in each allowed folder. Hidden files and folders are never opened.
    """
    folders = allowed_folders(workspace)
    for path in _candidates(text, folders):
        inside = next((folder for folder in folders if path.is_relative_to(folder)), None)
        if inside is None:
            continue
        if not any(part.startswith(".") for part in path.relative_to(inside).parts):
            return path
    listed = ", ".join(map(str, folders))
    raise DataError(
        f"There is no file {shown(text, 120)} in the folders that may be read here: {listed}. Copy it there, or name "
        f"its folder in the environment variable {FOLDERS_VARIABLE} before the start.",
        field=_PATH_FIELD,
    )


def _candidates(text: str, folders: tuple[Path, ...]) -> Iterator[Path]:
    for folder in folders:
        try:
            yield (folder / Path(text.strip()).expanduser()).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # missing, too long, a NUL, a circle of links
            continue
