"""Data, second way in: any file, pasted text or path of the server, seen as it would be saved before it is saved."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.fetchdir import FetchDir, FetchJob
from studio.fetching import start_fetch
from studio.records import DataError, DatasetInfo, DatasetStore, ReadResult
from studio.records.conversation import broken_text
from studio.records.errors import shown
from studio.records.files import head, open_rows
from studio.records.formats import ReadOptions, UnknownColumns, open_records, read_file, suggest, to_row
from studio.records.importing import allowed_path, import_stream, suffix_of
from studio.records.mappings import parse_mapping, write_mapping
from studio.records.renaming import Names, Renamed, Unfilled, written
from studio.records.saved_dataset import split_names
from studio.ui.context import Refused, refuse, sentence
from studio.ui.i18n import tr
from studio.ui.tabs import data_view as dv
from studio.workspace import Workspace

WAYS = ("file", "text", "path")
COLUMNS = ("instruction", "output", "input", "system", "text")
"""What a column of an unknown table may mean, in the order of the controls."""
FIELDS = (
    "way", "file", "text", "path", "mapping", *(f"column_{column}" for column in COLUMNS), "split", "strict", "pairs",
    "name", "author",
)  # fmt: skip
"""Controls of the form in this order."""
BY_HAND = "columns"
"""The choice of the format drop-down that asks for the columns."""
HEAD_ROWS = 200
BIG_BYTES = 20 * 1024 * 1024
BIG_PACKED_BYTES = 4 * 1024 * 1024
LONGEST_PASTED = 2_000_000
LONGEST_NAMES = 20_000
_PACKED = (".xlsx", ".xlsm", ".parquet", ".arrow", ".feather", ".gz")
_SAMPLED = 50
UNREADABLE = (DataError, Refused, OSError)
"""What a file that cannot be read may raise; the viewer says it."""


class Own(BaseModel):
    """What the form says; every value came from the page and is only trusted as far as it is checked here."""

    model_config = ConfigDict(extra="forbid")

    way: str = Field(default="file", max_length=10)
    file: str | None = None
    text: str = Field(default="", max_length=LONGEST_PASTED)
    path: str = Field(default="", max_length=4096)
    mapping: str = Field(default="", max_length=2000)
    columns: dict[str, str] = {}
    split: str = Field(default="", max_length=200)
    strict: bool = False
    names: Names = Names()


def own(values: Sequence[Any]) -> Own:
    """Control values in the order of FIELDS, checked. Raises Refused, DataError."""
    found = {name: "" if value is None else value for name, value in zip(FIELDS, values, strict=True)}
    columns = {column: str(found.pop(f"column_{column}")) for column in COLUMNS}
    names = _names(*(str(found.pop(key)) for key in ("pairs", "name", "author")))
    if len(str(found["text"])) > LONGEST_PASTED:
        raise refuse("data.error.long_text", limit=f"{LONGEST_PASTED:,}")
    problem = broken_text(str(found["text"]))
    if problem:
        raise DataError(f"The pasted text {problem}. Correct it and paste it again.", field="text")
    try:
        file = found.pop("file") or None
        return Own(**found, file=file, columns={k: v for k, v in columns.items() if v}, names=names)
    except ValidationError as error:
        raise refuse("data.error.request") from error


def _names(pairs: str, name: str, author: str) -> Names:
    """Names to write in; `pairs` are lines such as `old => new`. Raises Refused."""
    if max(map(len, (pairs, name, author))) > LONGEST_NAMES:
        raise refuse("data.error.request")
    found = []
    for line in filter(None, map(str.strip, pairs.splitlines())):
        old, arrow, new = line.replace("→", "=>").partition("=>")
        if not arrow:
            raise refuse("data.error.pairs", line=shown(line, 60))
        found.append((old.strip(), new.strip()))
    return Names(pairs=tuple(found), name=name[:400], author=author[:400])


@dataclass(frozen=True)
class Chosen:
    """The file, folder or text that is to be read; `stamp` changes with it."""

    path: Path | None
    text: str = ""
    stamp: int = 0

    @property
    def name(self) -> str:
        """What it is called."""
        return self.path.name if self.path else tr("data.pasted")

    @property
    def big(self) -> bool:
        """Whether it is so large that only its head is shown and a process of its own imports it."""
        if self.path is None:
            return False
        limit = BIG_PACKED_BYTES if self.path.suffix.lower() in _PACKED else BIG_BYTES
        return _is_larger(self.path, limit)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The path of its content; a pasted text is a file for as long as this lasts."""
        if self.path is not None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="crucible-") as folder:
            path = Path(folder) / f"{tr('data.pasted')}{suffix_of(self.text)}"
            path.write_text(self.text, encoding="utf-8", newline="")
            yield path


@lru_cache(maxsize=2)
def _read(chosen: Chosen, options: ReadOptions) -> ReadResult:
    with chosen.opened() as path:
        return read_file(path, options)


@lru_cache(maxsize=8)
def _unknown(error: UnknownColumns) -> str:
    """What to do about columns nobody knows; the page has controls for that, so it needs no list of formats."""
    if not error.columns:
        return error.message
    listed = ", ".join(shown(column, 30) for column in error.columns[:12])
    listed += ", …" if len(error.columns) > 12 else ""
    return f"No known format has the columns {listed}. Say on the left what each of them means, or rename them."


def columns_of(chosen: Chosen, split: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The columns of the first rows, and which of them probably means what. Raises DataError."""
    with chosen.opened() as path:
        stream = open_rows(path, split=split or None)
        rows = [entry[1] for entry in head(stream, _SAMPLED) if isinstance(entry, tuple)]
    found = stream.columns or dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row)
    columns = tuple(found)
    return columns, suggest(columns, rows)


class OwnWay:
    """The handlers of the form, over one workspace."""

    def __init__(self, workspace: Workspace, store: DatasetStore) -> None:
        self.workspace, self.store = workspace, store

    def chosen(self, form: Own) -> Chosen | None:
        """What is to be read; None while nothing is chosen. Raises DataError for what may not be read."""
        if form.way == "text":
            return Chosen(None, form.text) if form.text.strip() else None
        if form.way == "path":
            path = allowed_path(form.path, self.workspace.path) if form.path.strip() else None
        else:
            path = Path(form.file) if form.file else None
        return Chosen(path, stamp=path.stat().st_mtime_ns) if path else None

    def shown(self, ask: dv.Ask, form: Own) -> dict[str, Any]:
        """A page of the rows as they would be saved, or why there are none."""
        try:
            chosen = self.chosen(form)
            return dv.view(self.source(chosen, form), ask) if chosen else dv.empty("own")
        except UnknownColumns as error:
            return dv.empty("own", [_unknown(error)], columns=list(error.columns))
        except UNREADABLE as error:
            return dv.empty("own", [sentence(error)])

    def source(self, chosen: Chosen, form: Own) -> dv.Source:
        """Everything there is to say about a file. Raises DataError."""
        options = self.options(chosen, form)
        found = _read(chosen, options)
        notes = [text for text in found.warnings if not (found.skipped and " skipped; the first is row" in text)]
        problem = form.names.problem()
        write = Names().writer() if problem else form.names.writer()
        unfilled, rows = Unfilled(), []
        for number, record in zip(found.rows, found.conversations, strict=True):
            renamed = written(record, write)
            unfilled.look(number, renamed)
            rows.append(to_row(renamed))
        said = [text for text in (problem or unfilled.problem, unfilled.doubt) if text]
        facts = {
            "format": found.format,
            "label": parse_mapping(options.mapping or found.format).label,
            "encoding": found.encoding,
            "rows_read": found.rows_read,
            "usable": len(rows),
            "head": HEAD_ROWS if options.limit else 0,
        }
        skipped = [(item.row, item.reason) for item in found.skipped]
        return dv.Source("own", rows, (), chosen.name, [*said, *notes], skipped, facts=facts)

    def options(self, chosen: Chosen, form: Own, *, whole: bool = False) -> ReadOptions:
        """How the file is read; a big one only up to its head unless it is wanted `whole`. Raises DataError."""
        limit = HEAD_ROWS if chosen.big and not whole else None
        return ReadOptions(
            mapping=self.mapping(chosen, form) or None,
            split=form.split or None,
            strict=form.strict,
            allow_placeholders=True,
            limit=limit,
        )

    def mapping(self, chosen: Chosen, form: Own) -> str:
        """The mapping to read with, as `parse_mapping` takes it; "" to find it out. Raises DataError."""
        if form.mapping and form.mapping != BY_HAND:
            return form.mapping
        if form.mapping == BY_HAND or (form.columns and self.unknown(chosen, form)):
            known, proposed = columns_of(chosen, form.split)
            columns = form.columns or proposed
            wrong = next((name for name in columns.values() if name not in known), None)
            if wrong is not None:
                raise refuse("data.error.column", column=wrong)
            return write_mapping(columns)
        return ""

    def unknown(self, chosen: Chosen, form: Own) -> bool:
        """Whether no known format has the columns of the file."""
        with chosen.opened() as path:
            try:
                open_records(path, ReadOptions(split=form.split or None))
            except UnknownColumns:
                return True
            except DataError:
                return False
        return False

    def asks_columns(self, form: Own) -> bool:
        """Whether the page should ask what the columns mean: wanted, or nobody knows them."""
        if form.mapping:
            return form.mapping == BY_HAND
        try:
            chosen = self.chosen(form)
            return chosen is not None and self.unknown(chosen, form)
        except UNREADABLE:
            return False

    def columns(self, form: Own) -> tuple[tuple[str, ...], dict[str, str], bool]:
        """The file's columns, a proposal for them, and whether a person has to say which is which."""
        try:
            chosen = self.chosen(form)
            if chosen is None:
                return (), {}, False
            return *columns_of(chosen, form.split), self.unknown(chosen, form)
        except UNREADABLE:
            return (), {}, False

    def splits(self, form: Own) -> list[str]:
        """The splits of a saved dataset; [] for anything else."""
        try:
            chosen = self.chosen(form)
            return split_names(chosen.path, chosen.name) if chosen and chosen.path and chosen.path.is_dir() else []
        except UNREADABLE:
            return []

    def has_placeholders(self, form: Own) -> bool:
        """Whether a row of the file has a `{{name}}` or `{{author}}` to fill."""
        try:
            chosen = self.chosen(form)
            if chosen is None:
                return False
            found = _read(chosen, self.options(chosen, form))
        except UNREADABLE:
            return False
        unfilled = Unfilled()
        for number, record in zip(found.rows, found.conversations, strict=True):
            unfilled.look(number, record)
        return unfilled.problem is not None

    def save(self, form: Own, title: str) -> DatasetInfo | FetchDir:
        """Saves the rows at once, or starts the import of a big file. Raises DataError, Refused."""
        chosen = self.chosen(form)
        if chosen is None:
            raise refuse("data.error.no_file")
        title = title or (chosen.path.stem if chosen.path else chosen.name)
        problem = form.names.problem()
        if problem:
            raise DataError(problem, field="name")
        options = self.options(chosen, form, whole=True)
        if chosen.big and chosen.path:
            return start_fetch(self.workspace, _job(chosen.path, options, form.names, title))
        with chosen.opened() as path:
            stream = Renamed(open_records(path, options), form.names)
            return import_stream(self.store, stream, title, chosen.name).info


def _job(path: Path, options: ReadOptions, names: Names, title: str) -> FetchJob:
    return FetchJob(
        id=str(path),
        hub="file",
        split=options.split,
        mapping=options.mapping,
        strict=options.strict,
        title=title[:400],
        names=names,
    )


def _is_larger(path: Path, limit: int) -> bool:
    """Whether a file, or all files of a folder, have more bytes than `limit`."""
    if path.is_file():
        return path.stat().st_size > limit
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            total += (Path(folder) / name).lstat().st_size
            if total > limit:
                return True
    return False
