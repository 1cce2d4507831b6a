"""The OpenAI protocol over a backend; loads nothing heavy, so it answers while the model loads.

    GET  /health                       how far the server is; needs no key
    GET  /v1/models, /v1/models/NAME   what can be asked: `base`, and one name per adapter
    POST /v1/chat/completions          messages -> an answer, streamed or whole
    POST /v1/completions               a text -> its continuation, without a chat template

Honoured of OpenAI's chat request: model, messages (text, `image_url` parts with data: URLs, `tool_calls`, role tool),
stream, stream_options.include_usage, temperature, top_p, max_tokens, max_completion_tokens, seed, stop, logprobs,
top_logprobs, tools, tool_choice, parallel_tool_calls. A key that would change the answer and is not honoured is refused
(400); others are ignored.

Extensions in a request (`extra_body` of OpenAI's own client):

    top_k, min_p, repetition_penalty
    chat_template         the name of a template (chatml, qwen_chat, …) in place of the model's own
    chat_template_kwargs  variables for the template, like {"enable_thinking": false}
    truncation            "disabled" (default): a conversation that is too long is refused. "auto": its oldest messages
                          are left out, and the answer says how many.

Extensions in an answer:

    dropped_messages      in the body, and in every chunk of a stream: how many of the oldest messages were left out
    timings               beside `usage`: prompt_ms, predicted_ms, predicted_per_second (tokens a second)
    in /v1/models         context_length, system (the prompt its run was trained with), images, tools (whether its
                          template can write them), tool_style (how: see `studio.tool_calls`)

A system message with empty content means: no system prompt, also where the server was told to add that of the run.
In a stream `tool_calls` come as whole calls, one delta for all of them, before the chunk with the finish_reason or with
it. finish_reason is stop, length, tool_calls, or cancelled. A fault in the middle of a stream is an event {"error": …}
and the end, without [DONE].

/health: {"state": "loading" | "ready" | "failed", "phase", "models", "error", "answers", "tokens", …}; with
`--idle-minutes` also `loaded`: false after the weights were let go; the next request loads them again and waits.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Protocol

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from studio.engine.chat_api_answers import ChatShape, Course, EventStream, Shape, TextShape, whole_answer
from studio.engine.chat_api_body import BodyLimit
from studio.engine.chat_api_errors import ApiError, add_handlers
from studio.engine.chat_api_messages import check_pictures
from studio.engine.chat_api_requests import ChatRequest, CompletionRequest, Wishes
from studio.engine.chat_api_tools import Calling, calling
from studio.engine.dialogue import Backend, Busy, ModelFacts, Piece, PromptError, Request, Unavailable, UnknownModel
from studio.tool_calls import style_of
from studio.tool_protocols import protocol_of

__all__ = ["LOOPBACK", "ApiError", "Service", "build_app"]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


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
    app.add_middleware(BodyLimit)
    if host in LOOPBACK:  # a page from elsewhere that points its own name at this machine is refused
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_api_route("/health", _health, methods=["GET"])
    keyed: Any = {"dependencies": [Depends(_check_key)]}  # before anybody looks at what was sent
    app.add_api_route("/v1/models", _models, methods=["GET"], **keyed)
    app.add_api_route("/v1/models/{name:path}", _model, methods=["GET"], **keyed)
    app.add_api_route("/v1/chat/completions", _chat, methods=["POST"], response_model=None, **keyed)
    app.add_api_route("/v1/completions", _complete, methods=["POST"], response_model=None, **keyed)
    add_handlers(app)
    return app


async def _health(request: HttpRequest) -> Response:
    return JSONResponse(request.app.state.service.health())


async def _models(request: HttpRequest) -> Response:
    backend = _backend(request)
    data = [_described(name, backend.facts(name)) for name in backend.models]
    return JSONResponse({"object": "list", "data": data})


async def _model(name: str, request: HttpRequest) -> Response:
    return JSONResponse(_described(name, _facts(_backend(request), name)))


def _described(name: str, facts: ModelFacts) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "crucible",
        "context_length": facts.context_length,
        "system": facts.system,
        "images": facts.images,
        "tools": protocol_of(facts.template or "") == "native",
        "tool_style": style_of(facts.template or ""),
    }


async def _chat(body: ChatRequest, request: HttpRequest) -> Response:
    backend = _backend(request)
    facts = _facts(backend, body.model)
    if any(message.content.images for message in body.messages):
        if not facts.images:
            raise ApiError(400, f"messages: {body.model} sees no pictures; send text only", "no_images", "messages")
        await _read_pictures(body)
    tools: Calling | None = calling(body, facts)
    asked = body.asked()
    logprobs = asked.sampling.logprobs is not None
    if tools is None:
        return await _answer(request, body, asked, ChatShape(logprobs=logprobs))
    several = body.parallel_tool_calls is not False
    shape = ChatShape(tools.style, tools.opening, several=several, logprobs=logprobs)
    return await _answer(request, body, tools.added_to(asked), shape)


async def _read_pictures(body: ChatRequest) -> None:
    """The other answers go on while they are unpacked."""
    try:
        await run_in_threadpool(check_pictures, body.messages)
    except PromptError as error:
        raise _bad_prompt(error, "messages") from None


async def _complete(body: CompletionRequest, request: HttpRequest) -> Response:
    return await _answer(request, body, body.asked(), TextShape(logprobs=body.logprobs is not None))


async def _answer(request: HttpRequest, body: Wishes, asked: Request, shape: Shape) -> Response:
    course = await _begin(_backend(request), asked)
    head = shape.head(body.model, course.running.dropped, stream=body.stream)
    if body.stream:
        return EventStream(course, shape, head, usage=body.wants_usage)
    return await whole_answer(request, course, shape, head)


async def _begin(backend: Backend, asked: Request) -> Course:
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece] = asyncio.Queue()

    def emit(piece: Piece) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    try:
        return Course(pieces, await run_in_threadpool(backend.begin, asked, emit))
    except PromptError as error:
        raise _bad_prompt(error, "messages" if asked.prompt is None else "prompt") from None
    except UnknownModel as error:
        raise _unknown(error) from None
    except Busy as error:
        raise ApiError(429, str(error), "busy") from None
    except Unavailable as error:
        raise ApiError(503, str(error), "load_failed") from None


def _bad_prompt(error: PromptError, asked: str) -> ApiError:
    field = error.field or asked
    return ApiError(400, f"{field}: {str(error).removeprefix(f'{field}: ')}", "bad_prompt", field)


def _backend(request: HttpRequest) -> Backend:
    backend: Backend = request.app.state.service.backend()
    return backend


def _facts(backend: Backend, name: str) -> ModelFacts:
    try:
        return backend.facts(name)
    except UnknownModel as error:
        raise _unknown(error) from None


def _unknown(error: UnknownModel) -> ApiError:
    return ApiError(404, f"model: {error.args[0]}", "model_not_found", "model")


async def _check_key(request: HttpRequest) -> None:
    key = request.app.state.api_key
    # Header bytes reach us read as latin-1.
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key and not secrets.compare_digest(given.encode("latin-1"), key.encode()):
        raise ApiError(401, "authorization: the key is missing or wrong; send it as bearer token", "invalid_api_key")
