"""A small streaming client for the OpenAI chat-completions protocol, sync and async: what the chat page and the
terminal talk to the chat server with. Neither torch nor gradio."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx

CONNECT_S = 5.0
SILENCE_S = 300.0  # between two pieces: a long prompt on a slow machine takes its time


class ChatError(RuntimeError):
    """The answer cannot be had, or broke off; the message is one sentence for a person."""


def stream_chat(
    base_url: str, model: str, messages: Sequence[Mapping[str, str]], *, api_key: str | None = None, **sampling: Any
) -> Iterator[str]:
    """The pieces of an answer as they come.

    `base_url` with or without /v1; `messages` of {"role", "content"}; `sampling` of temperature, top_p, top_k,
    repetition_penalty, max_tokens, seed, stop (None: the server's default). Closing the generator stops the answer.

    Raises:
        ChatError: the server refuses, is not there, or goes away in the middle.
    """
    request = _request(base_url, model, messages, api_key, sampling)
    lines = _Lines()
    try:
        with (
            httpx.Client(timeout=_timeout(), trust_env=False) as client,
            client.stream("POST", **request) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise ChatError(_refusal(response))
            for line in response.iter_lines():
                yield from lines.text(line)
                if lines.done:
                    return
    except httpx.HTTPError as error:
        raise ChatError(_broken(error)) from None
    raise ChatError(_cut_short())


async def astream_chat(
    base_url: str, model: str, messages: Sequence[Mapping[str, str]], *, api_key: str | None = None, **sampling: Any
) -> AsyncIterator[str]:
    """`stream_chat` for an event loop. Cancelling the task or closing the generator stops the answer."""
    request = _request(base_url, model, messages, api_key, sampling)
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
                for piece in lines.text(line):
                    yield piece
                if lines.done:
                    return
    except httpx.HTTPError as error:
        raise ChatError(_broken(error)) from None
    raise ChatError(_cut_short())


class _Lines:
    """Server-sent events, line by line, to text."""

    def __init__(self) -> None:
        self.done = False

    def text(self, line: str) -> Iterator[str]:
        """The text in one line, if any. Raises ChatError when the server reports a fault."""
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
        for choice in event.get("choices", ()):
            piece = choice.get("delta", {}).get("content")
            if piece:
                yield piece


def _request(
    base_url: str, model: str, messages: Sequence[Mapping[str, str]], api_key: str | None, sampling: Mapping[str, Any]
) -> dict[str, Any]:
    root = base_url.rstrip("/").removesuffix("/v1")
    wishes = {key: value for key, value in sampling.items() if value is not None}
    body = {"model": model, "messages": [dict(m) for m in messages], "stream": True, **wishes}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"url": f"{root}/v1/chat/completions", "json": body, "headers": headers}


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
