"""Plain texts, one file or a folder of them, as rows {"text": ...} for continued pre-training."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from studio.records.encodings import BAD, UTF8, Encoding
from studio.records.errors import DataError, Skipped, shown
from studio.records.rowstream import Entry, RowStream, fault_of
from studio.records.textfile import TextFile
from studio.records.textstream import TextStream

# A file up to this size is one row; a larger one is cut at blank lines near PIECE characters.
WHOLE_BYTES = 1024 * 1024
PIECE = 64 * 1024
MOST_FILES = 100_000
_SUFFIXES = (".txt", ".md")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


class TextRows(TextStream):
    """One text file. Row numbers count the pieces."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name, "text")
        head = self.file.head()
        if not head.strip():
            raise DataError(self.nothing())
        if re.match(r'\s*(\[\s*)?\{\s*"', head):
            self.note(f"{name} looks like JSON but is read as plain text. Rename it to .jsonl to read its rows.")

    def nothing(self) -> str:
        return f"{self.name} is empty. Choose a file with text."

    def _entries(self) -> Iterator[Entry]:
        for number, text in enumerate(_pieces(self.file, self.note, self.name), 1):
            yield number, {"text": text}
            self.done = self.file.done


class FolderRows(RowStream):
    """The .txt and .md files of a folder and the folders in it, by name. Row numbers count the pieces of all files."""

    def __init__(self, path: Path, name: str) -> None:
        """Lists the files. Raises DataError when there is none."""
        super().__init__(name, "folder", 0)
        self._folder = path
        self._files = sorted(self._listed())
        if not self._files:
            raise DataError(_no_texts(path, name))
        self.total = sum(file.stat().st_size for file in self._files)
        self.encoding = UTF8.name

    def nothing(self) -> str:
        return f"All {len(self._files)} text files in {self.name} are empty. Choose a folder with texts."

    def _entries(self) -> Iterator[Entry]:
        number = read = 0
        for path in self._files:
            inner = shown(path.relative_to(self._folder).as_posix(), 80)
            try:
                file = TextFile(path, self._reporter(inner))
                for text in _pieces(file, self.note, inner):
                    number += 1
                    yield number, {"text": text}
                    self.done = read + file.done
                read += file.size
            except OSError as error:
                number += 1
                yield Skipped(number, f"{inner} cannot be read: {fault_of(error)}")

    def _reporter(self, inner: str) -> Callable[[Encoding, bool], None]:
        def report(encoding: Encoding, mark: bool) -> None:
            if encoding != UTF8:
                self.note(f"{inner} is encoded as {encoding.label}; it was read as such.")

        return report

    def _listed(self) -> Iterator[Path]:
        found = 0
        for place, folders, files in os.walk(self._folder):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for file in files:
                path = Path(place, file)
                if file.startswith(".") or path.suffix.lower() not in _SUFFIXES or not self._is_ours(path):
                    continue
                found += 1
                if found > MOST_FILES:
                    raise DataError(f"{self.name} has more than {MOST_FILES} text files. Choose a smaller folder.")
                yield path

    def _is_ours(self, path: Path) -> bool:
        """Whether a path is a file, and, if it is a link, one that stays in the folder."""
        if path.is_symlink() and not path.resolve().is_relative_to(self._folder):
            self.note(f"{shown(path.name)} is a link that leads out of {self.name}; it was left out.")
            return False
        return path.is_file()


def _pieces(file: TextFile, note: Callable[[str], None], name: str) -> Iterator[str]:
    """The text of a file, whole if it is small; nothing for an empty one. Damaged bytes are taken out and noted."""
    whole = file.size <= WHOLE_BYTES and file.path.suffix.lower() != ".gz"
    waiting = ""
    line = 1
    for chunk in file.chunks():
        if BAD in chunk:
            bad = line + chunk.count("\n", 0, chunk.index(BAD))
            note(f"{name} has bytes in line {bad} that are not valid {file.encoding.label}; they were left out.")
            chunk = chunk.replace(BAD, "")
        line += chunk.count("\n")
        waiting += chunk
        while not whole and len(waiting) > 2 * PIECE:
            end = _cut(waiting)
            yield from _filled(waiting[:end])
            waiting = waiting[end:]
    yield from _filled(waiting)


def _filled(text: str) -> Iterator[str]:
    if text.strip():
        yield text.replace("\r\n", "\n").strip("\r\n")


def _cut(text: str) -> int:
    """Where to cut a long text: behind a blank line near PIECE, else a line, a sentence or a word."""
    window = text[: PIECE + PIECE // 2]
    blanks = [match.end() for match in _BLANK_LINE.finditer(window, PIECE // 2)]
    for end in (blanks[-1] if blanks else 0, window.rfind("\n") + 1, window.rfind("。") + 1, window.rfind(" ") + 1):
        if end > PIECE // 4:
            return end
    return len(window)


def _no_texts(path: Path, name: str) -> str:
    """The sentence for a folder that holds no texts; it names the data files there are."""
    try:
        files = sorted(file.name for file in path.iterdir() if file.suffix and not file.name.startswith("."))
    except OSError as error:
        return f"The folder {name} cannot be read: {fault_of(error)}. Check its permissions."
    if not files:
        return f"The folder {name} has no files that can be read. Choose a file or a folder with .txt or .md files."
    listed = ", ".join(shown(file, 40) for file in files[:5]) + (", …" if len(files) > 5 else "")
    return f"{name} is a folder without .txt or .md files. Choose one of its files: {listed}."
