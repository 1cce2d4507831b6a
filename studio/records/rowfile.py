"""A file of JSON lines of any size: written line by line with its fingerprint, read by row numbers through an index.

Row numbers count from 0 here; blank lines are no rows. An index is remembered while the file stays what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar

Row = dict[str, Any]
Progress = Callable[[int], object]
DEFAULT_ORIGIN = "upload"
_PROGRESS_EVERY = 500
_BLOCK = 1 << 20
_REMEMBERED_FILES = 8
_ORIGIN = re.compile(rb'"origin": "([^"\\]{1,80})"\}\s*\Z')
_ORIGIN_TAIL = 120  # bytes from the end of a line in which our own writing of the origin lies


class DamagedRow(ValueError):
    """A line of the file is no JSON object."""


@dataclass(frozen=True)
class RowIndex:
    """Where each row starts (byte), its origin (a number in `origins`), and what the whole file is."""

    sha256: str
    starts: array[int]
    origins: tuple[str, ...]
    origin_of: array[int]
    texts: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows per origin."""
        found = [0] * len(self.origins)
        for code in self.origin_of:
            found[code] += 1
        return {origin: count for origin, count in zip(self.origins, found, strict=True) if count}


class _Indexer:
    """Builds a RowIndex from the lines of a file as they pass by."""

    def __init__(self) -> None:
        self._sha, self._position, self._texts = hashlib.sha256(), 0, 0
        self._starts, self._codes = array("q"), array("I")
        self._origins: dict[str, int] = {}

    @property
    def rows(self) -> int:
        return len(self._starts)

    def add(self, raw: bytes, origin: str | None = None, *, text: bool | None = None) -> None:
        """One line, with its line feed; its origin and whether it is a text are found in it unless they are known."""
        if raw.strip():
            self._starts.append(self._position)
            self._codes.append(self._code(_origin_of(raw) if origin is None else origin))
            self._texts += _is_text(raw) if text is None else text
        self._sha.update(raw)
        self._position += len(raw)

    def take(self, index: RowIndex, first: int, end: int) -> None:
        """Rows of another file that are about to be copied as they are; their texts are not counted."""
        shift = self._position - index.starts[first]
        self._starts.extend(start + shift for start in index.starts[first:end])
        codes = [self._code(origin) for origin in index.origins]
        self._codes.extend(codes[code] for code in index.origin_of[first:end])

    def copied(self, block: bytes) -> None:
        """Some bytes of rows that were taken."""
        self._sha.update(block)
        self._position += len(block)

    def _code(self, origin: str) -> int:
        return self._origins.setdefault(origin, len(self._origins))

    def finish(self) -> RowIndex:
        """The index of the lines so far."""
        return RowIndex(self._sha.hexdigest(), self._starts, tuple(self._origins), self._codes, self._texts)


class RowWriter:
    """Writes rows to a new file; leaving the `with` block in good order flushes them to the disk.

    `index` is complete after the block. Raises OSError for a disk that does not take them.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._indexer = _Indexer()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            _close(self._file.close, quietly=kind is not None)

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._indexer.rows

    @property
    def index(self) -> RowIndex:
        """The index of what was written."""
        return self._indexer.finish()

    def add(self, row: Mapping[str, Any]) -> None:
        """One row."""
        raw = json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
        self._file.write(raw)
        self._indexer.add(raw, str(row.get("origin") or DEFAULT_ORIGIN)[:80], text="messages" not in row)

    def copy(self, source: BinaryIO, index: RowIndex, first: int, end: int) -> None:
        """The rows `first` to `end` of another file as they are; the index does not count their texts."""
        if first >= end:
            return
        self._indexer.take(index, first, end)
        left = (index.starts[end] if end < index.rows else os.fstat(source.fileno()).st_size) - index.starts[first]
        source.seek(index.starts[first])
        block = b""
        while left > 0 and (block := source.read(min(left, _BLOCK))):
            left -= len(block)
            self._put(block)
        if not block.endswith(b"\n"):
            self._put(b"\n")

    def _put(self, block: bytes) -> None:
        self._file.write(block)
        self._indexer.copied(block)


def _close(close: Callable[[], None], *, quietly: bool) -> None:
    try:
        close()
    except OSError:  # what is still buffered does not fit either; the first error is the one to report
        if not quietly:
            raise


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], progress: Progress | None = None) -> RowIndex:
    """Writes rows as they come; `progress` hears how many there are so far. Raises OSError, and what `rows` raises."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.add(row)
            if progress and writer.rows % _PROGRESS_EVERY == 0:
                progress(writer.rows)
    return writer.index


def rewrite(
    source: Path, target: Path, changes: Mapping[int, Mapping[str, Any] | None], added: Sequence[Mapping[str, Any]] = ()
) -> RowIndex:
    """Copies a file of rows with some replaced, some left out (None) and some added at the end. Raises OSError."""
    index = index_of(source)
    with RowWriter(target) as writer, source.open("rb") as old:
        kept_texts = index.texts - sum(map(_is_text, _raw_at(old, index, changes)))
        first = 0
        for number in sorted(changes):
            writer.copy(old, index, first, number)
            row, first = changes[number], number + 1
            if row is not None:
                writer.add(row)
        writer.copy(old, index, first, index.rows)
        for row in added:
            writer.add(row)
    return replace(writer.index, texts=writer.index.texts + kept_texts)


def raw_rows(path: Path) -> Iterator[bytes]:
    """The lines that hold rows, in order, in bounded memory. Raises OSError."""
    with path.open("rb") as file:  # in bytes, lines end at line feeds only; text would also break at U+0085
        yield from (raw for raw in file if raw.strip())


def read_rows(path: Path) -> Iterator[Row]:
    """The rows in order, in bounded memory. Raises OSError, and DamagedRow at a line that is none."""
    return map(parse_row, raw_rows(path))


def rows_at(path: Path, index: RowIndex, numbers: Iterable[int]) -> Iterator[Row]:
    """The rows with these numbers, in this order. Raises OSError, DamagedRow."""
    with path.open("rb") as file:
        yield from map(parse_row, _raw_at(file, index, numbers))


def _raw_at(file: BinaryIO, index: RowIndex, numbers: Iterable[int]) -> Iterator[bytes]:
    for number in numbers:
        file.seek(index.starts[number])
        yield file.readline()


def parse_row(raw: bytes) -> Row:
    """One line as a row. Raises DamagedRow."""
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DamagedRow(str(error)) from None
    if not isinstance(row, dict):
        raise DamagedRow("a line is not an object")
    return row


def texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row says: the texts of its messages, tool calls and worse answers, or its plain text."""
    text = row.get("text")
    if isinstance(text, str):
        yield text
    for key in ("messages", "rejected"):
        messages = row.get(key)
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict):
                yield str(message.get("content") or "")
                if message.get("tool_calls"):
                    yield json.dumps(message["tool_calls"], ensure_ascii=False)


def _origin_of(raw: bytes) -> str:
    found = _ORIGIN.search(raw[-_ORIGIN_TAIL:])
    if found:
        return found.group(1).decode("utf-8", "replace")
    try:
        return str(parse_row(raw).get("origin") or DEFAULT_ORIGIN)[:80]
    except DamagedRow:
        return DEFAULT_ORIGIN


def _is_text(raw: bytes) -> bool:
    if raw.startswith((b'{"text":', b'{"messages":')):
        return raw.startswith(b'{"text":')
    try:
        return "messages" not in parse_row(raw)
    except DamagedRow:
        return False


# ---- search ----------------------------------------------------------------------------------------------------------

_SEARCH_BLOCK = 1 << 20
# What stands between the texts of a row: a query that is found in here may only have hit the writing of the row.
_SYNTAX = json.dumps(
    {
        "messages": [
            {"role": role, "content": "", "tool_calls": [{"id": "", "type": "function", "function": {"name": ""}}]}
            | {"name": "", "tool_call_id": "", "loss": False}
            for role in ("system", "user", "assistant", "tool")
        ],
        "tools": [{"type": "function", "function": {"name": "", "description": "", "parameters": {"type": "object"}}}],
        "text": "",
        "arguments": "",
        "images": [],
        "rejected": [],
        "origin": "",
    }
)


def search(path: Path, index: RowIndex, query: str) -> Iterator[int]:
    """Numbers of the rows that contain `query`, in any case: in their texts, calls or names. Raises OSError."""
    escaped = json.dumps(query, ensure_ascii=False)[1:-1]
    if not query.isascii() and query.lower() != query.upper():  # case beyond ASCII: the slow way
        return _said(path, index, _hits_by_row(path, escaped.casefold()), query.casefold())
    # Chinese may also stand there as \u escapes, which other programs write.
    needles = {escaped.lower().encode("utf-8", "replace"), json.dumps(query)[1:-1].lower().encode()}
    hits = _hits_by_block(path, index, needles)
    if escaped.lower() in _SYNTAX + " ".join(index.origins).lower():
        return _said(path, index, hits, query.casefold())
    return hits


def _hits_by_block(path: Path, index: RowIndex, needles: set[bytes]) -> Iterator[int]:
    """Rows with one of the needles in their line, many rows at once."""
    starts, end, first = index.starts, path.stat().st_size, 0
    with path.open("rb") as file:
        while first < index.rows:
            last = max(bisect_left(starts, starts[first] + _SEARCH_BLOCK), first + 1)
            file.seek(starts[first])
            block = file.read((starts[last] if last < index.rows else end) - starts[first]).lower()
            found: set[int] = set()
            for needle in needles:
                position = block.find(needle)
                while position >= 0:
                    row = bisect_right(starts, starts[first] + position) - 1
                    found.add(row)
                    position = block.find(needle, starts[row + 1] - starts[first]) if row + 1 < last else -1
            yield from sorted(found)
            first = last


def _hits_by_row(path: Path, needle: str) -> Iterator[int]:
    """Rows that may say it; of one with \\u escapes it cannot be told before it is parsed."""
    for number, raw in enumerate(raw_rows(path)):
        if needle in raw.decode("utf-8", "replace").casefold() or b"\\u" in raw:
            yield number


def _said(path: Path, index: RowIndex, numbers: Iterable[int], wanted: str) -> Iterator[int]:
    """Those of the rows that really say it."""
    with path.open("rb") as file:
        for number in numbers:
            with suppress(DamagedRow):
                row = parse_row(next(_raw_at(file, index, (number,))))
                if any(wanted in text.casefold() for text in texts_of(row)):
                    yield number


# ---- what is remembered ----------------------------------------------------------------------------------------------

Stamp = tuple[int, int, int]
Found = TypeVar("Found")


class _Remembered(Generic[Found]):
    """The last few results by key. A result is forgotten when its key is asked for with another stamp."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._known: OrderedDict[Any, tuple[Stamp, Found]] = OrderedDict()

    def get(self, key: Any, stamp: Stamp) -> Found | None:
        with self._lock:
            known = self._known.get(key)
            if known is None or known[0] != stamp:
                return None
            self._known.move_to_end(key)
            return known[1]

    def put(self, key: Any, stamp: Stamp, found: Found) -> Found:
        with self._lock:
            self._known[key] = (stamp, found)
            self._known.move_to_end(key)
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        return found

    def clear(self) -> None:
        with self._lock:
            self._known.clear()


_indexes: _Remembered[RowIndex] = _Remembered(_REMEMBERED_FILES)
_hits: _Remembered[Sequence[int]] = _Remembered(_REMEMBERED_FILES)


def index_of(path: Path) -> RowIndex:
    """The index of a file: built in one pass, remembered while size and times stay the same. Raises OSError."""
    stamp = _stamp(path)
    known = _indexes.get(path, stamp)
    if known is not None:
        return known
    indexer = _Indexer()
    with path.open("rb") as file:
        for raw in file:
            indexer.add(raw)
    return _indexes.put(path, stamp, indexer.finish())


def remember(path: Path, index: RowIndex) -> None:
    """Takes over an index made while writing, so that the file need not be read again."""
    _indexes.put(path, _stamp(path), index)


def forget() -> None:
    """Forgets everything that is remembered."""
    _indexes.clear()
    _hits.clear()


def matching(path: Path, index: RowIndex, origin: str = "", query: str = "") -> Sequence[int]:
    """Numbers of the rows of an origin that contain `query`; empty texts choose everything. Raises OSError."""
    if not origin and not query:
        return range(index.rows)
    stamp, key = _stamp(path), (path, origin, query)
    known = _hits.get(key, stamp)
    if known is not None:
        return known
    numbers: Iterable[int] = search(path, index, query) if query else range(index.rows)
    if origin:
        code = index.origins.index(origin) if origin in index.origins else -1
        numbers = (number for number in numbers if index.origin_of[number] == code)
    return _hits.put(key, stamp, array("I", numbers))


def _stamp(path: Path) -> Stamp:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
