"""What every reader of files is: an iterator over rows that can be started again and tells how far it is."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from studio.records.errors import DataError, Skipped

Row = tuple[int, Any]
Entry = Row | Skipped


class RowStream(ABC):
    """The rows of a file, in its order, read in bounded memory; each iteration starts from the beginning.

    A row that cannot be read is a `Skipped` in its place. `total` and `done` count bytes, or rows where the file knows
    how many it has. `notes` are sentences about the file (its encoding, a torn end) and complete after an iteration.
    `columns` is None where a file has no columns of its own (JSON, texts).
    """

    def __init__(self, name: str, kind: str, total: int) -> None:
        self.name = name
        self.kind = kind
        self.encoding = ""
        self.columns: tuple[str, ...] | None = None
        self.notes: list[str] = []
        self.total = total
        self.done = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yields (row number, value) or Skipped. Raises DataError when the file holds nothing at all."""
        self.done = 0
        entry: Entry | None = None
        try:
            for entry in self._entries():
                yield entry
        except (OSError, EOFError, zlib.error) as error:
            # A disk or a packed file that fails half-way: what was read until then stays.
            reason = f"the file cannot be read from here on: {fault_of(error)}"
            if entry is None:
                raise DataError(f"{self.name} cannot be read: {fault_of(error)}. Copy the file again.") from None
            last = entry.row if isinstance(entry, Skipped) else entry[0]
            self.note(f"{self.name} breaks off behind row {last}; copy the file again.")
            yield Skipped(last + 1, reason)
        if entry is None:
            raise DataError(self.nothing())
        self.done = self.total

    def note(self, sentence: str) -> None:
        """Adds a sentence about the file, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def nothing(self) -> str:
        """The sentence for a file without a single row."""
        return f"{self.name} is empty. Choose a file with at least one row."

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """The rows from the start; updates `done`."""


def fault_of(error: Exception) -> str:
    """A short clause for an error of the system or of a library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
