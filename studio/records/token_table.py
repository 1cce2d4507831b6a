"""The tokens of one source as flat arrays on disk: written once in bounded memory, read without loading them.

<folder>/ids.bin      int32, the tokens of all rows one after the other
         spans.bin    int32, (start, end) pairs of trained tokens inside their row
         index.npz    one entry per row: where its tokens and spans end, its number in the file, digest, flags
         facts.json   Facts; written last, so a folder without it is half-written
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from studio.records.chat_tokenizer import Encoded
from studio.records.errors import Skipped

IDS, SPANS, INDEX, FACTS = "ids.bin", "spans.bin", "index.npz", "facts.json"
SKIPPED_KEPT = 1000
_COLUMNS = {"ends": "q", "span_ends": "q", "rows": "q", "digests": "Q", "flags": "B"}
TEXT, DOUBLE_BOS, OPEN_END = 1, 2, 4
"""Bits of `flags`: a plain text; begins with the begin token twice; an answer is not followed by an end token."""

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


class Facts(BaseModel):
    """What became of the rows on the way to tokens. `skipped` holds (row, reason) of the first ones left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str = ""
    encoding: str = ""
    rows_read: int = 0
    skipped_total: int = 0
    skipped: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> list[Skipped]:
        """The rows left out, the first thousand of them."""
        return [Skipped(row, reason) for row, reason in self.skipped]


@dataclass(frozen=True)
class TokenTable:
    """Rows as tokens. All index arrays have one entry per row but `ends` and `span_ends`, which start with a 0."""

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    spans: np.ndarray[tuple[int], np.dtype[np.int32]]
    ends: Ints
    span_ends: Ints
    rows: Ints
    digests: np.ndarray[tuple[int], np.dtype[np.uint64]]
    flags: np.ndarray[tuple[int], np.dtype[np.uint8]]
    facts: Facts = field(default_factory=Facts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Ints:
        """Tokens of each row."""
        return np.diff(self.ends)

    def tokens(
        self, index: int, start: int = 0, length: int | None = None
    ) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """The ids of a row, or of `length` of them from `start`."""
        first = int(self.ends[index]) + start
        last = int(self.ends[index + 1]) if length is None else first + length
        return self.ids[first:last]

    def trained(self, index: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """The (start, end) pairs of a row's trained tokens, shape (spans, 2)."""
        return self.spans[2 * int(self.span_ends[index]) : 2 * int(self.span_ends[index + 1])].reshape(-1, 2)

    def first_trained(self) -> Ints:
        """The place of each row's first trained token; a row has at least one."""
        return self.spans[2 * self.span_ends[:-1]].astype(np.int64)

    def encoded(self, index: int) -> Encoded:
        """A row as ids and loss mask."""
        ids = self.tokens(index).tolist()
        mask = [0] * len(ids)
        for start, end in self.trained(index).tolist():
            mask[start:end] = [1] * (end - start)
        return Encoded(ids, mask)


@dataclass(frozen=True)
class Ends:
    """Special tokens the flags are set by; `ends` may follow an answer."""

    bos_id: int | None = None
    ends: frozenset[int] = frozenset()


class TableWriter:
    """Appends rows to a folder; `close` makes it a table. Raises OSError when the disk is full."""

    def __init__(self, folder: Path, ends: Ends = Ends()) -> None:  # noqa: B008 - frozen
        self.folder, self._ends = folder, ends
        folder.mkdir(parents=True, exist_ok=True)
        self._ids: BinaryIO = (folder / IDS).open("wb")
        self._spans: BinaryIO = (folder / SPANS).open("wb")
        self._columns = {name: array(code) for name, code in _COLUMNS.items()}
        self._tokens = self._pairs = 0

    def add(self, row: int, encoded: Encoded, *, text: bool = False) -> bool:
        """Appends one row; False, and nothing is written, when none of its tokens is trained."""
        mask = np.asarray(encoded.mask, dtype=np.int8)
        edges = np.flatnonzero(np.diff(mask, prepend=0, append=0)).astype(np.int32)
        if not len(edges):
            return False
        ids = np.asarray(encoded.ids, dtype=np.int32)
        data = ids.tobytes()
        self._ids.write(data)
        self._spans.write(edges.tobytes())
        self._tokens += len(ids)
        self._pairs += len(edges) // 2
        digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        found = (self._tokens, self._pairs, row, digest, self._flags(ids, edges, text))
        for column, value in zip(self._columns.values(), found, strict=True):
            column.append(value)
        return True

    def _flags(
        self,
        ids: np.ndarray[tuple[int], np.dtype[np.int32]],
        edges: np.ndarray[tuple[int], np.dtype[np.int32]],
        text: bool,
    ) -> int:
        bos = self._ends.bos_id
        double = bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos
        opened = any(int(ids[end - 1]) not in self._ends.ends for end in edges[1::2])
        return TEXT * text + DOUBLE_BOS * double + OPEN_END * opened

    def close(self, facts: Facts) -> None:
        """Writes index and facts: from here on the folder is a table."""
        self._ids.close()
        self._spans.close()
        np.savez(self.folder / INDEX, **_index(self._columns))
        (self.folder / FACTS).write_text(facts.model_dump_json(), encoding="utf-8")

    def abort(self) -> None:
        """Closes the files of a table that will not be finished."""
        self._ids.close()
        self._spans.close()


def _index(columns: Mapping[str, array[int]]) -> dict[str, Any]:
    found = {name: np.frombuffer(values, dtype=values.typecode) for name, values in columns.items() if len(values)}
    found = found or {name: np.zeros(0, dtype=code) for name, code in _COLUMNS.items()}
    return {name: np.concatenate([[0], value]) if name.endswith("ends") else value for name, value in found.items()}


def open_table(folder: Path) -> TokenTable:
    """A finished table. Raises OSError or ValueError for one that is not."""
    facts = Facts.model_validate_json((folder / FACTS).read_bytes())
    with np.load(folder / INDEX) as stored:
        index = {name: stored[name] for name in stored.files}
    sizes = int(index["ends"][-1]), 2 * int(index["span_ends"][-1])
    ids, spans = (_mapped(folder / name, size) for name, size in zip((IDS, SPANS), sizes, strict=True))
    return TokenTable(ids=ids, spans=spans, facts=facts, **index)


def _mapped(path: Path, size: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    if path.stat().st_size != 4 * size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {4 * size}")
    return np.memmap(path, dtype=np.int32, mode="r") if size else np.zeros(0, dtype=np.int32)


def table_of(rows: Iterable[tuple[int, Encoded]], folder: Path, ends: Ends = Ends(), texts: bool = False) -> TokenTable:  # noqa: B008
    """A small table made at once from rows that are tokens already."""
    writer, count = TableWriter(folder, ends), 0
    for count, (row, encoded) in enumerate(rows, 1):  # noqa: B007
        writer.add(row, encoded, text=texts)
    writer.close(Facts(rows_read=count))
    return open_table(folder)


def distinct(digests: Sequence[np.ndarray[tuple[int], np.dtype[np.uint64]]]) -> int:
    """How many different rows there are in several tables."""
    return int(len(np.unique(np.concatenate(list(digests))))) if len(digests) else 0
