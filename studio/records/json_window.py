"""A part of a long JSON text that moves through the file, with the place of every character in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from studio.records.json_values import BLANK
from studio.records.textfile import LONGEST_ROW

_SEPARATORS = re.compile(rf"[{BLANK},]*+")
# The parts that matter for finding the end of an item that cannot be parsed. A line feed ends a text, so that one
# missing quotation mark does not turn the rest of the file inside out.
_TOKEN = re.compile(r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"?|[\[\]{},]')
_MOST_TOKENS = 300_000


class TextWindow:
    """The part of a long text that is being read; knows its line and column in the file."""

    def __init__(self, chunks: Iterator[str], offset: int) -> None:
        self._chunks = chunks
        self.text = ""
        self.position = 0
        self.ended = False
        self.given_up = False
        self._line, self._column = 1, 1
        while len(self.text) <= offset and not self.ended:
            self.grow()
        self.position = offset

    @property
    def end(self) -> int:
        """The position behind the last character that is not blank."""
        return len(self.text.rstrip(BLANK))

    @property
    def is_long(self) -> bool:
        """Whether more is unread than one row may have."""
        return len(self.text) - self.position > LONGEST_ROW

    def next_char(self) -> str:
        return self.text[self.position : self.position + 1]

    def grow(self) -> None:
        """Forgets what is read and adds at least as much text as is left: reading stays linear in the size."""
        seen = self.text[: self.position]
        lines = seen.count("\n")
        self._column = len(seen) - seen.rfind("\n") if lines else self._column + len(seen)
        self._line += lines
        left = len(self.text) - self.position
        parts, wanted = [self.text[self.position :]], max(min(left, LONGEST_ROW + 1 - left), 1)
        while wanted > 0 and not self.ended:
            part = next(self._chunks, None)
            self.ended = part is None
            parts.append(part or "")
            wanted -= len(part or "")
        self.text, self.position = "".join(parts), 0

    def skip_separators(self) -> bool:
        """Moves to the next character that is neither blank nor a comma; False at the end of the text."""
        while not self.given_up:
            rest = _SEPARATORS.match(self.text, self.position)
            self.position = rest.end() if rest else self.position
            if self.position < len(self.text):
                return True
            if self.ended:
                return False
            self.grow()
        return False

    def place(self, position: int) -> str:
        before = self.text[:position]
        lines = before.count("\n")
        column = len(before) - before.rfind("\n") if lines else self._column + len(before)
        return f"line {self._line + lines}, column {column}"

    def give_up(self) -> None:
        self.given_up = True

    def resume(self) -> bool:
        """Moves behind the item that cannot be parsed; gives up and returns False when its end is not found."""
        while True:
            found = _end_of_item(self.text, self.position)
            if found is not None and found >= 0:
                self.position = max(found, self.position + 1)
                return True
            if self.ended or self.is_long or found is not None:
                self.give_up()
                return False
            self.grow()


_SEPARATORS = re.compile(rf"[{BLANK},]*+")


def _end_of_item(text: str, start: int) -> int | None:
    """Where the item at `start` ends by its brackets: behind its last one, or before the comma that follows it.

    None when the text ends before; -1 when the search takes too long.
    """
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(text, start)):
        if count > _MOST_TOKENS:
            return -1
        kind = token[0][0]
        if kind in "[{":
            depth += 1
        elif kind in "]}" and depth <= 1:
            return token.end() if depth else token.start()
        elif kind in "]}":
            depth -= 1
        elif kind == "," and depth == 0:
            return token.start()
    return None
