"""One request to a service and its answer as text, with limits on time and size; redirects are not followed."""

from __future__ import annotations

import time
from typing import Any

import httpx

from studio.tools.tool import ToolError

MOST_BYTES = 256 * 1024
"""What is read of an answer."""
_TEXTUAL = ("text/", "application/json", "application/xml", "application/yaml")


def ask(client: httpx.Client, tool: str, seconds: float, method: str, url: httpx.URL | str, **request: Any) -> str:
    """The text a service answers with. Raises ToolError with a sentence that begins with the tool's name."""
    deadline = time.monotonic() + seconds
    try:
        with client.stream(method, url, timeout=seconds, follow_redirects=False, **request) as response:
            return _text(response, tool, deadline)
    except httpx.TimeoutException:
        raise ToolError(f"{tool}: the service does not answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ToolError(f"{tool}: the service cannot be reached ({type(error).__name__})") from None


def _text(response: httpx.Response, tool: str, deadline: float) -> str:
    if response.is_redirect:
        raise ToolError(f"{tool}: the service answers with a redirect, which is not followed")
    body = b""
    for chunk in response.iter_bytes(16 * 1024):
        body += chunk
        if len(body) > MOST_BYTES:
            raise ToolError(f"{tool}: the service answers with more than {MOST_BYTES // 1024} KB")
        if time.monotonic() > deadline:
            raise ToolError(f"{tool}: the service takes too long to answer")
    kind = response.headers.get("content-type", "text/plain").lower()
    if not kind.startswith(_TEXTUAL) and "+json" not in kind:
        raise ToolError(f"{tool}: the service answers with {kind[:60]}, not with text")
    text = _decoded(body, response.charset_encoding or "utf-8")
    if response.is_error:
        raise ToolError(f"{tool}: the service refuses with HTTP {response.status_code}: {' '.join(text.split())[:200]}")
    return text


def _decoded(body: bytes, encoding: str) -> str:
    try:
        return body.decode(encoding, errors="replace")
    except LookupError:  # a name nobody knows
        return body.decode("utf-8", errors="replace")
