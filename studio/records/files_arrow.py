"""Rows of Parquet and Arrow files, batch by batch."""

from __future__ import annotations

import datetime
import decimal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from studio.records.errors import DataError, Skipped, shown
from studio.records.rowstream import Entry, RowStream, fault_of

# Rows turned into Python objects at once: few, for a column may repeat one huge text by reference.
_AT_ONCE = 256
Batches = Callable[[], Iterator[tuple[pa.RecordBatch, int]]]


class ArrowRows(RowStream):
    """Rows of record batches as `{column: value}`; row numbers count from 1.

    `batches` gives each batch with how much of `total` (rows or bytes) is read behind it.
    Times and decimals become text, bytes too where they are UTF-8; other bytes (pictures) become null with a note.
    """

    def __init__(self, name: str, kind: str, schema: pa.Schema, total: int, batches: Batches) -> None:
        super().__init__(name, kind, total)
        twice = [column for column, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise DataError(f"{name} has two columns named '{shown(twice[0], 40)}'. Rename one of them.")
        if not schema.names:
            raise DataError(f"{name} has no columns. Choose a file with at least one column.")
        self.columns = tuple(schema.names)
        self._batches = batches
        self._odd = [field.name for field in schema if _is_odd(field.type)]

    def nothing(self) -> str:
        return f"{self.name} has columns and no rows. Add at least one row."

    def _entries(self) -> Iterator[Entry]:
        number = 0
        for batch, done in self._batches():
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                last = number + batch.num_rows
                yield Skipped(number + 1, f"rows {number + 1} to {last} are damaged ({fault_of(error)})")
                number = last
                continue
            for start in range(0, batch.num_rows, _AT_ONCE):
                for value in self._values(batch.slice(start, _AT_ONCE)):
                    number += 1
                    yield Skipped(number, value) if isinstance(value, str) else (number, value)
            self.done = done

    def _values(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
        """The rows of a batch; a text is the reason why one has no Python value."""
        try:
            rows: list[Any] = batch.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError, TypeError, ImportError) as error:
            if batch.num_rows == 1:
                yield f"the row holds a value that cannot be read: {shown(fault_of(error), 80)}"
                return
            for index in range(batch.num_rows):
                yield from self._values(batch.slice(index, 1))
            return
        for row in rows:
            for column in self._odd:
                row[column] = self._plain(row[column], column)
            yield row

    def _plain(self, value: Any, column: str) -> Any:
        """A value as JSON knows it."""
        if isinstance(value, dict):
            return {key: self._plain(inner, column) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(inner, column) for inner in value]
        if isinstance(value, bytes):
            return self._text_of(value, column)
        if isinstance(value, datetime.datetime):
            return value.date().isoformat() if _is_midnight(value) else value.isoformat(" ")
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        if isinstance(value, decimal.Decimal | datetime.timedelta):
            return str(value)
        return None if isinstance(value, float) and value != value else value

    def _text_of(self, value: bytes, column: str) -> str | None:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            self.note(
                f"The column '{shown(column, 40)}' of {self.name} holds bytes that are no text; they were left out."
            )
            return None


def open_parquet(path: Path, name: str) -> ArrowRows:
    """The rows of a Parquet file. Raises DataError when it is torn."""
    with _faults(name, "Parquet file"), pq.ParquetFile(path) as file:
        schema, total = file.schema_arrow, file.metadata.num_rows

    def batches() -> Iterator[tuple[pa.RecordBatch, int]]:
        done = 0
        with _failing(), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE):
                done += batch.num_rows
                yield batch, done

    return ArrowRows(name, "parquet", schema, total, batches)


def open_arrow(path: Path, name: str) -> ArrowRows:
    """The rows of an Arrow or Feather file. Raises DataError when it is torn."""
    return open_parts([path], name, "Arrow file")


def open_parts(paths: list[Path], name: str, kind: str) -> ArrowRows:
    """One stream over Arrow files of the same columns; `total` and `done` are bytes. Raises DataError."""
    with _faults(name, kind):
        with _reader(paths[0]) as (_, schema, _):
            pass
        sizes = [path.stat().st_size for path in paths]

    def batches() -> Iterator[tuple[pa.RecordBatch, int]]:
        for index, path in enumerate(paths):
            with _failing(), _reader(path) as (file, _, parts):
                for part in parts:
                    yield part, sum(sizes[:index]) + file.tell()

    return ArrowRows(name, "arrow", schema, sum(sizes), batches)


@contextmanager
def _reader(path: Path) -> Iterator[tuple[pa.NativeFile, pa.Schema, Iterator[pa.RecordBatch]]]:
    """File, columns and batches of an Arrow file or stream. Not mapped: a torn map would kill the process."""
    with pa.OSFile(str(path), "rb") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            book = pa.ipc.open_file(file)
            yield file, book.schema, map(book.get_batch, range(book.num_record_batches))
        else:
            stream = pa.ipc.open_stream(file)
            yield file, stream.schema, iter(stream)


@contextmanager
def _faults(name: str, kind: str) -> Iterator[None]:
    """Library errors while opening become a sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{name} is not a whole {kind}: it is damaged or cut short ({shown(fault_of(error), 80)}). Copy it again."
        ) from None


@contextmanager
def _failing() -> Iterator[None]:
    """Library errors while reading become OSError, which every stream turns into a Skipped."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise  # the disk, not the content
        raise OSError(None, f"damaged or cut short ({shown(fault_of(error), 80)})") from None


def _is_odd(kind: pa.DataType) -> bool:
    """Whether values of this type may need a change before they are JSON: all but texts, whole numbers, true/false."""
    if pa.types.is_dictionary(kind):
        return _is_odd(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_is_odd(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_odd(kind.value_type)
    return not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def _is_midnight(value: datetime.datetime) -> bool:
    return value.time() == datetime.time() and value.tzinfo is None
