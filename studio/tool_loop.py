"""Answers with tools: the model asks, the tools answer, the model goes on, until it has said what it wants to say.

How tools are spoken of is a protocol: `native` is the chat template's own (the server reads the calls), `react` and
`moss` are the texts of `studio.tool_protocols`.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx

from studio.chat_client import Delta, astream_events
from studio.tool_calls import Call, CallReader, parse
from studio.tool_protocols import (
    MOSS_ANSWER,
    MOSS_ANSWER_STOPS,
    MOSS_CALL_STOPS,
    REACT_STOPS,
    moss_prompt,
    moss_thought,
    moss_without_commands,
    react_messages,
)
from studio.tool_protocols import Protocol as Protocol
from studio.tool_protocols import protocol_of as protocol_of
from studio.tool_protocols import protocol_of_style as protocol_of_style
from studio.tools import Tool, ToolError

ROUNDS = 6
"""How often a model may call before it has to answer."""
MOST_CALLS = 8
"""Calls of one round that are carried out."""
MOST_HEARD = 12
"""Calls of one round that are heard at all: a model that repeats itself would fill the conversation."""

STYLE_S = 10.0


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

    text: a piece of what the model says (`delta`: the event it came with, which may hold token counts and no text).
    call: it wants `call`. result: `text` is what the tool said, `failed` when it was a refusal. end: it is done, and
    `messages` (OpenAI's form) belong behind those it was asked with.
    """

    kind: Literal["text", "call", "result", "end"]
    text: str = ""
    call: Call | None = None
    failed: bool = False
    delta: Delta = Delta()
    messages: tuple[dict[str, Any], ...] = ()


def tool_style_at(base_url: str, model: str, api_key: str | None = None) -> str:
    """How a served model writes calls (see `studio.tool_calls`); "" when it writes none, or does not say."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    address = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/models/{quote(model, safe='')}"
    try:
        told = httpx.get(address, headers=headers, timeout=STYLE_S, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return ""
    return str(told.get("tool_style") or "") if isinstance(told, dict) else ""


Steps = AsyncGenerator[Step, None]


async def run(
    asked: Asked, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], protocol: Protocol = "native"
) -> Steps:
    """The steps of one answer to `messages` (OpenAI's form, ending with the user's turn).

    Closing the generator stops the answer. Raises ChatError as `studio.chat_client` does.
    """
    added: list[dict[str, Any]] = []
    for number in range(ROUNDS + 1):
        said, calls = "", list[Call]()
        offered = tools if number < ROUNDS else []  # at last it has to answer
        async with aclosing(_PROTOCOLS[protocol](asked, [*messages, *added], offered)) as steps:
            async for step in steps:
                if step.call and len(calls) >= MOST_HEARD:
                    continue
                calls += [step.call] if step.call else []
                said += step.text
                yield step
        if not calls:
            break
        added.append({"role": "assistant", "content": said, "tool_calls": [call.as_dict() for call in calls]})
        for place, call in enumerate(calls):
            result = await _used(call, tools, too_many=place >= MOST_CALLS)
            added.append({"role": "tool", "tool_call_id": call.id, "content": result.text})
            yield result
    yield Step("end", messages=(*added, {"role": "assistant", "content": said}))


async def _native(asked: Asked, messages: list[Mapping[str, Any]], tools: Sequence[Tool]) -> Steps:
    """One answer of a model whose template writes tools: pieces of text, then its calls."""
    body: dict[str, Any] = {**asked.options, "messages": messages}
    if tools:
        body["tools"] = [tool.schema for tool in tools]
    async with aclosing(_events(asked, body)) as deltas:
        async for delta in deltas:
            yield Step("text", delta.text, delta=delta)
            for call in delta.tool_calls:
                function = call["function"]
                yield Step("call", call=Call(str(function["name"]), str(function["arguments"]), str(call["id"])))


async def _react(asked: Asked, messages: list[Mapping[str, Any]], tools: Sequence[Tool]) -> Steps:
    """One answer of a model that is told of tools in plain text."""
    body = {**asked.options, "messages": react_messages(messages, [tool.schema for tool in tools])}
    if not tools:
        async with aclosing(_events(asked, body)) as deltas:
            async for delta in deltas:
                yield Step("text", delta.text, delta=delta)
        return
    body["stop"] = [*_stops(asked), *REACT_STOPS]
    reader = CallReader("react")
    async with aclosing(_events(asked, body)) as deltas:
        async for delta in deltas:
            yield Step("text", reader.push(delta.text), delta=delta)
    rest, calls = reader.finish()
    yield Step("text", rest)
    for call in calls:
        yield Step("call", call=call)


async def _moss(asked: Asked, messages: list[Mapping[str, Any]], tools: Sequence[Tool]) -> Steps:
    """MOSS thinks and commands up to its <eoc>; behind results, or when it commands nothing, it answers."""
    prompt = moss_prompt(messages, [tool.schema for tool in tools])
    if not prompt.endswith(MOSS_ANSWER):
        thoughts = ""
        body = {**_plain(asked), "prompt": prompt, "stop": [*_stops(asked), *MOSS_CALL_STOPS]}
        async with aclosing(_events(asked, body)) as deltas:
            async for delta in deltas:
                thoughts += delta.text
                yield Step("text", delta=delta)  # shown when it is known what it is
        said, calls = parse(thoughts, "moss")
        if calls or MOSS_ANSWER in thoughts:
            yield Step("text", moss_thought(said) if calls else thoughts.partition(MOSS_ANSWER)[2].strip())
            for call in calls:
                yield Step("call", call=call)
            return
        prompt = moss_without_commands(prompt, thoughts)
    body = {**_plain(asked), "prompt": prompt, "stop": [*_stops(asked), *MOSS_ANSWER_STOPS]}
    async with aclosing(_events(asked, body)) as deltas:
        async for delta in deltas:
            yield Step("text", delta.text, delta=delta)


async def _events(asked: Asked, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
    deltas = astream_events(asked.base_url, {**body, "model": asked.model}, api_key=asked.api_key)
    async with aclosing(deltas):  # type: ignore[type-var]
        async for delta in deltas:
            yield delta


def _plain(asked: Asked) -> dict[str, Any]:
    """The options that a plain text knows too."""
    return {key: value for key, value in asked.options.items() if not key.startswith("chat_template")}


def _stops(asked: Asked) -> list[str]:
    given = asked.options.get("stop") or []
    return [given] if isinstance(given, str) else list(given)


_PROTOCOLS: dict[Protocol, Callable[[Asked, list[Mapping[str, Any]], Sequence[Tool]], Steps]] = {
    "native": _native,
    "react": _react,
    "moss": _moss,
}


async def _used(call: Call, tools: Sequence[Tool], *, too_many: bool) -> Step:
    """What the tool says to a call; a refusal is a result too, for the model to read."""
    wanted = next((tool for tool in tools if tool.name.lower() == call.name.lower()), None)
    if wanted is None:
        sentence = f"there is no tool {call.name[:60]!r}; there are: {', '.join(tool.name for tool in tools)}"
        return Step("result", sentence, call, failed=True)
    if too_many:
        return Step("result", f"only {MOST_CALLS} calls are carried out at once", call, failed=True)
    try:
        return Step("result", await asyncio.to_thread(wanted.use, call.arguments), call)
    except ToolError as error:
        return Step("result", str(error), call, failed=True)
    except Exception as error:  # a defect of the tool must not end the conversation
        traceback.print_exc()
        return Step("result", f"{wanted.name}: it broke off ({type(error).__name__})", call, failed=True)
