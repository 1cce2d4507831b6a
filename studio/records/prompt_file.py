"""Files of prompts: lines of a text, a column of a table, or conversations, each up to where the answer begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.records.conversation import Conversation, broken_text
from studio.records.errors import DataError, Skipped, shown
from studio.records.files import open_rows
from studio.records.formats import RowError, detect, to_record
from studio.records.mappings import Mapping as Columns
from studio.records.rowstream import Entry
from studio.records.textfile import TextFile

FIELD = "prompts"
MOST = 100_000
"""Prompts of one file."""
LONGEST = 200_000
"""Characters of one prompt, all its messages together."""
COLUMNS = (
    "prompt", "question", "instruction", "query", "user", "input", "text", "问题", "提问", "提示词", "提示",
    "指令", "输入",
)  # fmt: skip
"""Names of a column of prompts, the likeliest first."""
EXPECTED = ("reference", "expected", "answer", "output", "response", "completion", "label", "答案", "回答", "输出")
"""Names of a column with the answer that is wished for."""
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class PromptRow:
    """One thing to ask: messages that end with the user's turn, and the answer the file has for it, if it has one.

    `row` is its number in the file, from 1.
    """

    row: int
    messages: tuple[dict[str, Any], ...]
    reference: str = ""

    @property
    def question(self) -> str:
        """The last turn."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True)
class PromptFile:
    """What a file of prompts holds; `notes` are sentences about it."""

    rows: list[PromptRow]
    skipped: list[Skipped]
    notes: list[str]


def read_prompts(path: Path) -> PromptFile:
    """Every prompt of a file. Raises DataError (field prompts) when there is none, or more than can be asked."""
    try:
        entries, notes = _entries(path)
        rows: list[PromptRow] = []
        skipped: list[Skipped] = []
        reader = _Reader()
        for entry in entries:
            found = entry if isinstance(entry, Skipped) else reader.read(*entry)
            if isinstance(found, Skipped):
                skipped.append(found)
            elif found:
                rows.append(found)
            if len(rows) > MOST:
                raise DataError(f"{shown(path.name)} has more than {MOST} prompts. Divide it into several files.")
    except DataError as error:
        raise DataError(error.message, field=FIELD) from None
    if not rows:
        reason = f" Row {skipped[0].row}: {skipped[0].reason}." if skipped else ""
        known = ", ".join(COLUMNS[:5])
        raise DataError(
            f"{shown(path.name)} has no prompts.{reason} Write one a line (.txt), a column called one of {known}, or "
            "rows with messages.",
            field=FIELD,
        )
    return PromptFile(rows, skipped, notes)


def _entries(path: Path) -> tuple[Iterator[Entry], list[str]]:
    if path.suffix.lower() in (".txt", ".md") and path.is_file():
        return _lines(path), []
    stream = open_rows(path)
    return iter(stream), stream.notes


def _lines(path: Path) -> Iterator[Entry]:
    file = TextFile(path, lambda *_: None)
    for number, line in enumerate(file.lines(), 1):
        if line is None:
            yield Skipped(number, "it is too long for a line")
            continue
        text = line.decode(file.codec, errors="replace").strip()
        if text:
            yield number, text


class _Reader:
    """Rows as prompts. How rows of a data format are read is found out with the first one that needs it."""

    def __init__(self) -> None:
        self.columns: Columns | None = None

    def read(self, number: int, value: Any) -> PromptRow | Skipped | None:
        """One row; None for an empty one."""
        if isinstance(value, str):
            return _plain(number, value)
        if not isinstance(value, Mapping):
            return Skipped(number, "it is neither a text nor an object with named values")
        row = {str(key).strip(): cell for key, cell in value.items()}
        if isinstance(row.get("messages"), list):
            return _conversation(number, row["messages"])
        names = {key.lower(): key for key in row}
        column = next((names[name] for name in COLUMNS if name in names), None)
        if column is None and len(row) == 1:
            column = next(iter(row))
        if column is None or not isinstance(row[column], str | int | float | None):
            return self._record(number, dict(value))
        return _of_columns(number, row, names, column)

    def _record(self, number: int, row: dict[str, Any]) -> PromptRow | Skipped:
        """A row of a data format, without its last answer."""
        try:
            self.columns = self.columns or detect([row], "the file")
            record = to_record(row, self.columns)
        except (RowError, DataError):
            return Skipped(number, f"none of its columns is known as a prompt ({', '.join(map(str, row))[:100]})")
        if not isinstance(record, Conversation):
            return Skipped(number, "it is a text without a question")
        found = _conversation(number, record.as_dicts())
        return found if found else Skipped(number, "it is empty")


def _plain(number: int, text: str, system: str = "", reference: str = "") -> PromptRow | Skipped | None:
    text = text.strip()
    if not text:
        return None
    turns = [{"role": "system", "content": system}] if system.strip() else []
    return _checked(number, [*turns, {"role": "user", "content": text}], reference)


def _of_columns(
    number: int, row: Mapping[str, Any], names: Mapping[str, str], column: str
) -> PromptRow | Skipped | None:
    def cell(name: str) -> str:
        value = row.get(names.get(name, ""))
        return "" if value is None else str(value).strip()

    text = cell(column.lower())
    if column.lower() in ("instruction", "指令"):  # Alpaca's second half of a question
        text = "\n".join(filter(None, [text, cell("input") or cell("输入")]))
    reference = next((found for name in EXPECTED if (found := cell(name))), "")
    return _plain(number, text, cell("system") or cell("系统提示词"), reference)


def _conversation(number: int, messages: list[Any]) -> PromptRow | Skipped | None:
    """The messages up to the last question; what is said behind it is the reference."""
    turns = []
    for place, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            return Skipped(number, f"message {place} has no role of {', '.join(_ROLES)}")
        content = message.get("content")
        if not isinstance(content, str | None):
            return Skipped(number, f"message {place} is no text")
        turns.append({**message, "content": content or ""})
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is None:
        return Skipped(number, "it has no question")
    reference = next((turn["content"] for turn in turns[last + 1 :] if turn["role"] == "assistant"), "")
    kept = [
        {key: turn[key] for key in ("role", "content", "tool_calls", "tool_call_id") if key in turn} for turn in turns
    ]
    return _checked(number, kept[: last + 1], reference)


def _checked(number: int, turns: list[dict[str, Any]], reference: str) -> PromptRow | Skipped:
    if sum(len(turn["content"]) for turn in turns) > LONGEST:
        return Skipped(number, f"it is longer than {LONGEST} characters")
    reason = next((reason for turn in turns if (reason := broken_text(turn["content"]))), None)
    if reason:
        return Skipped(number, f"it {reason}")
    return PromptRow(number, tuple(turns), reference)
