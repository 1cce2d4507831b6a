"""A conversation: the one shape every data format is turned into, with the rules it must obey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from studio.records.errors import shown

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
# Noncharacters: never valid in text, so a chat template can mark the answers with them (see template.py).
MARKS = ("\ufdd0", "\ufdd1")


class Message(BaseModel):
    """One turn: who speaks and what is said."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Role
    content: str


class Conversation(BaseModel):
    """An optional system prompt, then user and assistant in turn, ending with an assistant's answer.

    `train` has one flag per message: whether an answer carries loss. None means every answer does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...] = Field(max_length=10_000)
    train: tuple[bool, ...] | None = None

    @model_validator(mode="after")
    def check_rules(self) -> Conversation:
        """The rules of `broken_rule`, and one flag per message."""
        if self.train is not None and len(self.train) != len(self.messages):
            raise ValueError(f"train has {len(self.train)} flags for {len(self.messages)} messages")
        reason = broken_rule([(message.role, message.content) for message in self.messages], self.train)
        if reason:
            raise ValueError(reason)
        return self

    @property
    def trained(self) -> tuple[bool, ...]:
        """One flag per message: True where the message is an answer that carries loss."""
        flags = self.train or (True,) * len(self.messages)
        return tuple(flag and m.role == "assistant" for flag, m in zip(flags, self.messages, strict=True))

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as chat templates want them: `[{"role", "content"}, ...]`."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def with_system(self, system: str | None) -> Conversation:
        """The same conversation with `system` in front, unless it has a system prompt of its own."""
        if not system or self.messages[0].role == "system":
            return self
        train = None if self.train is None else (False, *self.train)
        return Conversation(messages=(Message(role="system", content=system), *self.messages), train=train)


def broken_rule(turns: Sequence[tuple[str, str]], train: Sequence[bool] | None = None) -> str | None:
    """The first rule the (role, content) turns break, as a clause for a sentence; None if all is well."""
    if not turns:
        return "it has no messages"
    for number, (role, content) in enumerate(turns, 1):
        problem = _broken_message(number, role, content)
        if problem:
            return problem
    body = turns[1:] if turns[0][0] == "system" else turns
    return _broken_order(body, len(turns) - len(body)) or _nothing_trained(turns, train)


def broken_text(text: str) -> str | None:
    """Why a text cannot be stored or tokenised, as a clause; None if it can."""
    if "\x00" in text:
        return "contains a NUL character"
    if any(mark in text for mark in MARKS):
        return "contains a character that Unicode reserves for programs (U+FDD0 or U+FDD1)"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "contains half of a Unicode surrogate pair (a broken character)"
    return None


def _broken_message(number: int, role: str, content: str) -> str | None:
    if role not in ROLES:
        return f"message {number} has the role '{shown(role, 20)}'; known roles are system, user and assistant"
    problem = broken_text(content)
    if problem:
        return f"message {number} ({role}) {problem}"
    if not content.strip() and role != "system":
        return f"message {number} ({role}) is empty"
    return None


def _broken_order(body: Sequence[tuple[str, str]], skipped: int) -> str | None:
    if not body:
        return "it has a system prompt only"
    for index, (role, _) in enumerate(body):
        expected = "user" if index % 2 == 0 else "assistant"
        if role != expected:
            number = index + 1 + skipped
            return f"message {number} should be from the {expected} but is from the {role}"
    return None if body[-1][0] == "assistant" else "it does not end with an assistant's answer"


def _nothing_trained(turns: Sequence[tuple[str, str]], train: Sequence[bool] | None) -> str | None:
    flags = train if train is not None else [True] * len(turns)
    if any(flag and role == "assistant" for flag, (role, _) in zip(flags, turns, strict=True)):
        return None
    return "none of its answers is marked for training"
