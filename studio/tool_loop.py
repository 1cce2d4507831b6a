"""Answers with tools: the model asks, the tools answer, the model goes on, until it has said what it wants to say.

How tools are spoken of is a protocol: `native` is the chat template's own (the server reads the calls), `react` and
`moss` are texts that adapters were trained on, or that a model without a place for tools can be asked to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from studio.chat_client import Delta, astream_events
from studio.tool_calls import Call, style_of
from studio.tools import Tool, ToolError

Protocol = Literal["native", "react", "moss"]
ROUNDS = 6
"""How often a model may call before it has to answer."""
MOST_CALLS = 8
"""Calls of one round that are carried out."""


@dataclass(frozen=True)
class Asked:
    """Whom to ask: a server of the OpenAI protocol, a model of it, and what else the request says (temperature, …)."""

    base_url: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = None


@dataclass(frozen=True)
class Step:
    """One thing that happened, in order.

    text: a piece of what the model says (`delta`: the event it came with). call: it wants `call`. result: `text` is
    what the tool said, `failed` when it was a refusal. end: it is done, and `messages` (OpenAI's form) belong behind
    those it was asked with.
    """

    kind: Literal["text", "call", "result", "end"]
    text: str = ""
    call: Call | None = None
    failed: bool = False
    delta: Delta = Delta()
    messages: tuple[dict[str, Any], ...] = ()


def protocol_of(template_source: str) -> Protocol:
    """How tools are spoken of with a chat template."""
    style = style_of(template_source)
    return "moss" if style == "moss" else "native" if style else "react"


async def run(
    asked: Asked, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], protocol: Protocol = "native"
) -> AsyncIterator[Step]:
    """The steps of one answer to `messages` (OpenAI's form, ending with the user's turn).

    Closing the generator stops the answer. Raises ChatError as `studio.chat_client` does.
    """
    added: list[dict[str, Any]] = []
    for number in range(ROUNDS + 1):
        said, calls = "", list[Call]()
        last = number == ROUNDS
        async with aclosing(_ask(asked, [*messages, *added], [] if last else tools, protocol)) as steps:
            async for step in steps:
                if step.call:
                    calls.append(step.call)
                said += step.text if step.kind == "text" else ""
                yield step
        if not calls:
            added.append({"role": "assistant", "content": said})
            break
        added.append({"role": "assistant", "content": said, "tool_calls": [call.as_dict() for call in calls]})
        for call in calls:
            result = await _used(call, tools)
            added.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result.text})
            yield result
    yield Step("end", messages=tuple(added))


async def _ask(
    asked: Asked, messages: list[Mapping[str, Any]], tools: Sequence[Tool], protocol: Protocol
) -> AsyncIterator[Step]:
    """One answer of the model: pieces of text, then its calls."""
    body = {**asked.options, "model": asked.model, "messages": [dict(message) for message in messages]}
    if tools:
        body["tools"] = [tool.schema for tool in tools]
    async with aclosing(astream_events(asked.base_url, body, api_key=asked.api_key)) as deltas:
        async for delta in deltas:
            yield Step("text", delta.text, delta=delta)
            for call in delta.tool_calls:
                yield Step("call", call=_call(call), delta=delta)


def _call(given: Mapping[str, Any]) -> Call:
    function = given["function"]
    return Call(str(function["name"]), str(function["arguments"]), str(given["id"]))


async def _used(call: Call, tools: Sequence[Tool]) -> Step:
    """What the tool says to a call; a refusal is a result too, for the model to read."""
    wanted = next((tool for tool in tools if tool.name.lower() == call.name.lower()), None)
    if wanted is None:
        sentence = f"there is no tool {call.name[:60]!r}; there are: {', '.join(tool.name for tool in tools)}"
        return Step("result", sentence, call, failed=True)
    try:
        return Step("result", await asyncio.to_thread(wanted.use, call.arguments), call)
    except ToolError as error:
        return Step("result", str(error), call, failed=True)
