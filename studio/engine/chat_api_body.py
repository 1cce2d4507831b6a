"""How much a request may weigh."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.engine.chat_api_errors import ApiError

LARGEST_BODY = 64_000_000


class BodyLimit:
    """Refuses a body before it fills the memory, whether it says its size or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is received."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"0")
        if not told.isdigit() or int(told) > LARGEST_BODY:
            await _refusal().response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST_BODY:
                raise HTTPException(413, _refusal().message)
            return message

        await self.app(scope, counted, send)


def _refusal() -> ApiError:
    megabytes = LARGEST_BODY // 1_000_000
    return ApiError(
        413, f"body: a request may weigh {megabytes} MB at most; send fewer or smaller pictures", "too_large"
    )
