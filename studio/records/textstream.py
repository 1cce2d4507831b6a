"""What the readers of texts share: the file behind them, and what is said about its encoding."""

from __future__ import annotations

from abc import ABC
from pathlib import Path

from studio.records.encodings import UTF8, Encoding
from studio.records.rowstream import RowStream
from studio.records.textfile import TextFile


class TextStream(RowStream, ABC):
    """Rows of a text file; `total` and `done` are bytes."""

    def __init__(self, path: Path, name: str, kind: str) -> None:
        self.file = TextFile(path, self._encoding_found)
        super().__init__(name, kind, self.file.size)
        self.encoding = UTF8.name

    def _encoding_found(self, encoding: Encoding, mark: bool) -> None:
        self.encoding = encoding.name
        if mark:
            self.note("The file begins with a byte order mark, which is no part of the text.")
        elif encoding != UTF8:
            self.note(f"The file is encoded as {encoding.label}; it was read as such.")
