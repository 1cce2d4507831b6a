"""The ASGI shell: who is let in, and what the page is told about its own address."""

from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.ui.shell import Guard, Shell, edit_page, is_loopback

PAGE = "<html><head></head><body><script data-gradio-mode></script></body></html>"


async def _page(request: Request) -> Response:
    return HTMLResponse(PAGE + "丹炉" * 1000)


async def _echo(request: Request) -> Response:
    return JSONResponse({"server": request.headers.get("x-gradio-server"), "query": str(request.query_params)})


def _app() -> Starlette:
    return Starlette(routes=[Route("/", _page), Route("/echo", _echo, methods=["GET", "POST"])])


def _client(token: str | None = None, host: str = "127.0.0.1:7860") -> TestClient:
    return TestClient(Guard(Shell(_app()), token, "studio_7860"), base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:7860", "localhost:80", "[::1]:7860", "127.9.9.9", "a.localhost"]
)
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "192.168.0.5:7860", "0.0.0.0", "", "127.0.0.1.evil.com"]
)
def test_other_hosts(host: str) -> None:
    assert not is_loopback(host)


def test_this_machine_needs_no_token() -> None:
    assert _client().get("/echo").status_code == 200


def test_the_page_fetches_no_picture_from_elsewhere() -> None:
    assert _client().get("/").headers["content-security-policy"] == "img-src 'self' data: blob:"


def test_a_name_that_was_rebound_to_this_machine_is_refused() -> None:
    answer = _client(host="evil.com").get("/echo")
    assert answer.status_code == 403
    assert "--token" in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.com"},
        {"origin": "null"},
    ],
)
def test_writes_from_other_sites_are_refused(headers: dict[str, str]) -> None:
    for client in (_client(), _client("secret")):
        assert client.post("/echo", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "http://hub.example"},
        {"origin": "http://127.0.0.1:7860"},
        {"origin": "http://hub.example", "x-forwarded-host": "hub.example"},
    ],
)
def test_own_writes_pass(headers: dict[str, str]) -> None:
    assert _client().post("/echo", headers=headers).status_code == 200


def test_token_link_sets_a_cookie_and_keeps_the_run() -> None:
    client = _client("secret", host="lab.example")
    assert client.get("/").status_code == 401
    entered = client.get("/?token=secret&run=r1")
    assert entered.status_code == 303
    assert entered.headers["location"] == "./?run=r1"
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("given", ["wrong", "", "sécret", "secret2"])
def test_wrong_tokens_stay_out(given: str) -> None:
    client = _client("secret")
    assert client.get("/", params={"token": given}).status_code == 401
    assert client.get("/", headers={"cookie": f"studio_7860={given}".encode()}).status_code == 401
    assert client.get("/", headers={"authorization": f"Bearer {given}".encode()}).status_code == 401


def test_bearer_is_enough_for_programs() -> None:
    assert _client("secret").get("/echo", headers={"authorization": "Bearer secret"}).status_code == 200


def test_broken_cookie_header_is_no_crash() -> None:
    assert _client("secret").get("/", headers={"cookie": '=;;="'}).status_code == 401


def test_page_gets_language_script_first_and_its_root_from_the_address() -> None:
    text = _client().get("/", headers={"accept-encoding": "gzip"}).text
    assert text.index("studio.lang") < text.index("data-gradio-mode")
    assert "location.origin" in text[: text.index("data-gradio-mode")]
    assert text.endswith("丹炉")


def test_only_the_page_is_edited() -> None:
    assert b"studio.lang" not in _client().get("/echo").content


@pytest.mark.parametrize(
    ("referer", "expected"),
    [
        ("https://hub.example/user/ann/proxy/7860/?run=1", "https://hub.example/user/ann/proxy/7860"),
        ("http://127.0.0.1:7860/", "http://127.0.0.1:7860"),
        (None, None),
    ],
)
def test_public_address_comes_from_the_referer(referer: str | None, expected: str | None) -> None:
    headers = {"referer": referer} if referer else {}
    assert _client().get("/echo", headers=headers).json()["server"] == expected


def test_a_page_without_the_marks_is_left_whole() -> None:
    edit: Callable[[bytes], bytes] = edit_page
    assert edit(b"plain") == b"plain"
