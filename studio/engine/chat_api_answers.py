"""Answers in OpenAI's shapes: whole or as server-sent events, for conversations and for plain texts."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from studio.engine.chat_api_errors import ApiError
from studio.engine.dialogue import Piece, Running, TokenChance
from studio.tool_calls import Call, CallReader

CLIENT_LEFT = 499


@dataclass
class Course:
    """One answer under way: its pieces, what stops it, and when it said what (seconds of a monotonic clock)."""

    pieces: asyncio.Queue[Piece]
    running: Running
    began: float = field(default_factory=time.monotonic)
    first: float | None = None

    async def next(self) -> Piece:
        """The next piece."""
        piece = await self.pieces.get()
        if self.first is None:
            self.first = time.monotonic()
        return piece

    def end(self, last: Piece) -> dict[str, Any]:
        """What is told at the end of it: token counts and times."""
        return {"usage": _usage(last), "timings": self._timings(last)}

    def _timings(self, last: Piece) -> dict[str, float]:
        """In milliseconds; the first token is counted with the prompt, as it comes out of reading it."""
        now = time.monotonic()
        first = self.first or now
        found = {"prompt_ms": (first - self.began) * 1e3, "predicted_ms": (now - first) * 1e3}
        if last.completion_tokens > 1 and now > first:
            found["predicted_per_second"] = (last.completion_tokens - 1) / (now - first)
        return {key: round(value, 3) for key, value in found.items()}


def _usage(piece: Piece) -> dict[str, int]:
    total = piece.prompt_tokens + piece.completion_tokens
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": total,
    }


class Shape(ABC):
    """How one kind of answer is written. `push` takes every piece and gives the choice to stream for it, if any."""

    prefix: str
    kinds: tuple[str, str]
    """The `object` of a whole answer and of a chunk."""

    def head(self, model: str, dropped: int, *, stream: bool) -> dict[str, Any]:
        """What every body of this answer has."""
        return {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.kinds[stream],
            "created": int(time.time()),
            "model": model,
            "dropped_messages": dropped,
        }

    def opening(self) -> dict[str, Any] | None:
        """The first choice of a stream, before there is any text."""
        return None

    @abstractmethod
    def push(self, piece: Piece) -> dict[str, Any] | None:
        """The choice of one piece of a stream; None while nothing is to be told."""

    @abstractmethod
    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The choice of a complete answer."""


class ChatShape(Shape):
    """Answers of /v1/chat/completions.

    `style` is how calls of tools are written, None when there are no tools; `opening` the beginning of a call that was
    written for the model; `several`: more than one call may be made at once.
    """

    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def __init__(
        self, style: str | None = None, opening: str = "", *, several: bool = True, logprobs: bool = False
    ) -> None:
        self.reader = CallReader(style) if style is not None else None
        self.several, self.logprobs = several, logprobs
        self.chances: list[TokenChance] = []
        self.called = False
        if self.reader and opening:
            self.reader.push(opening)

    def opening(self) -> dict[str, Any]:
        """Who speaks."""
        return {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def push(self, piece: Piece) -> dict[str, Any] | None:
        """Text as soon as it is certain to be no call; whole calls at the end."""
        self.chances += piece.chances
        text, calls = self._read(piece)
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [{"index": number, **call.as_dict()} for number, call in enumerate(calls)]
        if not (delta or piece.last or (self.logprobs and piece.chances)):
            return None
        told, self.chances = self.chances, []
        return {"index": 0, "delta": delta, "logprobs": self._told(told), "finish_reason": self._finish(piece)}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A message with text, calls or both."""
        text, calls = "", []
        for piece in pieces:
            more, found = self._read(piece)
            text += more
            calls += found
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if calls:
            message["tool_calls"] = [call.as_dict() for call in calls]
        chances = [chance for piece in pieces for chance in piece.chances]
        return {
            "index": 0,
            "message": message,
            "logprobs": self._told(chances),
            "finish_reason": self._finish(pieces[-1]),
        }

    def _read(self, piece: Piece) -> tuple[str, list[Call]]:
        if self.reader is None:
            return piece.text, []
        text = self.reader.push(piece.text)
        calls: list[Call] = []
        if piece.last:
            rest, calls = self.reader.finish()
            text += rest
        calls = calls if self.several else calls[:1]
        self.called = self.called or bool(calls)
        return text, calls

    def _finish(self, piece: Piece) -> str | None:
        return "tool_calls" if piece.last and self.called else piece.finish

    def _told(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {"content": [{**_chance(c.text, c.logprob), "top_logprobs": _likeliest(c)} for c in chances]}


def _chance(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _likeliest(chance: TokenChance) -> list[dict[str, Any]]:
    return [_chance(text, logprob) for text, logprob in chance.top]


class TextShape(Shape):
    """Answers of /v1/completions."""

    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def __init__(self, *, logprobs: bool = False) -> None:
        self.logprobs = logprobs
        self.offset = 0

    def push(self, piece: Piece) -> dict[str, Any] | None:
        """The text of a piece."""
        if not (piece.text or piece.last or (self.logprobs and piece.chances)):
            return None
        return self._choice(piece.text, piece.chances, piece.finish)

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """All text."""
        chances = [chance for piece in pieces for chance in piece.chances]
        return self._choice("".join(piece.text for piece in pieces), chances, pieces[-1].finish)

    def _choice(self, text: str, chances: Sequence[TokenChance], finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": self._told(chances), "finish_reason": finish}

    def _told(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        offsets = []
        for chance in chances:
            offsets.append(self.offset)
            self.offset += len(chance.text)
        return {
            "tokens": [chance.text for chance in chances],
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [dict(chance.top) for chance in chances],
            "text_offset": offsets,
        }


class EventStream(StreamingResponse):
    """Server-sent events of one answer, which is cancelled when the client goes away, at whatever moment."""

    def __init__(self, course: Course, shape: Shape, head: dict[str, Any], *, usage: bool) -> None:
        self.course = course
        events = _events(course, shape, head, usage=usage)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A client that leaves before the first event never starts the iterator, so this is the place."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.course.running.cancel()


async def _events(course: Course, shape: Shape, head: dict[str, Any], *, usage: bool) -> AsyncIterator[str]:
    opening = shape.opening()
    if opening:
        yield _sse({**head, "choices": [opening]})
    while True:
        piece = await course.next()
        if piece.error:
            yield _sse(ApiError(500, piece.error, "generation_failed").body())
            return
        choice = shape.push(piece)
        if choice:
            yield _sse({**head, "choices": [choice]})
        if piece.last:
            break
    if usage:
        yield _sse({**head, "choices": [], **course.end(piece)})
    yield "data: [DONE]\n\n"


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def whole_answer(request: HttpRequest, course: Course, shape: Shape, head: dict[str, Any]) -> Response:
    """One answer in one body; cancelled as soon as the client goes away. Raises ApiError when it breaks off."""
    leaving = asyncio.ensure_future(_left(request))
    collecting = asyncio.ensure_future(_all(course))
    try:
        await asyncio.wait({leaving, collecting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        course.running.cancel()
        leaving.cancel()
    if not collecting.done():
        collecting.cancel()
        return Response(status_code=CLIENT_LEFT)
    pieces = collecting.result()
    if pieces[-1].error:
        raise ApiError(500, pieces[-1].error, "generation_failed")
    return JSONResponse({**head, "choices": [shape.whole(pieces)], **course.end(pieces[-1])})


async def _all(course: Course) -> list[Piece]:
    found = [await course.next()]
    while not found[-1].last:
        found.append(await course.next())
    return found


async def _left(request: HttpRequest) -> None:
    """Returns when the client has gone; its body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
