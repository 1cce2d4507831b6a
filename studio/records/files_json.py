"""Rows of JSON Lines, JSON lists and JSON objects, one at a time, whatever the size of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from studio.records.errors import DataError, Skipped, shown
from studio.records.json_values import BLANK, MARGIN, Fault, JsonValues
from studio.records.json_window import TextWindow
from studio.records.rowstream import Entry, RowStream
from studio.records.textfile import LONGEST_ROW
from studio.records.textstream import TextStream

_TOO_LONG = f"it is longer than {LONGEST_ROW // 1024**2} MB"
# A list under one of these names in an object is a conversation, not the rows of a file.
_TURNS = {
    "messages", "message", "conversation", "conversations", "turns", "history", "dialog", "dialogue", "chat", "tools",
    "functions", "images", "chosen", "rejected", "prompt", "completion",
}  # fmt: skip


def open_json(path: Path, name: str) -> RowStream:
    """The rows of a JSON file: lines, a list, an object around a list, or objects written over several lines.

    Which of them it is shows in the content, not in the suffix. Raises DataError for an empty file or list.
    """
    lines = JsonLines(path, name)
    head = lines.file.head()
    start = len(head) - len(head.lstrip(BLANK))
    if start == len(head):
        raise DataError(lines.nothing())
    found = _list_in(head, start)
    if _is_lines(head[start:], found):
        return lines
    if found is None:
        return JsonItems(path, name, start)
    key, offset = found
    if not key and head[offset:].lstrip(BLANK).startswith("]"):
        raise DataError(f"{name} holds an empty list. Add at least one row.")
    return JsonItems(path, name, offset, in_list=True, key=key)


class JsonLines(TextStream):
    """One JSON value a line; row numbers are line numbers."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name, "jsonl")

    def _entries(self) -> Iterator[Entry]:
        read = JsonValues(self.note)
        file = self.file
        for number, line in enumerate(file.lines(), 1):
            if line is None:
                yield Skipped(number, f"line {number} cannot be used: {_TOO_LONG}")
                continue
            if not line or line.isspace():
                continue
            try:
                yield number, read.whole(line.decode(file.codec))
            except UnicodeDecodeError as error:
                yield Skipped(number, self._not_text(number, line, error.start))
            except Fault as fault:
                yield Skipped(number, _sentence(fault, number, (fault.position or 0) + 1))
            self.done = file.done

    def _not_text(self, number: int, line: bytes, start: int) -> str:
        column = len(line[:start].decode(self.file.codec, "replace")) + 1
        return (
            f"line {number}, column {column} is not valid {self.file.encoding.label} (byte 0x{line[start]:02x}); "
            "save the file as UTF-8"
        )


class JsonItems(TextStream):
    """The items of a JSON list, or JSON objects one behind the other; row numbers count the items.

    `offset` is where the first item may stand, `key` the name of the list in an object around it.
    """

    def __init__(self, path: Path, name: str, offset: int, *, in_list: bool = False, key: str = "") -> None:
        super().__init__(path, name, "json")
        self._offset = offset
        self._in_list = in_list
        self._key = key
        if key:
            self.note(f"The rows of {name} are the list '{shown(key, 40)}' of its object.")

    def nothing(self) -> str:
        return f"{self.name} holds an empty list. Add at least one row."

    def _entries(self) -> Iterator[Entry]:
        text = TextWindow(self.file.chunks(), self._offset)
        read = JsonValues(self.note)
        number = 0
        while text.skip_separators():
            if self._in_list and text.next_char() == "]":
                self._look_behind(text)
                return
            number += 1
            yield from self._item(text, read, number)
            self.done = self.file.done
        if self._in_list and not text.given_up:
            self._cut_short(text.place(text.end))
            yield Skipped(number + 1, f"the file was cut short: it breaks off at {text.place(text.end)}")

    def _item(self, text: TextWindow, read: JsonValues, number: int) -> Iterator[Entry]:
        """The next item, or why it cannot be read; the window then stands behind it."""
        while True:
            try:
                value, end = read.part(text.text, text.position)
            except Fault as fault:
                if fault.unsure and not text.ended and not text.is_long:
                    text.grow()
                    continue
                yield Skipped(number, self._refused(text, fault))
                return
            # A number at the very end of the window may go on behind it.
            if end + MARGIN > len(text.text) and not text.ended:
                text.grow()
                continue
            text.position = end
            yield number, value
            return

    def _refused(self, text: TextWindow, fault: Fault) -> str:
        """The reason an item is left out; finds the next item, or gives the rest up."""
        where = text.place(text.position if fault.position is None else min(fault.position, text.end))
        if text.is_long and fault.unsure:
            text.give_up()
            reason = f"the item that begins at {where} cannot be used: {_TOO_LONG}"
            self.note(f"{self.name} could not be read behind {where}: {_TOO_LONG}.")
            return reason
        if fault.torn and text.ended:
            text.give_up()
            self._cut_short(where)
            return f"the file was cut short: the JSON breaks off at {where}"
        reason = f"{fault.reason} at {where}"
        if not text.resume():
            self.note(f"{self.name} could not be read behind {where}; correct that place.")
            reason += ", and the next item could not be found"
        return reason

    def _cut_short(self, where: str) -> None:
        self.note(f"{self.name} was cut short at {where}; the rows before that place were read. Copy the file again.")

    def _look_behind(self, text: TextWindow) -> None:
        """Says what stands behind the list and is not read."""
        text.position += 1
        more = text.skip_separators()
        if more and not self._key:
            self.note(
                f"{self.name} goes on at {text.place(text.position)} behind the end of its list; that was left out."
            )
        other = re.match(r'"([^"]*)"\s*:\s*\[\s*\{', text.text[text.position : text.position + 4096])
        if more and self._key and other:
            self.note(
                f"{self.name} has a second list, '{shown(other[1], 40)}'; only '{shown(self._key, 40)}' was read."
            )


def _sentence(fault: Fault, line: int, column: int) -> str:
    if fault.position is None:
        return f"{fault.reason} in line {line}"
    if fault.torn:
        return f"the JSON breaks off at line {line}, column {column}; the row is not complete"
    return f"{fault.reason} at line {line}, column {column}"


def _list_in(head: str, start: int) -> tuple[str, int] | None:
    """("", position behind "[") of a list; (name, position) of the list an object is made for; None without one."""
    if head[start] == "[":
        return "", start + 1
    decoder = json.JSONDecoder()
    position = start + 1 if head[start] == "{" else len(head)
    try:
        while True:
            key = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*').match(head, position)
            if key is None:
                return None
            position, name = key.end(), json.loads(key[1])
            rows = re.compile(r"\[\s*(?=\{)").match(head, position)
            if rows and name not in _TURNS:
                return name, rows.end()
            position = decoder.raw_decode(head, position)[1]
    except (ValueError, RecursionError):
        return None


def _is_lines(text: str, found: tuple[str, int] | None) -> bool:
    """Whether a text holds one value a line, judged by its first two lines that are not blank."""
    lines = [line.strip(BLANK) for line in text.split("\n") if line.strip(BLANK)]
    first, second = lines[0], lines[1] if len(lines) > 1 else ""
    if found is not None:
        # A list or an object that could hold all rows: lines only if the next line begins another one.
        return _is_value(first) and second.startswith(first[0])
    if not second or first[0] != "{":
        return True
    if second[0] == "{" and first[-1] != "[" and _is_value(second):
        return True
    return second[0] not in "}]," and first[-1] not in "{[,:"


def _is_value(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
