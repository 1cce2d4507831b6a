"""The OpenAI chat-completions protocol over a backend; loads nothing heavy, so it answers while the model loads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from studio.engine.dialogue import Backend, Busy, Piece, PromptError, Request, Running, Sampling, Turn, UnknownModel

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
DISCONNECT_POLL_S = 0.25


class Message(BaseModel):
    """One message of a request; the content may be text or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=1_000_000)]

    @field_validator("content", mode="before")
    @classmethod
    def join_parts(cls, value: Any) -> Any:
        """`[{"type": "text", "text": …}, …]` is one text."""
        if not isinstance(value, list):
            return value
        if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
            raise ValueError("only text parts are understood")
        return "".join(str(part.get("text", "")) for part in value)


class StreamOptions(BaseModel):
    """What else a stream should tell."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The part of OpenAI's request that is honoured; other keys are ignored, as clients send many."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None

    def sampling(self) -> Sampling:
        """The wishes of the request; what it leaves open takes our defaults."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        wishes = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "seed": self.seed,
            "stop": tuple(stop),
        }
        return Sampling(**{key: value for key, value in wishes.items() if value is not None})  # type: ignore[arg-type]

    def turns(self) -> list[Turn]:
        """The conversation."""
        return [Turn("system" if m.role == "developer" else m.role, m.content) for m in self.messages]


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, object]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Service(Protocol):
    """What the routes ask the server process, which knows how far loading is."""

    def health(self) -> dict[str, object]:
        """The body of /health."""

    def backend(self) -> Backend:
        """What answers. Raises ApiError while there is nothing that could."""


def build_app(service: Service, *, host: str, api_key: str | None = None) -> FastAPI:
    """The web application. With `api_key` every route but /health wants it as bearer token."""
    app = FastAPI(title="Crucible chat server", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service, app.state.api_key = service, api_key
    if host in LOOPBACK:  # a page from elsewhere that points its own name at this machine is refused
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route("/v1/models", _models, methods=["GET"])
    app.add_api_route("/v1/chat/completions", _chat, methods=["POST"])
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


async def _health(request: HttpRequest) -> Response:
    return JSONResponse(request.app.state.service.health())


async def _models(request: HttpRequest) -> Response:
    _check_key(request)
    names = request.app.state.service.backend().models
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "crucible"} for name in names]
    return JSONResponse({"object": "list", "data": data})


async def _chat(body: ChatRequest, request: HttpRequest) -> Response:
    _check_key(request)
    backend: Backend = request.app.state.service.backend()
    pieces: asyncio.Queue[Piece] = asyncio.Queue()
    running = await _begin(backend, body, pieces)
    head = _head(body.model, stream=body.stream)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _events(pieces, running, head, usage=usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return await _whole(request, pieces, running, head)


async def _begin(backend: Backend, body: ChatRequest, pieces: asyncio.Queue[Piece]) -> Running:
    loop = asyncio.get_running_loop()

    def emit(piece: Piece) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    try:
        asked = Request(body.model, tuple(body.turns()), sampling=body.sampling())
        return await run_in_threadpool(backend.begin, asked, emit)
    except PromptError as error:
        raise ApiError(400, f"messages: {error}", "bad_prompt", "messages") from None
    except UnknownModel as error:
        raise ApiError(404, f"model: {error.args[0]}", "model_not_found", "model") from None
    except Busy as error:
        raise ApiError(429, str(error), "busy") from None


def _check_key(request: HttpRequest) -> None:
    key = request.app.state.api_key
    # Header bytes reach us read as latin-1.
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key and not secrets.compare_digest(given.encode("latin-1"), key.encode()):
        raise ApiError(401, "authorization: the key is missing or wrong; send it as bearer token", "invalid_api_key")


def _head(model: str, *, stream: bool) -> dict[str, object]:
    kind = "chat.completion.chunk" if stream else "chat.completion"
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


async def _events(
    pieces: asyncio.Queue[Piece], running: Running, head: dict[str, object], *, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of one answer; leaving early (the client has gone) cancels it."""
    try:
        yield _chunk(head, {"role": "assistant", "content": ""})
        while True:
            piece = await pieces.get()
            if piece.error:
                yield _sse(ApiError(500, piece.error, "generation_failed").body())
                return
            if piece.text:
                yield _chunk(head, {"content": piece.text})
            if piece.last:
                break
        yield _chunk(head, {}, finish=piece.finish)
        if usage:
            yield _sse({**head, "choices": [], "usage": _usage(piece)})
        yield "data: [DONE]\n\n"
    finally:
        running.cancel()


def _chunk(head: Mapping[str, object], delta: Mapping[str, str], finish: str | None = None) -> str:
    return _sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _sse(data: Mapping[str, object]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _usage(piece: Piece) -> dict[str, int]:
    total = piece.prompt_tokens + piece.completion_tokens
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": total,
    }


async def _whole(
    request: HttpRequest, pieces: asyncio.Queue[Piece], running: Running, head: Mapping[str, object]
) -> Response:
    """One answer in one body; cancelled when the client goes away."""
    text, piece = "", Piece()
    try:
        looked = time.monotonic()
        while not piece.last:
            # Pieces may come faster than any pause in which one could look, so the clock decides.
            if time.monotonic() - looked >= DISCONNECT_POLL_S:
                looked = time.monotonic()
                if await request.is_disconnected():
                    return Response(status_code=499)
            with contextlib.suppress(TimeoutError):
                piece = await asyncio.wait_for(pieces.get(), DISCONNECT_POLL_S)
                text += piece.text
    finally:
        running.cancel()
    if piece.error:
        raise ApiError(500, piece.error, "generation_failed")
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": piece.finish}
    return JSONResponse({**head, "choices": [choice], "usage": _usage(piece)})


async def _api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status)


async def _validation_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    where, what = _first(error.errors())
    return JSONResponse(ApiError(400, f"{where}: {what}", "invalid_request", where).body(), status_code=400)


def _first(errors: Sequence[Any]) -> tuple[str, str]:
    first = errors[0] if errors else {}
    if first.get("type") == "json_invalid":
        return "body", "it is not valid JSON"
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "body"
    return where, str(first.get("msg", "it is not valid")).removeprefix("Value error, ")


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
    message = known.get(error.status_code, str(error.detail))
    return JSONResponse(ApiError(error.status_code, message).body(), status_code=error.status_code)


async def _unexpected(request: HttpRequest, error: Exception) -> Response:
    body = ApiError(500, f"the server stopped at something unexpected ({type(error).__name__})").body()
    return JSONResponse(body, status_code=500)
