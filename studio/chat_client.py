"""A small streaming client for the OpenAI chat-completions protocol: what the chat page and the terminal talk
to the chat server with. Neither torch nor gradio."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

CONNECT_S = 5.0
SILENCE_S = 300.0  # between two pieces: a long prompt on a slow machine takes its time


class ChatError(RuntimeError):
    """The answer cannot be had, or broke off; the message is one sentence for a person."""


@dataclass(frozen=True)
class Delta:
    """What one event of an answer says; most say one thing.

    `tool_calls` are whole calls in OpenAI's form ({"id", "type", "function": {"name", "arguments": JSON text}});
    `logprobs` the tokens of this piece in OpenAI's form; `finish` stop, length or tool_calls; `usage` the token counts
    (prompt_tokens, completion_tokens), `timings` in milliseconds (see `studio.engine.chat_api`), both at the end;
    `dropped` how many of the oldest messages were left out, at the beginning.
    """

    text: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    finish: str | None = None
    usage: dict[str, int] | None = None
    timings: dict[str, float] | None = None
    dropped: int = 0


async def astream_events(base_url: str, body: Mapping[str, Any], *, api_key: str | None = None) -> AsyncIterator[Delta]:
    """The events of an answer as they come.

    `base_url` with or without /v1; `body` is a request of the protocol: model, messages, tools, temperature and so on
    (None: the server's default), or with `prompt` in place of messages a plain text to go on with.
    Cancelling the task or closing the generator stops the answer.

    Raises:
        ChatError: the server refuses, is not there, or goes away in the middle.
    """
    request = _request(base_url, body, api_key)
    lines = _Lines()
    try:
        async with (
            httpx.AsyncClient(timeout=_timeout(), trust_env=False) as client,
            client.stream("POST", **request) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise ChatError(_refusal(response))
            async for line in response.aiter_lines():
                for delta in lines.deltas(line):
                    yield delta
                if lines.done:
                    return
    except httpx.HTTPError as error:
        raise ChatError(_broken(error)) from None
    raise ChatError(_cut_short())


class _Lines:
    """Server-sent events, line by line, to deltas."""

    def __init__(self) -> None:
        self.done = False

    def deltas(self, line: str) -> Iterator[Delta]:
        """What one line says, if anything. Raises ChatError when the server reports a fault."""
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise ChatError(
                "the chat server sent something that is no chat protocol; is this the right port?"
            ) from None
        if "error" in event:
            raise ChatError(_sentence(event))
        delta = _delta(event)
        if delta != Delta():
            yield delta


def _delta(event: Mapping[str, Any]) -> Delta:
    choice: Mapping[str, Any] = next(iter(event.get("choices") or ()), {})
    said = choice.get("delta") or {}
    return Delta(
        text=said.get("content") or choice.get("text") or "",
        tool_calls=tuple(said.get("tool_calls") or ()),
        logprobs=tuple((choice.get("logprobs") or {}).get("content") or ()),
        finish=choice.get("finish_reason"),
        usage=event.get("usage"),
        timings=event.get("timings"),
        dropped=event.get("dropped_messages") or 0,
    )


def _request(base_url: str, body: Mapping[str, Any], api_key: str | None) -> dict[str, Any]:
    root = base_url.rstrip("/").removesuffix("/v1")
    wishes = {key: value for key, value in body.items() if value is not None}
    wishes |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    route = "completions" if "prompt" in wishes else "chat/completions"
    return {"url": f"{root}/v1/{route}", "json": wishes, "headers": headers}


def _timeout() -> httpx.Timeout:
    return httpx.Timeout(SILENCE_S, connect=CONNECT_S)


def _refusal(response: httpx.Response) -> str:
    with contextlib.suppress(ValueError):
        return _sentence(response.json())
    return f"the chat server answered with HTTP {response.status_code}; is this the right port?"


def _sentence(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else "the chat server reports a fault it does not explain"


def _broken(error: httpx.HTTPError) -> str:
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return "the chat server is not running; start it again"
    if isinstance(error, httpx.TimeoutException):
        return "the chat server has been silent for too long; stop the answer or start the server again"
    return _cut_short()


def _cut_short() -> str:
    return "the chat server went away in the middle of the answer; start it again and ask once more"
