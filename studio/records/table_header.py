"""The line of a table that names its columns: checked once, then used to turn cells into rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from studio.records.errors import DataError, Skipped, shown
from studio.records.rowstream import Entry

MOST_COLUMNS = 1000
_LONGEST_NAME = 60
_REMEDY = "Put a line with the names of the columns on top, for example: question,answer."
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)*%?")
_SENTENCE = re.compile(r"[。！？]|[.!?]$")


class Header:
    """Names of columns by position; `columns` are those that are read, `width` counts all."""

    def __init__(self, cells: Sequence[str], below: Sequence[str], name: str, note: Callable[[str], None]) -> None:
        """Takes the first line and the one below it. Raises DataError when the first cannot name columns."""
        names = [" ".join(cell.split()) for cell in trimmed(cells)]
        self.width = len(names)
        first = 0
        if len(names) > 1 and not names[0] and below and below[0].isdigit():
            # The index that pandas writes.
            note(f"The first column of {name} has no name and only counts the rows; it was left out.")
            first = 1
        _check(names[first:], name, first)
        self._names = list(enumerate(names))[first:]
        self.columns = tuple(names[first:])

    def row(self, number: int, cells: Sequence[str]) -> Entry:
        """The cells as `{column: text}`, or Skipped when there are too many or too few."""
        if len(cells) > self.width:
            cells = [*cells[: self.width], *trimmed(cells[self.width :])]
        if len(cells) != self.width:
            count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            return Skipped(number, f"row {number} has {count} where the header has {self.width} columns")
        return number, {name: cells[index] for index, name in self._names}


def trimmed(cells: Sequence[str]) -> list[str]:
    """The cells without the empty ones at the end."""
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return list(cells[:end])


def _check(names: Sequence[str], name: str, first: int) -> None:
    if not names:
        raise DataError(f"The first line of {name} is empty. {_REMEDY}")
    if len(names) > MOST_COLUMNS:
        raise DataError(f"{name} has {len(names)} columns; at most {MOST_COLUMNS} are read. Remove those not needed.")
    for number, text in enumerate(names, first + 1):
        if not text:
            raise DataError(f"Column {number} of {name} has no name. Give each column a name in the first line.")
        if len(text) > _LONGEST_NAME or _NUMBER.fullmatch(text) or _SENTENCE.search(text):
            raise DataError(
                f"The first line of {name} looks like data, not like names of columns (column {number}: "
                f"'{shown(text, 40)}'). {_REMEDY}"
            )
    twice = [text for text, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{name} has two columns named '{shown(twice[0], 40)}'. Give each column a name of its own.")
