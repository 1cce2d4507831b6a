"""ASGI around everything: who may come in (Guard), and a page that works under any path prefix (Shell)."""

import ipaddress
import re
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LANGUAGE_SCRIPT = b"""<head><script>(()=>{let l=new URLSearchParams(location.search).get('lang');
try{if(l)localStorage.setItem('studio.lang',l);l=localStorage.getItem('studio.lang')}catch{}
l=/^zh/i.test(l||navigator.language)?'zh-CN':'en';document.cookie='studio_lang='+l+';path=/;SameSite=Lax;max-age=31536000';
Object.defineProperty(navigator,'language',{get:()=>l});Object.defineProperty(navigator,'languages',{get:()=>[l]});
document.documentElement.lang=l;})()</script><link rel="icon" type="image/svg+xml" href="./studio-assets/mark.svg">"""
ROOT_MARK = b"<script data-gradio-mode>"
ROOT_SCRIPT = (
    b"<script>(()=>{const c=window.gradio_config;"
    b"if(c)c.root=location.origin+location.pathname.replace(/\\/+$/,'')})()</script>" + ROOT_MARK
)
# An answer may name a picture: whatever draws the page, none is fetched from elsewhere.
PICTURES = (b"content-security-policy", b"img-src 'self' data: blob:")
NO_TOKEN = "This studio is protected: open the link printed in its terminal (it ends in ?token=…)."
FOREIGN_HOST = "This studio answers only to 127.0.0.1 and localhost. Behind a proxy, start it with --token."
CROSS_SITE = "Refused: the request comes from another site."


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses; the text may carry a port and brackets."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers with lower-case names; of repeated ones the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


class Guard:
    """Refuses requests sent by other sites; with a token, lets in only who has it (link, cookie or Bearer header)."""

    def __init__(self, app: ASGIApp, token: str | None = None, cookie: str = "studio") -> None:
        self.app = app
        self.token = token
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 303 (token link), 401, 403, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        if scope["method"] not in ("GET", "HEAD") and self._cross_site(headers):
            await answer(send, 403, CROSS_SITE)
        elif self.token is None:
            allowed = is_loopback(headers.get("host", ""))
            await (self.app(scope, receive, send) if allowed else answer(send, 403, FOREIGN_HOST))
        elif self._in_link(scope):
            await self._set_cookie(scope, send)
        elif self._same(self._presented(headers)):
            await self.app(scope, receive, send)
        else:
            await answer(send, 401, NO_TOKEN)

    @staticmethod
    def _cross_site(headers: dict[str, str]) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin", "")
        if site is not None:
            return site in ("cross-site", "same-site")
        # A page of another site cannot set X-Forwarded-Host: that would need a preflight, which is refused too.
        ours = (headers.get("host"), headers.get("x-forwarded-host"))
        return bool(origin) and urlsplit(origin).netloc not in ours

    def _same(self, presented: str) -> bool:
        return secrets.compare_digest(presented.encode(), (self.token or "").encode())

    def _in_link(self, scope: Scope) -> bool:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        return scope["method"] == "GET" and "token" in query and self._same(query["token"])

    def _presented(self, headers: dict[str, str]) -> str:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if self.cookie in cookies:
            return cookies[self.cookie].value
        return headers.get("authorization", "").removeprefix("Bearer ")

    async def _set_cookie(self, scope: Scope, send: Send) -> None:
        rest = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        location = "./" + (f"?{urlencode(rest)}" if rest else "")
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/"
        await answer(send, 303, "", [(b"location", location.encode()), (b"set-cookie", cookie.encode())])


async def answer(send: Send, status: int, text: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send one short plain-text response."""
    body = text.encode("utf-8")
    common = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*common, *headers]})
    await send({"type": "http.response.body", "body": body})


class Shell:
    """Tells Gradio the public address it is seen under, and puts the language script into the page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every request on; the response to ``GET /`` is completed on its way back."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = dict(scope)
        scope["headers"] = public_address(scope)
        if scope["method"] == "GET" and scope["path"].rstrip("/") == "":
            # The body is edited below, so it must not arrive compressed.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            send = PageEditor(send).send
        await self.app(scope, receive, send)


def public_address(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Headers in which the Referer, i.e. the page's own address, decides scheme, host and prefix."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    referer = urlsplit(headers_of(scope).get("referer", ""))
    if not referer.netloc:
        return headers
    address = f"{referer.scheme}://{referer.netloc}{referer.path.rstrip('/')}"
    kept = [pair for pair in headers if pair[0] not in (b"x-gradio-server", b"x-forwarded-host")]
    return [*kept, (b"x-gradio-server", address.encode("latin-1", "ignore"))]


class PageEditor:
    """Holds one response back until it is complete, edits it, and sends it with the right length."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._body = b""

    async def send(self, message: Message) -> None:
        """Take one ASGI message of the response."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = edit_page(self._body)
        kept = [pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"]
        headers = [*kept, (b"content-length", str(len(body)).encode()), PICTURES]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def edit_page(page: bytes) -> bytes:
    """Language script first in the head, root set from the address bar, no absolute manifest link."""
    page = page.replace(b"<head>", LANGUAGE_SCRIPT, 1).replace(ROOT_MARK, ROOT_SCRIPT, 1)
    # The page's second use of its own address, written by the server before anybody knew the prefix.
    page = re.sub(rb'const root = "[^"]*";', b"const root = window.gradio_config.root;", page, count=1)
    return page.replace(b'href="/manifest.json"', b'href="./manifest.json"')
