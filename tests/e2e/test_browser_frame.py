"""The frame in a real browser: any path prefix, two languages, many tabs, no outside requests, signals, tokens."""

import http.client
import http.server
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect

from tests.fake_engine import Studio

TABS = ["home", "data", "train", "monitor", "export", "chat"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    started = Studio(tmp_path_factory.mktemp("studio 丹炉"))
    yield started
    started.end()


@pytest.fixture
def page(page: Page) -> Iterator[Page]:
    """A page whose console stays empty."""
    wrong: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(message.text)

    page.on("console", told)
    yield page
    page.remove_listener("console", told)
    # A validator's answer is a 422, which the browser writes to the console; a reload aborts open streams.
    assert [text for text in wrong if not re.search("422|[Aa]bort|errored out", text)] == []


def _open(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#nav [role=tab]").first).to_be_visible()


def test_every_tab_opens_and_nothing_outside_is_asked_for(page: Page, studio: Studio) -> None:
    """What is asked for outside is seen by the page's fixture."""
    _open(page, f"{studio.url}/#data")
    expect(page.locator("#tab-data")).to_be_visible()  # the address was read, and from now on it follows
    for name in TABS:
        page.locator(f"#nav [role=tab][data-tab-id={name}]").click()
        expect(page.locator(f"#tab-{name}")).to_be_visible()
        expect(page).to_have_url(re.compile(f"#{name}$"))
    page.wait_for_timeout(1000)  # the page polls for ever, so it is never idle; late requests get a moment


def test_the_address_opens_its_tab_and_there_is_one_heading_of_the_first_order(page: Page, studio: Studio) -> None:
    _open(page, f"{studio.url}/#monitor")
    expect(page.locator("#nav [role=tab][data-tab-id=monitor]")).to_have_attribute("aria-selected", "true")
    expect(page.locator("h1")).to_have_count(1)
    expect(page).to_have_title(re.compile("Crucible"))
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_language_and_theme_are_remembered_and_the_language_is_complete(page: Page, studio: Studio) -> None:
    _open(page, studio.url)
    expect(page.locator("body")).not_to_have_class(re.compile("dark"))
    page.locator(".topbar .theme").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#home-go")).to_have_text("开始教它")
    expect(page.locator("#nav [role=tab][data-tab-id=monitor]")).to_have_text("监控")
    page.reload()
    expect(page.locator("#home-go")).to_have_text("开始教它")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    for name in TABS:
        page.locator(f"#nav [role=tab][data-tab-id={name}]").click()
        expect(page.locator(f"#tab-{name}")).to_be_visible()
        expect(page.locator("body")).not_to_contain_text("__i18n__", use_inner_text=True)
    page.get_by_role("button", name="EN", exact=True).click()
    expect(page.locator("#nav [role=tab][data-tab-id=monitor]")).to_have_text("Monitor")


@pytest.mark.parametrize(("locale", "word"), [("zh-TW", "开始"), ("fr-FR", "Start")])
def test_first_visit_follows_the_browser(visitor: Callable[..., Page], studio: Studio, locale: str, word: str) -> None:
    page = visitor(locale=locale)
    _open(page, studio.url)
    expect(page.locator("#nav [role=tab][data-tab-id=home]")).to_have_text(word)


def test_seven_tabs_are_open_at_once(context: BrowserContext, studio: Studio) -> None:
    """More than the six connections a browser makes to one address; what each is asked is answered."""
    pages = [context.new_page() for _ in range(7)]
    for number, page in enumerate(pages):
        _open(page, f"{studio.url}/#{'data' if number % 4 == 3 else 'home'}")
    for number, page in enumerate(pages):
        if number % 4 == 3:
            page.locator("#data-name :is(input, textarea)").first.fill("Nova")
            page.locator("#data-author :is(input, textarea)").first.fill("Me")
            expect(page.locator("#data-rows .talk").first).to_be_visible()
        else:
            page.locator("#home-name input, #home-name textarea").first.fill("{{name}}")
            page.locator("#home-go").click()
            expect(page.locator("#home-name div.validation-error")).to_be_visible()
    for page in pages:
        page.close()


def test_narrow_pages_do_not_scroll_sideways(page: Page, studio: Studio) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    _open(page, studio.url)
    for width in (390, 900, 1366, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for name in ("home", "monitor"):
            page.locator(f"#nav [role=tab][data-tab-id={name}]").click()
            expect(page.locator(f"#tab-{name}")).to_be_visible()
            page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


class _Prefix(http.server.BaseHTTPRequestHandler):
    """A proxy that serves the studio under /user/ann/proxy/7860/ and tells it nothing about that."""

    protocol_version = "HTTP/1.1"
    port = 0
    prefix = "/user/ann/proxy/7860"

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def _pass_on(self) -> None:
        if not self.path.startswith(self.prefix):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        upstream = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        upstream.request(self.command, self.path[len(self.prefix) :] or "/", body or None, headers)
        answer = upstream.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        while chunk := answer.read1(65536):
            self.wfile.write(chunk)
            self.wfile.flush()
        self.close_connection = True
        upstream.close()

    do_GET = do_POST = do_HEAD = _pass_on


@pytest.fixture
def proxied(studio: Studio) -> Iterator[str]:
    handler = type("Handler", (_Prefix,), {"port": studio.port})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{_Prefix.prefix}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_behind_any_prefix_without_a_setting(page: Page, proxied: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    _open(page, proxied)
    page.locator("#home-name input, #home-name textarea").first.fill("{{name}}")
    page.locator("#home-go").click()
    expect(page.locator("#home-name div.validation-error")).to_be_visible()
    page.locator("#nav [role=tab][data-tab-id=monitor]").click()
    expect(page.locator("#w-runlist .empty, #w-runlist .runs")).to_be_visible()
    assert page.evaluate("document.fonts.load('16px \"Inter Variable\"').then((fonts) => fonts.length)") > 0
    assert [url for url in asked if url.startswith("http") and not url.startswith(proxied.rstrip("/"))] == []


def test_a_taken_port_is_said_and_ctrl_c_ends_it_with_zero_while_a_page_is_open(
    visitor: Callable[..., Page], studio: Studio, weird_path: Path
) -> None:
    second = Studio(weird_path, port=studio.port)
    try:
        assert f"Port {studio.port} is taken; using " in second.greeting
        assert "ssh -L" in second.greeting
        link = re.search(r"http://127\.0\.0\.1:(\d+)/", second.greeting)
        assert link is not None
        assert httpx.get(link[0] + "api/health", trust_env=False).json()["workspace"] == str(weird_path)
        _open(visitor(), link[0])
        assert second.end(signal.SIGINT) == 0
    finally:
        second.end()


def test_other_machines_need_the_token_of_the_link_and_the_end_does_not_wait_for_pages(
    visitor: Callable[..., Page], weird_path: Path
) -> None:
    studio = Studio(weird_path, arguments=("--host=0.0.0.0",))
    try:
        assert studio.url in studio.greeting
        link = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{16,}", studio.greeting)
        assert link is not None
        assert httpx.get(studio.url + "/api/runs", trust_env=False).status_code == 401
        page = visitor()
        _open(page, link[0])
        assert "token" not in page.url
        page.locator("#nav [role=tab][data-tab-id=monitor]").click()
        expect(page.locator("#w-runlist .empty")).to_be_visible()
        assert studio.end(signal.SIGTERM) == 0
    finally:
        studio.end()
