"""Preference pairs: a question with a better and a worse answer."""

from __future__ import annotations

from typing import Any

from studio.records.cells import RowError, listed, text
from studio.records.conversation import Conversation, Message
from studio.records.draft import Draft
from studio.records.mappings import Mapping
from studio.records.shapes_chat import message_list, read_messages
from studio.records.shapes_text import add_tagged


def from_preference(row: dict[str, Any], mapping: Mapping) -> Conversation:
    """Columns chosen and rejected; maybe prompt, input, messages (earlier turns), system.

    Each is a text, a message, a list of messages or a text with speakers' marks; chosen and rejected may be the answer
    alone or the whole conversation, which must then be the same up to its last answer.
    """
    draft = Draft(mapping)
    chosen, rejected = (_side(row, mapping.column(key), mapping) for key in ("chosen", "rejected"))
    asked = () if chosen[0].role in ("user", "system") else _question(row, mapping)
    whole = [*asked, *chosen]
    other = [*(() if rejected[0].role in ("user", "system") else asked or whole[:-1]), *rejected]
    if other[: len(whole) - 1] != whole[:-1] or len(other) < len(whole):
        raise RowError("the chosen and the rejected answer do not answer the same question")
    for message in whole:
        draft.messages.append(message)
        draft.train.append(message.role == "assistant")
    draft.rejected = tuple(other[len(whole) - 1 :])
    draft.add_system(text(row, mapping.column("system"), optional=True))
    return draft.finish()


def _side(row: dict[str, Any], key: str, mapping: Mapping) -> tuple[Message, ...]:
    """The messages of a chosen or rejected cell."""
    return _spoken(row, key, mapping, "assistant")


def _question(row: dict[str, Any], mapping: Mapping) -> tuple[Message, ...]:
    if row.get(mapping.columns.get("messages", "")) is not None:
        return read_messages(listed(row, mapping.columns["messages"]), mapping)
    found = _spoken(row, mapping.column("prompt"), mapping, "user")
    more = text(row, mapping.columns["input"], optional=True) if "input" in mapping.columns else ""
    if more.strip():
        last = found[-1]
        parts = [part for part in (last.content, more) if part.strip()]
        found = (*found[:-1], last.model_copy(update={"content": "\n".join(parts)}))
    return found


def _spoken(row: dict[str, Any], key: str, mapping: Mapping, role: str) -> tuple[Message, ...]:
    """What a cell says: a list of messages, a text with speakers' marks, or a text of one speaker."""
    value = row.get(key)
    messages = message_list(value, mapping)
    if messages is not None:
        found = read_messages(messages, mapping)
    elif isinstance(value, str) and mapping.tags and mapping.tag_pattern.search(value):
        draft = Draft(mapping)
        add_tagged(draft, value)
        # A prompt may end with the mark of the assistant who is to answer it.
        found = tuple(m for m in draft.messages if m.content or role == "assistant")
    else:
        found = (Message(role=role, content=text(row, key)),)  # type: ignore[arg-type]
    if not found or not any(message.content.strip() or message.tool_calls for message in found):
        raise RowError(f"'{key}' is empty; write it or delete the row")
    return found
