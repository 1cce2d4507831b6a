"""What the page asks the chat room to do, and which turns of the conversation that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.ui.context import refuse
from studio.ui.tabs.chat_settings import MAX_MESSAGE
from studio.ui.widgets.chatview import MOST_TURNS, Message, Thread, Turn, new_turn

LISTS = ("evaluation", "held_out", "again")


class Order(BaseModel):
    """One wish. send: a message. retry: turn `turn` again, of one `side` only or of both. edit: turn `turn` with
    another question. evaluation, held_out, again: a list of questions."""

    model_config = ConfigDict(extra="ignore")

    act: Literal["send", "retry", "edit", "evaluation", "held_out", "again"] = "send"
    text: str = ""
    turn: int = Field(default=0, ge=0)
    side: Literal["", "left", "right"] = ""


def read_order(data: Mapping[str, Any], typed: str) -> Order:
    """The wish of an event; without one, what was typed is sent. Raises Refused."""
    try:
        order = Order.model_validate(
            {"text": typed, **data} if data.get("act") or data.get("text") else {"text": typed}
        )
    except ValidationError as error:
        raise refuse("chat.error.request") from error
    order.text = str(order.text or "").strip()
    if order.act in ("send", "edit"):
        if not order.text:
            raise refuse("chat.error.empty")
        if len(order.text) > MAX_MESSAGE:
            raise refuse("chat.error.long", limit=f"{MAX_MESSAGE:,}")
    return order


def place(thread: Thread, order: Order, listed: Sequence[Sequence[Message]]) -> list[int]:
    """Change the thread as the order wants it; the numbers of the turns to be answered. Raises Refused."""
    before = len(thread.turns)
    if order.act in ("retry", "edit"):
        return [_again(thread, order)]
    if order.act == "send":
        thread.turns.append(Turn(question=order.text))
    else:
        if not listed:
            raise refuse("chat.error.no_questions")
        # What a list asks are conversations of their own; asked again, they are the one they were.
        fresh = order.act != "again"
        thread.turns += [new_turn(messages, fresh=fresh) for messages in listed]
    if len(thread.turns) > MOST_TURNS:
        raise refuse("chat.error.turns", limit=MOST_TURNS)
    return list(range(before, len(thread.turns)))


def _again(thread: Thread, order: Order) -> int:
    """A turn to be answered anew; what came after it in its conversation no longer follows."""
    if order.turn >= len(thread.turns):
        raise refuse("chat.error.request")
    del thread.turns[order.turn + 1 : thread.end(order.turn)]
    if order.act == "edit":
        turn = thread.turns[order.turn]
        turn.question, turn.answers, turn.vote = order.text, {}, ""
    return order.turn
