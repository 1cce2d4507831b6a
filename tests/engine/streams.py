"""Answers of a chat server, one piece at a time, for tests that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studio.chat_client import Delta, astream_events


def stream_events(base_url: str, body: Mapping[str, Any]) -> Iterator[Delta]:
    """The events of an answer. Closing the generator stops the answer."""
    with asyncio.Runner() as runner:
        events: Any = astream_events(base_url, body)
        try:
            while True:
                yield runner.run(anext(events))
        except StopAsyncIteration:
            return
        finally:
            runner.run(events.aclose())


def stream_chat(base_url: str, model: str, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> Iterator[str]:
    """The text of an answer; `sampling` are further keys of the request."""
    events = stream_events(base_url, {"model": model, "messages": messages, **sampling})
    try:
        yield from (delta.text for delta in events if delta.text)
    finally:
        events.close()  # type: ignore[attr-defined]
