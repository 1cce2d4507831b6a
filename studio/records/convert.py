"""Records as rows again: the canonical row, and other people's formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from studio.records.cells import RowError
from studio.records.conversation import Conversation, PlainText, Record

Target = Literal["messages", "conversation", "alpaca"]
TARGETS: tuple[Target, ...] = ("messages", "conversation", "alpaca")


def to_row(record: Record) -> dict[str, Any]:
    """The canonical row: {"messages", maybe "tools", "images", "rejected"}, or {"text"}.

    An answer that is kept out of the loss has `"loss": false`.
    """
    if isinstance(record, PlainText):
        return {"text": record.text}
    messages = record.as_dicts()
    for message, trained in zip(messages, record.trained, strict=True):
        if message["role"] == "assistant" and not trained:
            message["loss"] = False
    row: dict[str, Any] = {"messages": messages}
    if record.tools:
        row["tools"] = list(record.tools)
    if record.images:
        row["images"] = list(record.images)
    if record.rejected:
        row["rejected"] = [message.as_dict() for message in record.rejected]
    return row


def convert(records: Iterable[Record], to: Target) -> Iterator[dict[str, Any]]:
    """The records as rows of another format. Raises RowError at a record the format cannot hold, with the reason.

    A blank system prompt is left out where the format has no way to say it.
    """
    write = {"messages": to_row, "conversation": _to_turns, "alpaca": _to_alpaca}[to]
    for record in records:
        yield write(record)


def _to_turns(record: Record) -> dict[str, Any]:
    if isinstance(record, PlainText):
        return {"conversation": [{"system": "", "input": "", "output": record.text}]}
    system, pairs = _pairs(record, "conversation")
    turns: list[dict[str, Any]] = []
    for question, answer, trained in pairs:
        turn = {"input": question, "output": answer}
        turns.append(turn if trained else {**turn, "output_with_loss": False})
    if system:
        turns[0] = {"system": system, **turns[0]}
    return {"conversation": turns}


def _to_alpaca(record: Record) -> dict[str, Any]:
    if isinstance(record, PlainText):
        raise RowError("a plain text has no question, so it cannot be written as alpaca")
    system, pairs = _pairs(record, "alpaca")
    if not all(trained for _, _, trained in pairs):
        raise RowError("alpaca cannot say that an answer is kept out of the loss")
    if pairs[-1][1].strip() == "<nooutput>":
        raise RowError("alpaca reads the answer <nooutput> as no answer")
    row: dict[str, Any] = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    if system.strip():
        row["system"] = system
    if len(pairs) > 1:
        row["history"] = [[question, answer] for question, answer, _ in pairs[:-1]]
    return row


def _pairs(record: Conversation, target: str) -> tuple[str, list[tuple[str, str, bool]]]:
    """System prompt and (question, answer, trained) of a conversation. Raises RowError for what is more than that."""
    calls = any(message.role == "tool" or message.tool_calls for message in record.messages)
    for what, has in (
        ("tools", record.tools or calls),
        ("images", record.images),
        ("a rejected answer", record.rejected),
    ):
        if has:
            raise RowError(f"it has {what}, which cannot be written as {target}; choose messages")
    messages = list(zip(record.messages, record.trained, strict=True))
    system = messages.pop(0)[0].content if record.messages[0].role == "system" else ""
    return system, [
        (question.content, answer.content, trained)
        for (question, _), (answer, trained) in zip(messages[::2], messages[1::2], strict=True)
    ]
