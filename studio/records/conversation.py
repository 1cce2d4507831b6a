"""A conversation: the one shape every data format is turned into, with the rules it must obey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from studio.records.errors import shown

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
# Noncharacters: never valid in text, so a chat template can mark the answers with them (see template.py).
MARKS = ("\ufdd0", "\ufdd1")


class Message(BaseModel):
    """One turn: who speaks and what is said.

    `tool_calls` (assistant only) are calls as the OpenAI API writes them, with `function.arguments` as an object where
    it was valid JSON; a `tool` message answers one and may say which (`tool_call_id`, `name`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates and JSON files want it; keys that say nothing are left out."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [dict(call) for call in self.tool_calls]
        for key in ("name", "tool_call_id"):
            value = getattr(self, key)
            if value is not None:
                found[key] = value
        return found


class PlainText(BaseModel):
    """A text for continued pre-training: every token of it carries loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str

    @model_validator(mode="after")
    def check_rules(self) -> PlainText:
        """Something to read, and nothing that cannot be stored."""
        reason = broken_text(self.text) or (None if self.text.strip() else "is empty")
        if reason:
            raise ValueError(f"the text {reason}")
        return self


class Conversation(BaseModel):
    """An optional system prompt, then user and assistant in turn, ending with an assistant's answer.

    An answer that calls tools is followed by the tools' results and then by the assistant again. `train` has one flag
    per message: whether an answer carries loss. None means every answer does. `tools` are the functions the assistant
    may call, `images` the pictures an `<image>` in the text stands for, `rejected` the worse answer of a preference
    pair (in place of the last message).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...] = Field(max_length=10_000)
    train: tuple[bool, ...] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[str, ...] = ()
    rejected: tuple[Message, ...] = ()

    @model_validator(mode="after")
    def check_rules(self) -> Conversation:
        """The rules of `broken_rule`, and one flag per message."""
        if self.train is not None and len(self.train) != len(self.messages):
            raise ValueError(f"train has {len(self.train)} flags for {len(self.messages)} messages")
        reason = broken_rule(self.messages, self.train)
        if reason:
            raise ValueError(reason)
        return self

    @property
    def trained(self) -> tuple[bool, ...]:
        """One flag per message: True where the message is an answer that carries loss."""
        flags = self.train or (True,) * len(self.messages)
        return tuple(flag and m.role == "assistant" for flag, m in zip(flags, self.messages, strict=True))

    def as_dicts(self) -> list[dict[str, Any]]:
        """The messages as chat templates want them: `[{"role", "content"}, ...]`."""
        return [message.as_dict() for message in self.messages]

    def with_system(self, system: str | None) -> Conversation:
        """The same conversation with `system` in front, unless it has a system prompt of its own."""
        if not system or self.messages[0].role == "system":
            return self
        train = None if self.train is None else (False, *self.train)
        return self.model_copy(
            update={"messages": (Message(role="system", content=system), *self.messages), "train": train}
        )


Record = Conversation | PlainText


def broken_rule(messages: Sequence[Message], train: Sequence[bool] | None = None) -> str | None:
    """The first rule the messages break, as a clause for a sentence; None if all is well."""
    if not messages:
        return "it has no messages"
    for number, message in enumerate(messages, 1):
        problem = _broken_message(number, message)
        if problem:
            return problem
    roles = [message.role for message in messages]
    return _broken_order(messages, roles[0] == "system") or _nothing_trained(roles, train)


def broken_text(text: str) -> str | None:
    """Why a text cannot be stored or tokenised, as a clause; None if it can."""
    if "\x00" in text:
        return "contains a NUL character"
    if text.isascii():  # nearly always, and known without looking
        return None
    if any(mark in text for mark in MARKS):
        return "contains a character that Unicode reserves for programs (U+FDD0 or U+FDD1)"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "contains half of a Unicode surrogate pair (a broken character)"
    return None


def unknown_role(number: int, role: str) -> str | None:
    """The clause for a role nobody knows; None for a known one."""
    if role in ROLES:
        return None
    return f"message {number} has the role '{shown(role, 20)}'; known roles are {', '.join(ROLES[:-1])} and {ROLES[-1]}"


def _broken_message(number: int, message: Message) -> str | None:
    problem = broken_text(message.content)
    if problem:
        return f"message {number} ({message.role}) {problem}"
    if message.tool_calls and message.role != "assistant":
        return f"message {number} ({message.role}) calls tools; only the assistant can"
    if not message.content.strip() and not message.tool_calls and message.role in ("user", "assistant"):
        return f"message {number} ({message.role}) is empty"
    return None


def _broken_order(messages: Sequence[Message], has_system: bool) -> str | None:
    body = messages[1:] if has_system else messages
    if not body:
        return "it has a system prompt only"
    allowed: tuple[str, ...] = ("user",)
    for number, message in enumerate(body, 1 + has_system):
        if message.role not in allowed:
            return f"message {number} should be from the {allowed[0]} but is from the {message.role}"
        if message.role == "user":
            allowed = ("assistant",)
        elif message.role == "tool":
            allowed = ("assistant", "tool")
        else:
            allowed = ("tool",) if message.tool_calls else ("user",)
    # A call is an answer of its own: what the model has to learn may be just that.
    return None if body[-1].role == "assistant" else "it does not end with an assistant's answer"


def _nothing_trained(roles: Sequence[str], train: Sequence[bool] | None) -> str | None:
    flags = train if train is not None else [True] * len(roles)
    if any(flag and role == "assistant" for flag, role in zip(flags, roles, strict=True)):
        return None
    return "none of its answers is marked for training"
