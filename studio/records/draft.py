"""A conversation while it is being read from a row: turns are added in order, then the whole is checked."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from studio.records.cells import RowError
from studio.records.conversation import ROLES, Conversation, Message, broken_rule, unknown_role
from studio.records.mappings import Mapping

IMAGE = "<image>"


class Draft:
    """Turns read so far. `add` never judges their order: `finish` does, with the rules every conversation obeys."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.messages: list[Message] = []
        self.train: list[bool] = []
        self.tools: tuple[dict[str, Any], ...] = ()
        self.images: list[str] = []
        self.rejected: tuple[Message, ...] = ()

    def add(self, role: str, content: str, *, train: bool = True, **more: Any) -> None:
        """Adds a turn; `train` says whether an answer carries loss. Raises RowError for a role nobody knows."""
        if role not in ROLES:
            raise RowError(str(unknown_role(len(self.messages) + 1, role)))
        self.messages.append(Message(role=role, content=content, **more))  # type: ignore[arg-type]
        self.train.append(train and role == "assistant")

    def add_system(self, content: str) -> None:
        """Puts a system prompt in front, unless it says nothing or one is there already."""
        if content.strip() and not (self.messages and self.messages[0].role == "system"):
            self.messages.insert(0, Message(role="system", content=content))
            self.train.insert(0, False)

    def finish(self) -> Conversation:
        """The conversation. Raises RowError with the first rule it breaks."""
        if self.mapping.trim:
            self._trim()
        if self.mapping.image != "keep":
            self._move_images(only=self.mapping.image == "only")
        self.add_system(self.mapping.system)
        try:
            return Conversation(
                messages=tuple(self.messages),
                train=None if self._all_trained() else tuple(self.train),
                tools=self.tools,
                images=tuple(self.images),
                rejected=self._checked_rejected(),
            )
        except ValidationError as error:
            raise RowError(_reason(error)) from None

    def _all_trained(self) -> bool:
        return self.train.count(True) == sum([message.role == "assistant" for message in self.messages])

    def _trim(self) -> None:
        """Cuts answers to nothing at the start and a question without an answer at the end, as such files have them."""
        start = 1 if self.messages and self.messages[0].role == "system" else 0
        while start < len(self.messages) and self.messages[start].role == "assistant":
            del self.messages[start], self.train[start]
        while self.messages and _is_unanswered(self.messages[-1]):
            del self.messages[-1], self.train[-1]
        if len(self.messages) <= start:
            raise RowError("it has no question with an answer")

    def _move_images(self, *, only: bool) -> None:
        for number, message in enumerate(self.messages):
            if message.role == "user" and (only or IMAGE in message.content):
                words = "" if only else message.content.replace(IMAGE, "").strip()
                content = f"{IMAGE}\n{words}" if words else IMAGE
                self.messages[number] = message.model_copy(update={"content": content})

    def _checked_rejected(self) -> tuple[Message, ...]:
        if not self.rejected:
            return ()
        if self.rejected == tuple(self.messages[-1:]):
            raise RowError("the chosen and the rejected answer are the same")
        reason = broken_rule([*self.messages[:-1], *self.rejected])
        if reason:
            raise RowError(f"in the rejected answer, {reason}")
        return self.rejected


def _is_unanswered(message: Message) -> bool:
    return message.role == "user" or (
        message.role == "assistant" and not message.content.strip() and not message.tool_calls
    )


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "too_long":
        return "it has more than 10,000 messages"
    return str(first.get("ctx", {}).get("error", first["msg"]))
