"""Answers of the chat room: both sides of a question at once, flushed as often as a browser can draw them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from studio import tool_loop
from studio.chat_client import ChatError, Delta
from studio.tools import Tool
from studio.ui.i18n import tr
from studio.ui.sentences import translated
from studio.ui.tabs.chat_server import Loaded, Seat
from studio.ui.widgets.chatview import LONGEST_ERROR, Answer, Step, Thread

FLUSH_S = 0.05
"""Between two pictures of growing answers: a browser cannot draw every token."""
FLUSH_TURNS = 10
"""So many turns double that time: what a picture costs the browser grows with the conversation, and a Stop must get
through between two."""


@dataclass(frozen=True)
class Wishes:
    """What is sent with every question: the system prompt, the keys of the request, and the tools the models may use.

    `protocols` says for each side how its template speaks of tools.
    """

    system: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    protocols: Mapping[str, tool_loop.Protocol] = field(default_factory=dict)


async def answer_all(
    thread: Thread, numbers: Sequence[int], sides: Sequence[str], loaded: Loaded, wishes: Wishes
) -> AsyncGenerator[int, None]:
    """Answer these turns one after the other, their sides at once; yields the number of the turn that has grown.

    Closing the generator stops the answers under way.
    """
    pause = FLUSH_S * (1 + len(thread.turns) / FLUSH_TURNS)
    for number in numbers:
        turn = thread.turns[number]
        for side in sides:
            turn.answers[side] = Answer(state="streaming")  # type: ignore[index]
        told = asyncio.Event()
        tasks = [asyncio.create_task(_one(thread, number, side, loaded.sides[side], wishes, told)) for side in sides]
        try:
            while not all(task.done() for task in tasks):
                yield number
                await told.wait()
                await asyncio.sleep(pause)
                told.clear()
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        yield number


async def _one(thread: Thread, number: int, side: str, seat: Seat, wishes: Wishes, told: asyncio.Event) -> None:
    """One side's answer, written into the thread as it comes; `told` is set whenever there is more of it."""
    turn = thread.turns[number]
    answer = turn.answers[side]  # type: ignore[index]
    options = {**wishes.request, "seed": turn.seed}
    asked = tool_loop.Asked(seat.server.base_url, seat.model, options)
    messages = thread.messages(number, side, wishes.system)
    clock = _Clock()
    try:
        async with aclosing(tool_loop.run(asked, messages, wishes.tools, wishes.protocols.get(side, "native"))) as all_:
            async for step in all_:
                _write(answer, step, clock)
                told.set()
        answer.state = "done"
    except ChatError as error:
        answer.state, answer.error = "failed", _sentence(error, seat)[:LONGEST_ERROR]
    finally:
        answer.seconds = clock.seconds
        told.set()


class _Clock:
    """When an answer was asked for, and how long it has taken."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was asked for."""
        return round(time.monotonic() - self._begun, 3)


def _write(answer: Answer, step: tool_loop.Step, clock: _Clock) -> None:
    """What one step of the loop says, put into the answer."""
    if step.kind == "text":
        if step.text and not answer.wait:
            answer.wait = clock.seconds
        answer.text += step.text
        _count(answer, step.delta)
    elif step.kind == "call" and step.call:
        answer.steps.append(Step(name=step.call.name[:200], arguments=step.call.arguments))
        # What was said before a call is a step of the way; the answer is what comes after the last result.
        answer.steps[-1].said, answer.text = answer.text, ""
    elif step.kind == "result":
        waiting = next((known for known in answer.steps if not known.done), None)
        if waiting:
            waiting.result, waiting.failed, waiting.done = step.text, step.failed, True
    elif step.kind == "end" and answer.steps:
        answer.messages = [dict(message) for message in step.messages]


def _count(answer: Answer, delta: Delta) -> None:
    answer.dropped = max(answer.dropped, delta.dropped)
    answer.finish = delta.finish or answer.finish
    if delta.usage:
        answer.tokens += int(delta.usage.get("completion_tokens", 0))
        answer.prompt_tokens = int(delta.usage.get("prompt_tokens", 0))
    if delta.timings:
        answer.speed = float(delta.timings.get("predicted_per_second", 0.0))


def _sentence(error: ChatError, seat: Seat) -> str:
    if not seat.server.alive:
        return tr("chat.error.gone")
    return tr("chat.error.broken", reason=translated(str(error)).rstrip(".。"))
