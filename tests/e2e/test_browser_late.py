"""Answers that come late, as over a slow connection: none is taken for another run's, none is asked for twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from studio.config import RunConfig
from studio.records import DatasetInfo, DatasetStore
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.fake_engine import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    started = Studio(tmp_path_factory.mktemp("late"))
    yield started
    started.end()


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1440, "height": 900}, "locale": "en-US"}


@pytest.fixture
def hold(page: Page) -> Iterator[Callable[[str], list[Route]]]:
    """Call it with a path: what is asked there from now on waits in the list, until it is continued."""

    def begin(path: str) -> list[Route]:
        held: list[Route] = []
        page.route(f"**{path}**", lambda route: held.append(route))
        return held

    yield begin
    page.unroute_all(behavior="ignoreErrors")


def _done(studio: Studio, name: str, passes: bool = True) -> RunDir:
    data: dict[str, Any] = {
        "name": name,
        "model": {"model_name_or_path": "crucible/ember"},
        "data": {"dataset": "d"},
        "samples": {"evaluation_inputs": ["Who are you?"]},
    }
    run = Workspace(studio.workspace).create_run(build(RunConfig, data))
    fake_engine.launch(run, steps=8, pace=0, slow=0, passes=passes).wait()
    return run


def _told_again(page: Page, times: int = 2) -> None:
    """The page has heard of its run some more times, and what follows from that is under way."""
    for _ in range(times):
        with page.expect_response("**/api/metrics?**"):
            pass
    page.evaluate("new Promise((done) => setTimeout(done, 200))")


def test_a_late_verdict_is_not_taken_for_that_of_the_run_chosen_meanwhile(
    page: Page, studio: Studio, hold: Callable[[str], list[Route]]
) -> None:
    missed, passed = _done(studio, "missed", passes=False), _done(studio, "passed")
    held = hold("/api/report")
    with page.expect_request("**/api/report?**"):
        page.goto(f"{studio.url}/?run={missed.id}#monitor")
    with page.expect_request("**/api/report?**"):
        page.locator(f"[id='row-{passed.id}']").click()
    expect(page.locator("#w-runhead .run-title")).to_have_text("passed")
    first, second = held
    with page.expect_response("**/api/report?**"):
        first.continue_()
    _told_again(page)
    with page.expect_response("**/api/report?**"):
        second.continue_()
    expect(page.locator("#run-verdict .light.good")).to_have_count(3)
    expect(page.locator("#run-verdict .light.poor")).to_have_count(0)


def test_samples_are_not_asked_for_again_while_they_are_on_their_way(
    page: Page, studio: Studio, hold: Callable[[str], list[Route]]
) -> None:
    run = _done(studio, "sampled")
    held = hold("/api/samples")
    with page.expect_request("**/api/samples?**"):
        page.goto(f"{studio.url}/?run={run.id}#monitor")
    expect(page.locator("#w-runhead .run-title")).to_have_text("sampled")
    _told_again(page)
    (only,) = held
    only.continue_()
    expect(page.locator("#w-samples tbody tr")).to_have_count(1)


def test_lines_of_the_log_that_are_on_their_way_twice_are_shown_once(
    page: Page, studio: Studio, hold: Callable[[str], list[Route]]
) -> None:
    before, run = _done(studio, "before"), _done(studio, "logged")
    page.goto(f"{studio.url}/?run={before.id}#monitor")
    expect(page.locator("#w-logtail .log")).to_contain_text("phase verdict")
    held = hold("/api/log")
    page.locator(f"[id='row-{run.id}']").click()
    while len(held) < 2:  # by the choice, and by the look that is had every second
        page.wait_for_timeout(50)
    for route in held[:]:
        with page.expect_response("**/api/log?**"):
            route.continue_()
    expect(page.locator("#w-logtail .log")).to_contain_text("phase verdict")
    expect(page.locator("#w-logtail .line", has_text="phase verdict")).to_have_count(1)


def test_the_rows_asked_for_last_are_shown_whichever_answer_comes_last(
    page: Page, studio: Studio, hold: Callable[[str], list[Route]]
) -> None:
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nova."}]}
    DatasetStore(studio.workspace / "datasets").save("thirty", [row] * 30, [], DatasetInfo(kind="upload"))
    page.goto(f"{studio.url}/#data")
    page.locator("#data-way-saved-button").click()
    page.locator("#data-saved .open").click()
    pager = page.locator("#data-rows .pager")
    expect(pager).to_contain_text("1–8 of 30")
    held = hold("/queue/join")
    for name in ("Next page", "Last page"):
        with page.expect_request("**/queue/join**"):
            page.get_by_label(name).click()
    earlier, later = held
    later.continue_()
    expect(pager).to_contain_text("25–30 of 30")
    with page.expect_response("**/queue/join**"):
        earlier.continue_()
    page.wait_for_timeout(1500)  # its answer comes by another way
    expect(pager).to_contain_text("25–30 of 30")


# Whether anything that changes the conversation was ever offered while an answer was still coming.
OFFERED_EARLY = """() => {
  const room = document.querySelector("#chat-room");
  const offered = () => Boolean(room.querySelector(".ballot, [id^=a-edit-]"));
  const look = () => { window.early ||= room.matches(".busy") && offered(); };
  new MutationObserver(look).observe(room, { childList: true, subtree: true, attributes: true });
}"""


def test_votes_and_corrections_are_offered_when_the_answers_have_ended_so_that_none_is_lost(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_FAKE_CHAT", json.dumps({"pace": 0.05}))
    talking = Studio(tmp_path)
    try:
        run = _done(talking, "talks")
        (run.adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
        page.goto(f"{talking.url}/#chat")
        expect(page.locator("#chat-status .chip.finished")).to_be_visible()
        page.evaluate(OFFERED_EARLY)
        box = page.locator("#chat-box textarea")
        box.fill("one two three")
        box.press("Enter")
        expect(page.locator("#a-edit-0-left")).to_be_visible()
        page.locator("#chat-blind").click()
        box.fill("four five six")
        box.press("Enter")
        page.locator("#chat-pair .ballot .btn").last.click()
        expect(page.locator("#chat-pair .alike-note")).to_be_visible()
        assert page.evaluate("window.early") is False
    finally:
        talking.end()
