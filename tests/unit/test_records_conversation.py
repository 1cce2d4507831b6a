"""The rules of a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from studio.records.conversation import Conversation, Message, PlainText, broken_rule, unknown_role

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def say(role: str, content: str = "x", **more: Any) -> Message:
    return Message(role=role, content=content, **more)  # type: ignore[arg-type]


U, A, S, T = say("user"), say("assistant"), say("system"), say("tool")
C = say("assistant", "", tool_calls=(CALL,))


@pytest.mark.parametrize(
    "messages",
    [
        [U, A], [S, U, A], [U, A, U, A], [say("system", ""), U, A], [U, C], [U, C, T, A], [S, U, C, T, T, A, U, A],
        [U, C, T, C, T, A], [U, C, say("tool", ""), A],
    ],
)  # fmt: skip
def test_good_orders(messages: list[Message]) -> None:
    assert broken_rule(messages) is None


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([S], "system prompt only"),
        ([A, U], "message 1 should be from the user"),
        ([S, A], "message 2 should be from the user"),
        ([U, U, A], "message 2 should be from the assistant"),
        ([S, S, U, A], "message 2 should be from the user but is from the system"),
        ([U, A, U], "does not end with an assistant"),
        ([U, say("assistant", "  \n")], "message 2 (assistant) is empty"),
        ([say("user", ""), A], "message 1 (user) is empty"),
        ([U, say("assistant", "a\x00")], "NUL"),
        ([U, say("assistant", "\ud83d")], "surrogate"),
        ([U, say("assistant", "x\ufdd0")], "reserves"),
        ([U, T, A], "message 2 should be from the assistant but is from the tool"),
        ([U, A, T], "message 3 should be from the user but is from the tool"),
        ([U, C, A], "message 3 should be from the tool but is from the assistant"),
        ([U, C, U, A], "message 3 should be from the tool but is from the user"),
        ([U, C, T], "does not end with an assistant"),
        ([U, C, T, U], "message 4 should be from the assistant but is from the user"),
        ([say("user", "x", tool_calls=(CALL,)), A], "message 1 (user) calls tools"),
    ],
)
def test_broken_orders(messages: list[Message], reason: str) -> None:
    assert reason in (broken_rule(messages) or "")


def test_roles_nobody_knows() -> None:
    assert "message 3 has the role 'bot'" in (unknown_role(3, "bot") or "")
    assert unknown_role(1, "tool") is None


def test_an_answer_must_be_trained() -> None:
    assert broken_rule([U, A], [False, False]) == "none of its answers is marked for training"
    assert broken_rule([U, A, U, A], [False, False, False, True]) is None


def test_messages_as_dicts_say_only_what_is_there() -> None:
    assert C.as_dict() == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    named = say("tool", "1", name="add", tool_call_id="c")
    assert named.as_dict() == {"role": "tool", "content": "1", "name": "add", "tool_call_id": "c"}
    assert U.as_dict() == {"role": "user", "content": "x"}


def test_plain_texts() -> None:
    assert PlainText(text=" a ").text == " a "
    for wrong, reason in (("", "is empty"), (" \n", "is empty"), ("a\x00", "NUL"), ("\ud800", "surrogate")):
        with pytest.raises(ValidationError, match=reason):
            PlainText(text=wrong)


def test_equal_records_are_equal_and_hash_alike() -> None:
    one, two = (Conversation(messages=(U, A), rejected=(say("assistant", "y"),)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Conversation(messages=(U, A))


def test_conversation_is_frozen_and_checked() -> None:
    conversation = Conversation(messages=(Message(role="user", content="q"), Message(role="assistant", content="a")))
    with pytest.raises(ValidationError):
        conversation.train = (True, True)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="does not end"):
        Conversation(messages=(Message(role="user", content="q"),))
    with pytest.raises(ValidationError, match="flags"):
        Conversation(messages=conversation.messages, train=(True,))


def test_trained_and_system() -> None:
    messages = tuple(Message(role=role, content=role) for role in ("user", "assistant", "user", "assistant"))
    conversation = Conversation(messages=messages, train=(False, False, False, True))
    assert conversation.trained == (False, False, False, True)
    longer = conversation.with_system("be kind")
    assert longer.trained == (False, False, False, False, True)
    assert longer.messages[0].content == "be kind"
    assert longer.with_system("other") is longer
    assert conversation.with_system(None) is conversation
