"""Accessibility: axe-core finds nothing serious of ours, in light and dark, on any page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from studio.config import RunConfig
from studio.events import RunState
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.axe import faults
from tests.fake_engine import Studio

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
    context.set_default_timeout(180_000)
    page = context.new_page()
    page.goto(f"{studio.url}?__theme={theme}")
    expect(page.locator("#home-go")).to_be_visible(timeout=180_000)
    found: dict[str, dict[str, str]] = {}
    for name in PAGES:
        page.locator(f'#nav [role=tab][data-tab-id="{name}"]').click()
        expect(page.locator(f'#nav [role=tab][data-tab-id="{name}"]')).to_have_attribute("aria-selected", "true")
        page.wait_for_timeout(800)  # let the tab draw; nothing is concluded from the time itself
        found[name] = faults(page, {"exclude": [[part] for part in GRADIO]}, impacts=("serious", "critical"))
    context.close()
    assert {name: nodes for name, nodes in found.items() if nodes} == {}
