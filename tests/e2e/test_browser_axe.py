"""Accessibility: axe-core finds nothing serious of ours, in light and dark, on any page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, expect

from studio.config import RunConfig
from studio.events import RunState
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.fake_engine import Studio

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
PAGES = ("home", "data", "train", "monitor", "export", "chat")
# Parts that Gradio draws itself and gives no handle on.
GRADIO = (
    ".toast-body",
    ".toast-header",
    "footer",
    ".icon-button-wrapper",
    ".cm-editor",
    ".table-wrap",
    ".upload-container",
)
FIND = """async (excluded) => {
    const result = await axe.run({ exclude: excluded.map((s) => [s]) }, { resultTypes: ["violations"] });
    return Object.fromEntries(result.violations.filter((v) => ["serious", "critical"].includes(v.impact))
        .flatMap((v) => v.nodes.map((n) => [`${v.id}: ${n.target.join(" ")}`, n.failureSummary])));
}"""
LOOKS = 6


def faults(page: Page) -> dict[str, str]:
    """What axe finds each time it looks, and why.

    axe reads styles one after the other and remembers them: of a page that changes meanwhile it puts the colour of one
    moment on the background of another. A fault that is there to stay is found every time.
    """
    found: dict[str, str] = page.evaluate(FIND, list(GRADIO))
    for _ in range(LOOKS - 1):
        if not found:
            break
        page.wait_for_timeout(800)
        again = page.evaluate(FIND, list(GRADIO))
        found = {where: again[where] for where in found if where in again}
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("axe")
    config = build(RunConfig, {"model_path": "crucible/ember", "data_path": "identity", "name": "Nova"})
    run = Workspace(folder).create_run(config)
    fake_engine.launch(run, steps=8, pace=0.0, slow=0.0).wait()
    assert run.state() is RunState.FINISHED
    started = Studio(folder, steps=8, pace=0.0, slow=0.0)
    yield started
    started.end()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_of_ours(browser: Browser, studio: Studio, theme: str) -> None:
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, color_scheme=theme, locale="en-US", reduced_motion="reduce"
    )
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(f"{studio.url}?__theme={theme}")
    expect(page.locator("#home-go")).to_be_visible(timeout=120_000)
    page.add_script_tag(path=AXE)
    found: dict[str, dict[str, str]] = {}
    for name in PAGES:
        page.locator(f'#nav [role=tab][data-tab-id="{name}"]').click()
        expect(page.locator(f'#nav [role=tab][data-tab-id="{name}"]')).to_have_attribute("aria-selected", "true")
        page.wait_for_timeout(800)  # let the tab draw; nothing is concluded from the time itself
        found[name] = faults(page)
    context.close()
    assert {name: nodes for name, nodes in found.items() if nodes} == {}
