"""Reads a file of any known format as records; tells which format it is, what was skipped and why."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studio.records.cells import RowError, table_cell
from studio.records.conversation import Conversation, Record
from studio.records.convert import to_row
from studio.records.detection import UnknownColumns, detect, suggest
from studio.records.errors import DataError, Skipped
from studio.records.files import RowStream, open_rows
from studio.records.mappings import Mapping, parse_mapping
from studio.records.placeholders import control_tokens, named_placeholder
from studio.records.shapes import to_record

__all__ = [
    "ReadOptions", "ReadResult", "RecordStream", "RowError", "Skipped", "UnknownColumns", "detect", "open_records",
    "parse_mapping", "read_file", "refuse_placeholders", "suggest", "to_record", "to_row",
]  # fmt: skip

DISTINCT_LIMIT = 200_000  # conversations that are compared to find repetitions
_NAMED_FAULTS = 3
STORED = ("rows.jsonl", "dataset.json")  # the rows of a saved dataset and the file beside them, see store.py


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read: `mapping` as `parse_mapping` takes it, else detected; `limit` is a number of rows.

    `split` chooses in a saved dataset, `sheet` in a workbook.
    """

    mapping: str | None = None
    split: str | None = None
    strict: bool = False
    allow_placeholders: bool = False
    limit: int | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class ReadResult:
    """What a file holds. `conversations[i]` stands in row `rows[i]` of the file; `warnings` are sentences."""

    conversations: list[Record]
    skipped: list[Skipped]
    format: str
    rows_read: int
    warnings: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    encoding: str = "utf-8"


class RecordStream:
    """The records of a file, in file order and in bounded memory: (row number, record), or Skipped.

    May be iterated again. Iterating raises DataError when no row at all can be used, at an unfilled `{{name}}` or
    `{{author}}` (unless they are allowed) and, if strict, at the first rows that cannot be used.
    """

    def __init__(self, rows: RowStream, mapping: Mapping, options: ReadOptions) -> None:
        self.rows, self.mapping, self.options = rows, mapping, options
        self._tally = _Tally()

    @property
    def total(self) -> int:
        """Bytes (or rows) of the whole file."""
        return self.rows.total

    @property
    def done(self) -> int:
        """Bytes (or rows) read so far."""
        return self.rows.done

    @property
    def rows_read(self) -> int:
        """Rows read so far, skipped ones too."""
        return self._tally.read

    @property
    def notes(self) -> list[str]:
        """Sentences about the file and its rows; complete after iteration."""
        return [*self._tally.warnings(), *self.rows.notes]

    def __iter__(self) -> Iterator[tuple[int, Record] | Skipped]:
        self._tally = tally = _Tally()
        for row in itertools.islice(self.rows, self.options.limit):
            found = row if isinstance(row, Skipped) else self._read(*row)
            tally.add(found)
            if isinstance(found, Skipped):
                if self.options.strict:
                    raise self._strict_error(found)
            elif not self.options.allow_placeholders:
                refuse_placeholders([found])
            yield found
        if not tally.good:
            raise DataError(_nothing_left(self.rows.name, self.mapping, tally))

    def _read(self, number: int, value: object) -> tuple[int, Record] | Skipped:
        if self.rows.columns is not None and isinstance(value, dict):
            value = {key: table_cell(cell) for key, cell in value.items()}
        try:
            return number, to_record(value, self.mapping)
        except RowError as error:
            return Skipped(number, str(error))

    def _strict_error(self, first: Skipped) -> DataError:
        """Reads on to count: who wants every row wants to know how much there is to correct."""
        found, bad = [first], 0
        self._tally = _Tally()
        for row in itertools.islice(self.rows, self.options.limit):
            entry = row if isinstance(row, Skipped) else self._read(*row)
            if isinstance(entry, Skipped):
                bad += 1
                if 1 < bad <= _NAMED_FAULTS:
                    found.append(entry)
        rows = "1 row" if bad == 1 else f"{bad} rows"
        named = "; ".join(f"row {entry.row}: {entry.reason}" for entry in found)
        return DataError(
            f"{self.rows.name} has {rows} that cannot be used: {named}. Correct the file, or switch off strict reading "
            "to leave such rows out."
        )


def open_records(path: Path | str, options: ReadOptions | None = None) -> RecordStream:
    """Opens a file and finds out its format. Raises DataError, UnknownColumns for columns nobody knows."""
    if not str(path).strip() or path == Path():
        raise DataError("No file is named. Give the path of a file.")
    chosen = options or ReadOptions()
    written_by_us = Path(path).name == STORED[0] and Path(path).with_name(STORED[1]).is_file()
    given = chosen.mapping or ("messages" if written_by_us else None)
    mapping = parse_mapping(given) if given else None
    rows = open_rows(Path(path), split=chosen.split, sheet=chosen.sheet)
    if mapping is None:
        mapping = _detected(rows)
    return RecordStream(rows, mapping, chosen)


def read_file(path: Path | str, options: ReadOptions | None = None, *, allow_placeholders: bool = False) -> ReadResult:
    """Reads a whole file into memory.

    Raises DataError when nothing can be used, or when `{{name}}` or `{{author}}` was never filled in
    (`allow_placeholders` is for an import that fills them next).
    """
    chosen = options or ReadOptions(allow_placeholders=allow_placeholders)
    stream = open_records(path, chosen)
    good: list[tuple[int, Record]] = []
    skipped: list[Skipped] = []
    for found in stream:
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            good.append(found)
    return ReadResult(
        conversations=[record for _, record in good],
        skipped=skipped,
        format=stream.mapping.name,
        rows_read=stream.rows_read,
        warnings=stream.notes,
        rows=[number for number, _ in good],
        encoding=stream.rows.encoding,
    )


def refuse_placeholders(rows: Sequence[tuple[int, Record]]) -> None:
    """Raises DataError at the first conversation that still has an unfilled name placeholder."""
    for number, record in rows:
        for message in record.messages if isinstance(record, Conversation) else ():
            found = named_placeholder(message.content) if "{{" in message.content else None
            if found:
                raise DataError(
                    f"Row {number} still contains the placeholder {found}. Import the file in the Data tab and type "
                    "the name and the author it stands for."
                )


def _detected(rows: RowStream) -> Mapping:
    faults: list[Skipped] = []

    def values() -> Iterator[object]:
        for row in rows:
            if isinstance(row, Skipped):
                faults.append(row)
            else:
                yield row[1]

    seen = values()
    first = next(seen, None)
    if first is None and faults:
        count = "the only row" if len(faults) == 1 else f"all {len(faults)} rows"
        raise DataError(
            f"{rows.name} has no usable row: {count} had to be skipped; row {faults[0].row}: {faults[0].reason}. "
            "Correct the file and try again."
        )
    return detect(itertools.chain([first], seen), rows.name)


class _Tally:
    """Counts on the way what the warnings need; memory is bounded."""

    def __init__(self) -> None:
        self.read = self.good = self.skipped = 0
        self.first_skipped: Skipped | None = None
        self._seen: set[int] = set()
        self._compared = 0
        self._talks = False
        self._marked: tuple[int, str] | None = None

    def add(self, found: tuple[int, Record] | Skipped) -> None:
        self.read += 1
        if isinstance(found, Skipped):
            self.skipped += 1
            self.first_skipped = self.first_skipped or found
            return
        self.good += 1
        number, record = found
        texts = _texts(record)
        self._talks = self._talks or isinstance(record, Conversation)
        if self._compared < DISTINCT_LIMIT:
            self._compared += 1
            self._seen.add(hash(texts))
        if self._marked is None:
            mark = next((mark for text in texts if "<|" in text and (mark := control_tokens(text))), None)
            self._marked = (number, mark) if mark else None

    def warnings(self) -> list[str]:
        found = []
        if self.first_skipped:
            rows = "1 row was" if self.skipped == 1 else f"{self.skipped} rows were"
            found.append(f"{rows} skipped; the first is row {self.first_skipped.row}: {self.first_skipped.reason}.")
        if self.good == 1 and self._talks:
            found.append("The file has only one conversation; a model learns little from a single example.")
        if self._compared and len(self._seen) * 2 <= self._compared:
            found.append(
                f"Only {len(self._seen)} of the {self._compared} conversations differ. Repeating the same few makes a "
                "model forget the rest; different wordings and general rows work better."
            )
        if self._marked:
            number, mark = self._marked
            found.append(f"Row {number} contains {mark}, which many models read as a control token, not as text.")
        return found


def _texts(record: Record) -> tuple[str, ...]:
    if isinstance(record, Conversation):
        return tuple(message.content for message in record.messages)
    return (record.text,)


def _nothing_left(name: str, mapping: Mapping, tally: _Tally) -> str:
    first = tally.first_skipped
    if first is None:
        return f"{name} has no rows. Choose a file with at least one conversation."
    count = "the only row" if tally.skipped == 1 else f"all {tally.skipped} rows"
    return (
        f"{name} ({mapping.label}) has no usable conversation: {count} had to be skipped; row {first.row}: "
        f"{first.reason}. Correct the file and try again."
    )
