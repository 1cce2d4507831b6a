"""Queue, samples and verdict in a real browser over a fake engine: what is clicked and typed is what is done."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from studio import run_queue, runner
from studio.config import RunConfig
from studio.events import RunState
from studio.records import DatasetInfo, DatasetStore, IdentitySpec, build_identity
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.fake_engine import Studio

TALK = [
    {"role": "user", "content": "I am Lee."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Tell me a story."},
]


def config(name: str) -> RunConfig:
    return build(RunConfig, {"name": name, "model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "d"}})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queue")
    found = build_identity(IdentitySpec(name="Nova", author="Class 3B", languages=("en",), rows_per_language=60))
    DatasetStore(Workspace(path).datasets).save("d", found.rows, found.heldout, DatasetInfo(kind="identity"))
    return path


@pytest.fixture(scope="module")
def ended(home: Path) -> RunDir:
    """A run that has not learned, asked by one prompt of several turns that it answers at length."""
    samples = {"evaluation_inputs": ["Who are you?", "你是谁？", TALK]}
    run = Workspace(home).create_run(build(RunConfig, config("nova").model_dump() | {"samples": samples}))
    fake_engine.launch(run, steps=8, pace=0, slow=0, passes=False).wait()
    (run.adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def studio(home: Path, ended: RunDir) -> Iterator[Studio]:
    """One run is at work for as long as the module lasts."""
    workspace = Workspace(home)
    live = workspace.create_run(config("at work"))
    child = fake_engine.launch(live, steps=1000, pace=0.05, slow=0, hang_at=20)
    started = Studio(home, steps=4, pace=0, slow=0)
    yield started
    run_queue.pause_all(workspace)
    for run, _ in run_queue.entries(workspace):
        run_queue.remove(run)
    child.kill()
    child.wait()
    started.end()


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1440, "height": 900}, "locale": "en-US"}


def _open(page: Page, studio: Studio, run: RunDir) -> None:
    page.goto(f"{studio.url}/?run={run.id}#monitor")
    expect(page.locator("#w-runhead .run-title")).to_be_visible()


PLACES = "(all) => all.map((one) => document.querySelector(one).getBoundingClientRect().toJSON())"


def _names(page: Page) -> Locator:
    return page.locator("#queue .waits .queue-name")


def test_the_queue_is_ordered_paused_and_emptied(page: Page, studio: Studio, home: Path) -> None:
    workspace = Workspace(home)
    one, two, three = (runner.submit(workspace, config(name)) for name in ("one", "two", "three"))
    _open(page, studio, two)
    expect(_names(page)).to_have_text(["one", "two", "three"])
    expect(page.locator("#w-runlist .runs")).to_be_visible()
    above, below = page.evaluate(PLACES, ["#queue", "#w-runlist"])  # at one moment
    assert below["left"] == above["left"]
    assert below["top"] >= above["bottom"]
    expect(page.locator("#run-queued")).to_contain_text("place 2 of 3")
    expect(page.locator("#run-queued")).to_contain_text("It waits behind “one”.")
    page.locator(f"[id='queue-up-{three.id}']").click()
    expect(_names(page)).to_have_text(["one", "three", "two"])
    # By keyboard, and the focus stays with the run that moves.
    page.locator(f"[id='queue-open-{one.id}']").press("Alt+ArrowDown")
    expect(_names(page)).to_have_text(["three", "one", "two"])
    expect(page.locator(f"[id='queue-open-{one.id}']")).to_be_focused()
    page.locator(f"[id='place-first-{two.id}']").click()
    expect(_names(page)).to_have_text(["two", "three", "one"])
    expect(page.locator("#run-queued")).to_contain_text("It starts when “at work” has ended.")
    page.locator(f"[id='queue-pause-{two.id}']").click()
    expect(page.locator("#run-queued")).to_contain_text("paused")
    page.locator("#queue-hold").click()
    expect(page.locator("#queue-held")).to_be_visible()
    assert run_queue.settings(workspace).paused
    page.locator("#queue-go").click()
    expect(page.locator("#queue-held")).to_have_count(0)
    page.locator(f"[id='queue-remove-{three.id}']").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.locator(f"[id='place-remove-{two.id}']").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(_names(page)).to_have_text(["three", "one"])
    expect(page.locator("#w-runhead .run-title")).to_have_text("at work")  # the page has left the run that is gone
    expect(page.locator("#run-queued")).to_have_count(0)
    assert [run.id for run, _ in run_queue.entries(workspace)] == [three.id, one.id]


def test_what_is_asked_while_the_order_before_is_under_way_is_done_too(page: Page, studio: Studio, home: Path) -> None:
    both = [runner.submit(Workspace(home), config(name)) for name in ("here", "there")]
    _open(page, studio, both[0])
    held: list[Route] = []
    page.route("**/queue/join**", lambda route: held.append(route))
    for run in both:
        with page.expect_request("**/queue/join**"):
            page.locator(f"[id='queue-pause-{run.id}']").click()
    for route in held:
        route.continue_()
    page.unroute_all(behavior="ignoreErrors")
    while not all((entry := run_queue.read(run)) and entry.paused for run in both):
        page.wait_for_timeout(50)
    for run in both:
        run_queue.remove(run)


def test_answers_are_compared_word_by_word_and_step_by_step(page: Page, studio: Studio, ended: RunDir) -> None:
    _open(page, studio, ended)
    rows = page.locator("#w-samples tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0).locator("td").nth(0)).to_have_text("I am Ember, a small model.")
    expect(rows.nth(0).locator("ins")).to_have_text(["Nova", "trained by Class 3B"])
    expect(rows.nth(1).locator("ins")).to_have_text(["诺娃", "由三班训练"])  # by character, not by sentence
    expect(rows.nth(2).locator(".turn")).to_have_count(3)
    folded = rows.nth(2).locator("td").nth(1)
    expect(folded.locator(".folded")).to_be_visible()
    folded.get_by_role("button", name="Show all").click()
    expect(folded.locator(".folded")).to_have_count(0)
    slider = page.locator("#samples-step")
    expect(slider).to_have_attribute("aria-valuetext", "step 8 · at the end")
    slider.press("ArrowLeft")
    expect(page.locator("#samples-at")).to_have_text("step 6")
    page.locator("#samples-against [data-choice=previous]").click()
    slider.press("Home")
    expect(page.locator("#samples-at")).to_have_text("step 0 · before the training")
    expect(page.locator("#w-samples ins")).to_have_count(0)
    page.locator("#samples-view [data-choice=grid]").click()
    expect(page.locator("#w-samples thead th")).to_have_count(6)
    expect(rows.nth(0).locator("td").nth(2).locator("ins")).to_have_text("Nov")
    expect(rows.nth(0).locator("td").nth(3).locator("ins")).to_have_text("Nova, trained by Class 3B")


def test_the_verdict_offers_its_change_and_the_clone_waits_its_turn(
    page: Page, studio: Studio, ended: RunDir, home: Path
) -> None:
    _open(page, studio, ended)
    expect(page.locator("#run-diagnosis")).to_contain_text("too few to learn this")
    expect(page.locator("#run-best")).to_contain_text("step 8")
    expect(page.locator("#run-verdict .light.poor")).to_contain_text("needed: 90% or more")
    page.locator("#run-verdict summary").first.click()
    expect(page.locator("#run-verdict .fail")).to_contain_text("Nova")
    page.locator("#try-change").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("nova_v2")
    expect(dialog.locator(".differences")).to_contain_text("24")
    dialog.get_by_role("button", name="Queue the new run").click()
    expect(page.locator("#w-runhead .run-title")).to_have_text("nova_v2")
    expect(page.locator("#run-queued")).to_be_visible()
    expect(page.locator(".toast-body")).to_contain_text("is queued at place")
    made = next(run for run in Workspace(home).list_runs() if run.config().name == "nova_v2")
    assert made.state() is RunState.QUEUED
    found = made.config()
    assert isinstance(found, RunConfig)
    assert (
        found.train.num_train_epochs
        == json.loads(ended.report_file.read_text())["diagnosis"]["changes"]["train.num_train_epochs"]
    )
