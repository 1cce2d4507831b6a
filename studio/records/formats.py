"""Reads a file of conversations in any known format; tells which format it is, what was skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.records.conversation import Conversation, Message, broken_rule
from studio.records.errors import DataError, nearest, shown
from studio.records.jsonrows import read_rows
from studio.records.mappings import Mapping, load_mappings
from studio.records.placeholders import control_tokens, named_placeholder

Turns = list[tuple[str, str]]


class RowError(Exception):
    """One row cannot be used; the text says why."""


@dataclass(frozen=True)
class Skipped:
    """A row that was left out: its number in the file (list item or line, from 1) and the reason."""

    row: int
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """What a file holds. `conversations[i]` stands in row `rows[i]` of the file; `warnings` are sentences."""

    conversations: list[Conversation]
    skipped: list[Skipped]
    format: str
    rows_read: int
    warnings: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


def read_file(path: Path | str, *, allow_placeholders: bool = False) -> ReadResult:
    """Reads a .json or .jsonl file in any known format.

    Raises DataError when nothing can be used, or when `{{name}}` or `{{author}}` was never filled in
    (`allow_placeholders` is for an import that fills them next).
    """
    file = Path(path)
    rows = read_rows(file)
    mapping = detect([value for _, value in rows], shown(file.name))
    good: list[tuple[int, Conversation]] = []
    skipped: list[Skipped] = []
    for number, value in rows:
        try:
            good.append((number, to_conversation(value, mapping)))
        except RowError as error:
            skipped.append(Skipped(number, str(error)))
    if not good:
        raise DataError(_nothing_left(shown(file.name), mapping, skipped))
    if not allow_placeholders:
        refuse_placeholders(good)
    return ReadResult(
        conversations=[conversation for _, conversation in good],
        skipped=skipped,
        format=mapping.name,
        rows_read=len(rows),
        warnings=_warnings(good, skipped),
        rows=[number for number, _ in good],
    )


def detect(rows: Sequence[Any], name: str) -> Mapping:
    """The format most rows have. Raises DataError naming the columns found and the formats known."""
    mappings = load_mappings()
    votes: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, dict):
            votes.update(mapping.name for mapping in mappings if mapping.required <= row.keys())
    if votes:
        best = votes.most_common(1)[0][0]
        return next(mapping for mapping in mappings if mapping.name == best)
    first = next((row for row in rows if isinstance(row, dict)), None)
    if first is None:
        raise DataError(f"{name} holds no JSON objects, but {_kind_of(rows[0])}. {_known(mappings)}")
    raise DataError(_unknown_columns(list(first), name, mappings))


def to_conversation(row: Any, mapping: Mapping) -> Conversation:
    """One row as a Conversation. Raises RowError with the reason it cannot be used."""
    if not isinstance(row, dict):
        raise RowError(f"the row is {_kind_of(row)}, not an object")
    missing = sorted(mapping.required - row.keys())
    if missing:
        raise RowError(f"the column '{missing[0]}' is missing")
    if mapping.shape == "messages":
        turns, train = _from_messages(row, mapping)
    elif mapping.shape == "turns":
        turns, train = _from_turns(row, mapping)
    else:
        turns, train = _from_single(row, mapping)
    reason = broken_rule(turns, train)
    if reason:
        raise RowError(reason)
    flags = None if train is None or all(train) else tuple(train)
    messages = tuple(Message(role=role, content=content) for role, content in turns)  # type: ignore[arg-type]
    return Conversation(messages=messages, train=flags)


def refuse_placeholders(rows: Sequence[tuple[int, Conversation]]) -> None:
    """Raises DataError at the first row that still has an unfilled name placeholder."""
    for number, conversation in rows:
        for message in conversation.messages:
            found = named_placeholder(message.content)
            if found:
                raise DataError(
                    f"Row {number} still contains the placeholder {found}. Import the file in the Data tab and type "
                    "the name and the author it stands for."
                )


def _from_messages(row: dict[str, Any], mapping: Mapping) -> tuple[Turns, list[bool] | None]:
    items = row[mapping.column("messages")]
    if not isinstance(items, list):
        raise RowError(f"'{mapping.column('messages')}' is {_kind_of(items)}, not a list")
    turns: Turns = []
    train: list[bool] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise RowError(f"message {number} is {_kind_of(item)}, not an object")
        role = _text(item, mapping.column("role"), f"message {number}")
        turns.append((role, _text(item, mapping.column("content"), f"message {number}")))
        train.append(role == "assistant" and _flag(item, mapping.column("loss"), f"message {number}"))
    return turns, _unless_all(turns, train)


def _from_turns(row: dict[str, Any], mapping: Mapping) -> tuple[Turns, list[bool] | None]:
    items = row[mapping.column("turns")]
    if not isinstance(items, list):
        raise RowError(f"'{mapping.column('turns')}' is {_kind_of(items)}, not a list")
    turns: Turns = []
    train: list[bool] = []
    for number, item in enumerate(items, 1):
        where = f"turn {number}"
        if not isinstance(item, dict):
            raise RowError(f"{where} is {_kind_of(item)}, not an object")
        system = _text(item, mapping.column("system"), where, optional=True)
        if system and number == 1:
            turns.append(("system", system))
            train.append(False)
        elif system and ("system", system) != turns[0]:
            raise RowError(f"{where} has another system prompt than the first turn")
        turns.append(("user", _text(item, mapping.column("input"), where)))
        turns.append(("assistant", _text(item, mapping.column("output"), where)))
        train += [False, _flag(item, mapping.column("loss"), where)]
    return turns, _unless_all(turns, train)


def _from_single(row: dict[str, Any], mapping: Mapping) -> tuple[Turns, list[bool] | None]:
    output = _text(row, mapping.column("output"), "the row")
    if output.strip() in mapping.no_answer:
        raise RowError(f"its answer is only the mark {output.strip()}")
    system = _text(row, mapping.column("system"), "the row", optional=True)
    instruction = _text(row, mapping.column("instruction"), "the row", optional=True)
    extra = _text(row, mapping.column("input"), "the row", optional=True)
    question = "\n".join(part for part in (instruction, extra) if part.strip())
    turns: Turns = [("system", system)] if system.strip() else []
    turns += _history(row, mapping.column("history"))
    return [*turns, ("user", question), ("assistant", output)], None


def _history(row: dict[str, Any], key: str) -> Turns:
    """Earlier turns of a single-answer row: a list of [question, answer] pairs."""
    value = row.get(key)
    pairs = [] if value is None else value
    if not isinstance(pairs, list):
        raise RowError(f"'{key}' is {_kind_of(value)}, not a list")
    turns: Turns = []
    for number, pair in enumerate(pairs, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError(f"turn {number} of '{key}' is not a [question, answer] pair")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    return turns


def _text(item: dict[str, Any], key: str, where: str, *, optional: bool = False) -> str:
    value = item.get(key)
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if value is None:
        raise RowError(f"{where} has {'a null' if key in item else 'no'} '{key}'")
    raise RowError(f"'{key}' of {where} is {_kind_of(value)}, not text")


def _flag(item: dict[str, Any], key: str, where: str) -> bool:
    value = item.get(key)
    if value is None or isinstance(value, bool):
        return value is not False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise RowError(f"'{key}' of {where} is {shown(str(value), 20)}, not true or false")


def _unless_all(turns: Turns, train: list[bool]) -> list[bool] | None:
    """None, the usual case, when every answer is trained."""
    every = all(flag for flag, (role, _) in zip(train, turns, strict=True) if role == "assistant")
    return None if every else train


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "something else")


def _known(mappings: Sequence[Mapping]) -> str:
    formats = "; ".join(f"{m.label} with {', '.join(sorted(m.required))}" for m in mappings)
    return f"Known formats: {formats}."


def _unknown_columns(columns: list[str], name: str, mappings: Sequence[Mapping]) -> str:
    listed = ", ".join(f"'{shown(str(column), 30)}'" for column in columns[:12]) or "none"
    wanted = {column: mapping.label for mapping in mappings for column in mapping.required}
    hint = next((found for column in columns if (found := nearest(str(column)[:60], wanted))), "")
    return f"{name} has the columns {listed}, which is no known format. {_known(mappings)}{hint}"


def _nothing_left(name: str, mapping: Mapping, skipped: list[Skipped]) -> str:
    first = skipped[0]
    count = "the only row" if len(skipped) == 1 else f"all {len(skipped)} rows"
    return (
        f"{name} ({mapping.label}) has no usable conversation: {count} had to be skipped; row {first.row}: "
        f"{first.reason}. Correct the file and try again."
    )


def _warnings(good: Sequence[tuple[int, Conversation]], skipped: Sequence[Skipped]) -> list[str]:
    found = []
    if skipped:
        rows = "1 row was" if len(skipped) == 1 else f"{len(skipped)} rows were"
        found.append(f"{rows} skipped; the first is row {skipped[0].row}: {skipped[0].reason}.")
    if len(good) == 1:
        found.append("The file has only one conversation; a model learns little from a single example.")
    distinct = len({conversation.messages for _, conversation in good})
    if distinct * 2 <= len(good):
        found.append(
            f"Only {distinct} of the {len(good)} conversations differ. Repeating the same few makes a model forget "
            "the rest; different wordings and general rows work better."
        )
    marked = next(((n, mark) for n, c in good for m in c.messages if (mark := control_tokens(m.content))), None)
    if marked:
        found.append(f"Row {marked[0]} contains {marked[1]}, which many models read as a control token, not as text.")
    return found
