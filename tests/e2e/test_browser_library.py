"""The library of runs in a real browser: found, named, tagged, compared, deleted, taken into the form, downloaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from studio import labels
from studio.config import RunConfig
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.axe import faults
from tests.fake_engine import Studio

HOSTILE = '<img src=x onerror="window.pwned=1"> ${Object.assign(window,{pwned:1})} {{x}} 丹炉'
DAY = 86_400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def runs(home: Path) -> list[RunDir]:
    """Three finished runs that differ in one setting; the newest has hostile names."""
    made = []
    for number, name in enumerate(("oldest", "middle", HOSTILE)):
        data: dict[str, Any] = {
            "name": name[:120],
            "model": {"model_name_or_path": "crucible/ember"},
            "data": {"dataset": "d"},
            "train": {"learning_rate": (number + 1) * 1e-3},
            "samples": {"evaluation_inputs": ["Who are you?", HOSTILE]},
        }
        run = Workspace(home).create_run(build(RunConfig, data), now=1_790_000_000 + number * DAY)
        fake_engine.launch(run, steps=8, pace=0, slow=0, passes=number != 1).wait()
        made.append(run)
    labels.tag(made[2], ["<b>tag</b>"])
    return made


@pytest.fixture(scope="module")
def studio(home: Path, runs: list[RunDir]) -> Iterator[Studio]:
    started = Studio(home, steps=6, pace=0.05)
    yield started
    started.end()


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1440, "height": 900}, "locale": "en-US"}


@pytest.fixture
def page(page: Page, studio: Studio, runs: list[RunDir]) -> Page:
    page.goto(f"{studio.url}/#monitor")
    expect(page.locator("#w-runlist .run-item")).to_have_count(3)
    return page


def _menu(page: Page, run: RunDir) -> Locator:
    page.locator(f"[id='row-{run.id}']").hover()
    page.locator(f"[id='more-{run.id}']").click()
    return page.locator(".run-menu")


def test_runs_are_found_named_and_tagged(page: Page, runs: list[RunDir]) -> None:
    search = page.locator("#runs-search")
    search.fill("MIDDLE ember")
    expect(page.locator(".run-item .run-name")).to_have_text(["middle"])
    search.fill("nothing is called this")
    page.locator("#runs-clear").click()
    expect(page.locator(".run-item")).to_have_count(3)
    page.locator("#runs-state").select_option("missed")
    expect(page.locator(".run-item .run-name")).to_have_text(["middle"])
    page.locator("#runs-state").select_option("")
    _menu(page, runs[1]).locator("#menu-rename").click()
    page.locator("#rename-title").fill("The right one")
    page.keyboard.press("Enter")
    expect(page.locator(f"[id='row-{runs[1].id}'] .run-name")).to_have_text("The right one")
    _menu(page, runs[1]).locator("#menu-tags").click()
    page.locator("#tag-new").fill("keep")
    page.keyboard.press("Enter")
    page.locator(".library-dialog [type=submit]").click()
    expect(page.locator(f"[id='row-{runs[1].id}'] .run-tag")).to_have_text(["keep"])
    page.locator("#runs-tag").select_option("<b>tag</b>")
    expect(page.locator(".run-item .run-name")).to_have_text([HOSTILE[:120]])


def test_runs_are_compared_side_by_side(page: Page, runs: list[RunDir]) -> None:
    page.locator("#runs-choose").click()
    for run in runs[:2]:
        page.locator(f"[id='pick-{run.id}']").check()
    page.locator("#picks-compare").click()
    expect(page.locator("#compare thead .run-open")).to_have_count(2)
    fields = page.locator("#compare-rest table").first
    expect(fields.locator("tbody code")).to_have_text(["train.learning_rate"])
    expect(fields.locator("tbody td")).to_have_text(["0.001", "0.002"])
    expect(page.locator("#compare-rest")).to_contain_text(HOSTILE)
    expect(page.locator("#w-verdict")).to_be_hidden()
    expect(page.locator("#w-chart .readout-runs li")).to_have_count(2)
    page.reload()
    expect(page.locator("#compare thead .run-open")).to_have_count(2)
    page.locator("#compare-end").click()
    expect(page.locator("#w-runhead .run-title")).to_be_visible()
    expect(page.locator("#compare")).to_have_count(0)


def test_a_card_comes_as_a_file_and_the_settings_go_into_the_form(page: Page, runs: list[RunDir]) -> None:
    menu = _menu(page, runs[0])
    with page.expect_download() as download:
        menu.locator("#menu-card-html").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == f"{runs[0].id}.card.html"
    assert "train.learning_rate" in text
    _menu(page, runs[0]).locator("#menu-clone").click()
    expect(page.locator("#tab-train")).to_be_visible()
    expect(page.locator("#tab-train input[type=text], #tab-train textarea").first).to_be_visible()
    page.wait_for_function("[...document.querySelectorAll('#tab-train input')].some((one) => one.value === '0.001')")


def test_the_table_sorts_and_everything_can_be_reached(page: Page, runs: list[RunDir]) -> None:
    assert faults(page, {"include": [["#w-runlist"]]}, {"runOnly": ["wcag2a", "wcag2aa"]}) == {}
    page.locator("#runs-table").click()
    expect(page.locator("#w-runlist tbody tr")).to_have_count(3)
    page.locator("#sort-name").click()
    expect(page.locator("#w-runlist tbody .run-open").first).to_have_text(HOSTILE[:120])
    page.locator(f"[id='row-{runs[0].id}']").click()
    expect(page.locator("#w-runhead .run-title")).to_have_text("oldest")


def test_deleting_asks_and_selects_what_is_left(page: Page, studio: Studio, runs: list[RunDir]) -> None:
    page.locator(f"[id='row-{runs[2].id}']").click()
    _menu(page, runs[2]).locator("#menu-delete").click()
    page.locator(".studio-dialog button", has_text="Cancel").click()
    assert runs[2].path.exists()
    _menu(page, runs[2]).locator("#menu-delete").click()
    page.locator(".studio-dialog button.bad").click()
    expect(page.locator("#w-runlist .run-item")).to_have_count(2)
    expect(page.locator("#w-runhead .run-title")).not_to_have_text(HOSTILE[:120])
    assert not runs[2].path.exists()
