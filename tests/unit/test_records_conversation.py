"""The rules of a conversation."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from studio.records.conversation import Conversation, Message, broken_rule

U, A, S = ("user", "q"), ("assistant", "a"), ("system", "s")


@pytest.mark.parametrize("turns", [[U, A], [S, U, A], [U, A, U, A], [("system", ""), U, A]])
def test_good_orders(turns: list[tuple[str, str]]) -> None:
    assert broken_rule(turns) is None


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no messages"),
        ([S], "system prompt only"),
        ([A, U], "message 1 should be from the user"),
        ([S, A], "message 2 should be from the user"),
        ([U, U, A], "message 2 should be from the assistant"),
        ([S, S, U, A], "message 2 should be from the user but is from the system"),
        ([U, A, U], "does not end with an assistant"),
        ([U, ("assistant", "  \n")], "message 2 (assistant) is empty"),
        ([("user", ""), A], "message 1 (user) is empty"),
        ([("bot", "x"), A], "role 'bot'"),
        ([U, ("assistant", "a\x00")], "NUL"),
        ([U, ("assistant", "\ud83d")], "surrogate"),
        ([U, ("assistant", "x\ufdd0")], "reserves"),
    ],
)
def test_broken_orders(turns: list[tuple[str, str]], reason: str) -> None:
    assert reason in (broken_rule(turns) or "")


def test_an_answer_must_be_trained() -> None:
    assert broken_rule([U, A], [False, False]) == "none of its answers is marked for training"
    assert broken_rule([U, A, U, A], [False, False, False, True]) is None


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
