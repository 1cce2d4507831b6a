"""One page of the browser per file, as good as new for each test: the browser keeps what it has loaded and compiled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request, expect

DESKTOP = {"width": 1366, "height": 768}
WIDE = {"width": 1440, "height": 900}
OURS = re.compile(r"(http://127\.0\.0\.1[:/]|data:|blob:)")
PATIENCE_MS = 180_000  # a guard against hanging, not a demand: a busy machine may take its time


@pytest.fixture(autouse=True)
def patience() -> None:
    """How long what is expected is waited for."""
    expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    """How the file's pages are seen; a file may have its own."""
    return {"viewport": DESKTOP, "locale": "en-US"}


@pytest.fixture(scope="module")
def context(browser: Browser, look: dict[str, Any]) -> Iterator[BrowserContext]:
    """The browser's profile of the file."""
    opened = browser.new_context(**look)
    opened.set_default_timeout(PATIENCE_MS)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept(context: BrowserContext) -> Page:
    """The page all tests of the file use, one after the other."""
    return context.new_page()


@pytest.fixture
def page(kept: Page, look: dict[str, Any]) -> Iterator[Page]:
    """A blank page that remembers nothing; errors in it, dialogs and requests to elsewhere fail the test."""
    wrong: list[str] = []

    def failed(error: Exception) -> None:
        wrong.append(str(error))

    def asked(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def requested(request: Request) -> None:
        if not OURS.match(request.url):
            wrong.append(request.url)

    listeners: dict[Any, Any] = {"pageerror": failed, "dialog": asked, "request": requested}
    for event, listener in listeners.items():
        kept.on(event, listener)
    kept.set_viewport_size(look["viewport"])
    kept.bring_to_front()  # a page behind another one does not ask for anything new
    yield kept
    hostile = kept.evaluate("window.pwned")
    for event, listener in listeners.items():
        kept.remove_listener(event, listener)
    _forget(kept)
    kept.context.clear_cookies()
    for other in kept.context.pages:
        if other is not kept:
            other.close()
    assert hostile is None
    assert wrong == []


def _forget(page: Page) -> None:
    """Leave the page and empty its stores, once nothing of it is at work that would fill them again."""
    if page.url.startswith("http"):
        empty = page.evaluate("location.origin") + "/empty"
        page.route(empty, lambda route: route.fulfill(body="", content_type="text/html"))  # its studio may have ended
        page.goto(empty)
        page.evaluate("localStorage.clear(); sessionStorage.clear()")
        page.unroute(empty)
    page.goto("about:blank")


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A page of somebody else: call it with what his browser is like, in the words of Playwright's `new_context`."""
    contexts: list[BrowserContext] = []

    def come(**like: Any) -> Page:
        contexts.append(browser.new_context(**like))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        return contexts[-1].new_page()

    yield come
    for each in contexts:
        each.close()
