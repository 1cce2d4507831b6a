"""One row as a record: each shape of a mapping has one function here or in the sibling modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from studio.records.cells import RowError, flag, kind_of, listed, missing_column, text
from studio.records.conversation import PlainText, Record
from studio.records.draft import Draft
from studio.records.mappings import Mapping
from studio.records.shapes_chat import add_messages, from_messages, message_list
from studio.records.shapes_pairs import from_preference
from studio.records.shapes_text import from_moss, from_tagged


def to_record(row: Any, mapping: Mapping) -> Record:
    """One row as a record. Raises RowError with the reason it cannot be used."""
    if not isinstance(row, dict):
        raise RowError(f"the row is {kind_of(row)}, not an object")
    for column in mapping.required:
        if column not in row and not _is_text_row(row, mapping):
            raise missing_column(column, row)
    return _SHAPES[mapping.shape](row, mapping)


def plain_text(content: str) -> PlainText:
    """A text for continued pre-training. Raises RowError when there is nothing to read in it."""
    try:
        return PlainText(text=content)
    except ValidationError as error:
        raise RowError(str(error.errors()[0]["ctx"]["error"])) from None


def _is_text_row(row: dict[str, Any], mapping: Mapping) -> bool:
    """A plain text among conversations, as a dataset of both kinds holds it."""
    return mapping.columns.get("text", "") in row and mapping.shape == "messages"


def _from_messages(row: dict[str, Any], mapping: Mapping) -> Record:
    """Columns messages, role, content; maybe loss, weight, system, tools, functions, image, images, rejected, text."""
    if mapping.column("messages") not in row:
        return plain_text(text(row, mapping.column("text")))
    return from_messages(row, mapping)


def _from_turns(row: dict[str, Any], mapping: Mapping) -> Record:
    """Column turns: a list of objects with system, input, output and maybe loss."""
    items = listed(row, mapping.column("turns"))
    draft = Draft(mapping)
    for number, item in enumerate(items, 1):
        where = f"turn {number}"
        if not isinstance(item, dict):
            raise RowError(f"{where} is {kind_of(item)}, not an object")
        _turn_system(draft, text(item, mapping.column("system"), where, optional=True), number)
        draft.add("user", text(item, mapping.column("input"), where))
        answer = text(item, mapping.column("output"), where)
        draft.add("assistant", answer, train=flag(item, mapping.column("loss"), where))
    if mapping.plain and [m.role for m in draft.messages] == ["user", "assistant"] and not draft.messages[0].content:
        return plain_text(draft.messages[1].content)
    return draft.finish()


def _turn_system(draft: Draft, system: str, number: int) -> None:
    if system and number == 1:
        draft.add("system", system)
    elif system and (draft.messages[0].role, draft.messages[0].content) != ("system", system):
        raise RowError(f"turn {number} has another system prompt than the first turn")


def _from_single(row: dict[str, Any], mapping: Mapping) -> Record:
    """Columns instruction (or a template) and output; maybe input, system, history, keep.

    If role is mapped too, instruction and output may be lists of messages; only those of the output are trained.
    """
    columns = mapping.columns
    draft = Draft(mapping)
    if "keep" in columns and not flag(row, columns["keep"]):
        raise RowError(f"'{columns['keep']}' marks it as a bad answer")
    if "system" in columns:
        draft.add_system(text(row, columns["system"], optional=True))
    if "history" in columns:
        _history(row, columns["history"], draft)
    if not _add_listed(draft, row, "instruction", train=False):
        draft.add("user", _question(row, mapping))
    if not _add_listed(draft, row, "output", train=True):
        draft.add("assistant", _answer(row, mapping))
    return draft.finish()


def _add_listed(draft: Draft, row: dict[str, Any], key: str, *, train: bool) -> bool:
    """Adds the messages of a cell that is a list of them; False if it is not."""
    mapping = draft.mapping
    found = message_list(row.get(mapping.column(key)), mapping) if "role" in mapping.columns else None
    if found:
        add_messages(draft, found, train=train)
    return found is not None


def _question(row: dict[str, Any], mapping: Mapping) -> str:
    if mapping.template:
        columns = mapping.required - {mapping.column("output")}
        return mapping.fill({column: text(row, column) for column in columns})
    column = mapping.columns["instruction"]
    question = text(row, column, optional=True)
    if "input" in mapping.columns:
        extra = text(row, mapping.columns["input"], optional=True)
        question = "\n".join(part for part in (question, extra) if part.strip())
    if not question.strip():
        raise RowError(f"'{column}' is empty; write the question or delete the row")
    return question


def _answer(row: dict[str, Any], mapping: Mapping) -> str:
    column = mapping.columns["output"]
    answer = text(row, column)
    said = answer.strip()
    if not said:
        raise RowError(f"'{column}' is empty; write the answer or delete the row")
    if said in mapping.no_answer:
        raise RowError(f"its answer is only the mark {said}")
    return answer


def _history(row: dict[str, Any], key: str, draft: Draft) -> None:
    """Earlier turns of a single-answer row: a list of [question, answer] pairs."""
    if row.get(key) in (None, ""):
        return
    for number, pair in enumerate(listed(row, key), 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise RowError(f"turn {number} of '{key}' is not a [question, answer] pair")
        draft.add("user", pair[0])
        draft.add("assistant", pair[1])


def _from_text(row: dict[str, Any], mapping: Mapping) -> Record:
    """Column text (or a template): a text for continued pre-training."""
    if mapping.template:
        return plain_text(mapping.fill({column: text(row, column) for column in mapping.required}))
    return plain_text(text(row, mapping.column("text")))


_SHAPES: dict[str, Callable[[dict[str, Any], Mapping], Record]] = {
    "messages": _from_messages,
    "turns": _from_turns,
    "single": _from_single,
    "tagged": from_tagged,
    "text": _from_text,
    "preference": from_preference,
    "moss": from_moss,
}
