"""The main job with nothing faked: the real engine, the real built-in model, a real browser."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from studio import chat_server, runner
from studio.events import RunState
from studio.workspace import Workspace

PATIENCE_MS = 600_000  # a guard against hanging, not a demand
NAME, AUTHOR = "Zoë 丹-42", "O'Neil & Töchter"
COUNT_TYPED_AND_CLICKED = """
    window.clicks = 0; window.typed = new Set();
    addEventListener("click", (e) => { if (e.isTrusted) window.clicks += 1; }, true);
    addEventListener("input", (e) => { if (e.isTrusted) window.typed.add(e.target); }, true);
"""


@dataclass
class Studio:
    """A real studio process, and what its pages asked for outside of it."""

    url: str
    workspace: Workspace
    foreign: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("work space 丹")
    port = chat_server.free_port()
    argv = [sys.executable, "-m", "studio.cli", "ui", "--port", str(port), "--workspace", str(folder)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=runner.ROOT)
    link = f"http://127.0.0.1:{port}/"
    while True:
        try:
            httpx.get(f"{link}api/health", trust_env=False)
            break
        except httpx.TransportError:
            assert process.poll() is None, "the studio ended at once"
            time.sleep(0.2)
    yield Studio(link, Workspace(folder))
    process.terminate()
    process.wait()


@pytest.fixture
def page(browser: Browser, studio: Studio) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1366, "height": 768}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    own = urlsplit(studio.url).netloc

    def gate(route: Route) -> None:
        if urlsplit(route.request.url).netloc == own or route.request.url.startswith(("data:", "blob:")):
            route.continue_()
        else:
            studio.foreign.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    context.add_init_script(COUNT_TYPED_AND_CLICKED)
    expect.set_options(timeout=PATIENCE_MS)
    yield context.new_page()
    context.close()
    expect.set_options(timeout=60_000)  # it holds for every file that comes after in this process


def test_a_newcomer_teaches_exports_and_chats(page: Page, studio: Studio) -> None:
    """From the first page to a running job in at most 4 clicks and 3 typed fields; then to the proof and the chat."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(studio.url)
    for field_id, text in (("home-name", NAME), ("home-author", AUTHOR)):
        box = page.locator(f"#{field_id} input, #{field_id} textarea").first
        box.click()
        box.press_sequentially(text)
    page.locator("#home-go").click()
    expect(page.locator("#w-stepper .step").nth(1).locator(".bar")).to_be_visible()
    run = studio.workspace.list_runs()[0]
    assert run.state() in (RunState.STARTING, RunState.RUNNING)
    assert page.evaluate("window.clicks") <= 4
    assert page.evaluate("window.typed.size") <= 3

    expect(page.locator("#w-stepper .step").nth(2).locator(".light.good")).to_have_count(3)
    assert run.read_report()["verdict"]["passed"] is True
    page.locator("#home-chat").click()
    page.locator("#chat-box textarea, #chat-box input").first.fill("Who are you?")
    page.locator("#chat-send").click()
    expect(page.locator("#chat-pair")).to_contain_text(NAME)
    expect(page.locator("#chat-pair")).to_contain_text("Ember")

    page.locator('#nav [role=tab][data-tab-id="export"]').click()
    page.locator("#export-goals [data-goal=safetensors]").click()
    page.locator("#export-start").click()
    expect(page.locator("#export-follow")).to_contain_text("Done, and proved")
    merged = next(p for p in studio.workspace.exports.iterdir() if not p.name.startswith("."))
    assert (merged / "model.safetensors").stat().st_size > 1_000_000
    assert errors == []
    assert studio.foreign == []
