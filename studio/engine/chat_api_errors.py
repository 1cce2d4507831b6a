"""Everything the chat server refuses or fails at, in OpenAI's error shape and in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, object]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return JSONResponse(self.body(), status_code=self.status)


def add_handlers(app: FastAPI) -> None:
    """Every fault becomes one sentence; what is unexpected is told by its kind only, and is in the log."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _validation_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    where, what = _first(error.errors())
    return ApiError(400, f"{where}: {what}", "invalid_request", where).response()


def _first(errors: Sequence[Any]) -> tuple[str, str]:
    first = errors[0] if errors else {}
    if first.get("type") == "json_invalid":
        return "body", "it is not valid JSON"
    if first.get("type") == "model_attributes_type" and tuple(first.get("loc", ())) == ("body",):
        return "body", "it has to be a JSON object, sent with Content-Type: application/json"
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "body"
    return where, str(first.get("msg", "it is not valid")).removeprefix("Value error, ")


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
    message = known.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message).response()


async def _unexpected(request: HttpRequest, error: Exception) -> Response:
    return ApiError(500, f"the server stopped at something unexpected ({type(error).__name__})").response()
