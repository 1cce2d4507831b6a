"""Rows of CSV and TSV tables: the separator is found in the content, the first line names the columns."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from studio.records.encodings import BAD, MARK_BAD
from studio.records.errors import DataError, Skipped, shown
from studio.records.rowstream import Entry
from studio.records.table_header import Header
from studio.records.textfile import LONGEST_ROW
from studio.records.textstream import TextStream

_SEPARATORS = ",;\t|"
_JUDGED = 20
# How far a quotation mark that is opened and never closed may reach, and how many lines are read again because of that.
_LONGEST_RECORD = 1024 * 1024
_MOST_REREAD = 1_000_000
_EXCEL_HINT = re.compile(r"sep=([^\s])\r?|sep=(\t)\r?", re.IGNORECASE)
# Line where a record begins, its cells, and why it cannot be used.
_Record = tuple[int, list[str], str | None]


class CsvRows(TextStream):
    """Rows as `{column: text}`; the number of a row is that of its line, the header's line being the first."""

    def __init__(self, path: Path, name: str) -> None:
        """Finds separator and columns. Raises DataError when the first line cannot name the columns."""
        super().__init__(path, name, "csv")
        csv.field_size_limit(LONGEST_ROW)
        head = self.file.head()
        if not head.strip():
            raise DataError(super().nothing())
        if re.match(r'\s*(\[\s*)?\{\s*["}]', head):
            raise DataError(f"{name} is not a table, but JSON. Rename it so that it ends in .json and try again.")
        lines = head.split("\n")
        hint = _EXCEL_HINT.fullmatch(lines[0])
        self._separator = (hint[1] or hint[2]) if hint else _separator_of(lines, path)
        self.kind = "tsv" if self._separator == "\t" else "csv"
        filled = (record for record in self._records(iter(lines)) if any(record[1]) and not (hint and record[0] == 1))
        none: _Record = (0, [], None)
        first, second, *_ = [*islice(filled, 2), none, none]
        self._header_line = first[0]
        self._header = Header(first[1], second[1], name, self.note)
        self.columns = self._header.columns

    def nothing(self) -> str:
        return f"{self.name} has a line with the names of the columns and no rows. Add at least one row."

    def _entries(self) -> Iterator[Entry]:
        decoded = (None if line is None else line.decode(self.file.codec, MARK_BAD) for line in self.file.lines())
        for number, cells, reason in self._records(decoded):
            if number <= self._header_line:
                continue
            if reason is not None:
                yield Skipped(number, reason)
            elif any(cells):
                yield self._header.row(number, cells)
            self.done = self.file.done

    def _records(self, lines: Iterator[str | None]) -> Iterator[_Record]:
        """Cuts lines into records. Where a quotation mark is wrong, the lines behind the first are read again."""
        feed = _Feed(lines)
        reader = csv.reader(feed, delimiter=self._separator, strict=True)
        reread = 0
        while True:
            start = feed.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                last = feed.number
                if reread < _MOST_REREAD:
                    reread += feed.again()
                    last = start
                yield start, [], _quote_fault(error, start, last)
                continue
            yield start, cells, self._fault(feed, start)

    def _fault(self, feed: _Feed, line: int) -> str | None:
        if feed.too_long:
            return f"line {line} is longer than {LONGEST_ROW // 1024**2} MB"
        return f"line {line} holds bytes that are not valid {self.file.encoding.label}" if feed.damaged else None


class _Feed:
    """Lines for csv.reader, with the lines of the present record kept so that they can be read again."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines = lines
        self._waiting: deque[str | None] = deque()
        self._record: list[str | None] = []
        self._size = 0
        self.number = 0
        self.too_long = self.damaged = False

    def begin(self) -> int:
        """Starts a record; its line number."""
        self._record.clear()
        self._size = 0
        self.too_long = self.damaged = False
        return self.number + 1

    def again(self) -> int:
        """Puts the lines behind the first of the present record back; how many there are."""
        more = self._record[1:]
        self._waiting.extendleft(reversed(more))
        self.number -= len(more)
        return len(more)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self._size > _LONGEST_RECORD and self._record:
            raise csv.Error("unexpected end of data")
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self.number += 1
        self._record.append(line)
        if line is None:
            self.too_long = True
            return "\n"
        self._size += len(line)
        if BAD in line:
            self.damaged = True
        return line.removesuffix("\r") + "\n"


def _separator_of(lines: Sequence[str], path: Path) -> str:
    """The character that cuts the first lines into the same number of cells, more than one."""

    def fit(separator: str) -> tuple[int, int]:
        try:
            rows = list(islice(csv.reader((line + "\n" for line in lines), delimiter=separator), _JUDGED))
        except csv.Error:
            rows = []
        widths = [len(row) for row in rows if row]
        if not widths or widths[0] < 2:
            return 0, 0
        return sum(width == widths[0] for width in widths), widths[0]

    order = "\t,;|" if ".tsv" in path.suffixes[-2:] else _SEPARATORS
    return max(order, key=fit)


def _quote_fault(error: csv.Error, first: int, last: int) -> str:
    where = f"line {first}" if first == last else f"lines {first} to {last}"
    if "end of data" in str(error):
        return f"{where}: a quotation mark is opened and never closed"
    if "field larger" in str(error):
        return f"{where}: a cell is longer than {LONGEST_ROW // 1024**2} MB"
    return f"{where}: the quotation marks are wrong ({shown(str(error), 60)})"
