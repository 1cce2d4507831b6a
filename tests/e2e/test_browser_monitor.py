"""The monitor in a real browser over a fake engine: live, found again, honest about what happened, text stays text."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.config import RunConfig
from studio.events import LogEvent, RunState
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.fake_engine import Studio

HOSTILE = '<img src=x onerror="window.pwned=1"> ${Object.assign(window,{pwned:1})} {{x}} `y` 丹炉'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("monitor")


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    started = Studio(home, steps=6, pace=0.05)
    yield started
    started.end()


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1440, "height": 900}, "locale": "en-US"}


def _new(home: Path, name: str) -> RunDir:
    data: dict[str, Any] = {
        "name": name,
        "model": {"model_name_or_path": "crucible/ember"},
        "data": {"dataset": "d"},
        "samples": {"evaluation_inputs": ["Who are you?", HOSTILE]},
    }
    return Workspace(home).create_run(build(RunConfig, data))


def _done(home: Path, name: str, **options: Any) -> RunDir:
    run = _new(home, name)
    fake_engine.launch(run, **{"steps": 8, "pace": 0, "slow": 0, **options}).wait()
    return run


def _open(page: Page, studio: Studio, run: RunDir | None = None) -> None:
    page.goto(f"{studio.url}/{'?run=' + run.id if run else ''}#monitor")
    expect(page.locator("#w-runlist .runs")).to_be_visible()


@pytest.fixture
def live(home: Path) -> Iterator[RunDir]:
    """A run that goes on until it is stopped, however long a page takes."""
    run = _new(home, "live one")
    child = fake_engine.launch(run, steps=100_000, pace=0.05, slow=0)
    yield run
    if child.poll() is None:
        child.kill()
    child.wait()


def _step(page: Page) -> int:
    tile = page.locator("#tile-step dd")
    expect(tile).to_have_text(re.compile(r"^\d+ "))
    return int(tile.inner_text().split("/")[0])


def _named(page: Page, run: RunDir) -> None:
    """The address names the run."""
    page.wait_for_function("id => decodeURIComponent(location.search).includes(id)", arg=run.id)


def test_a_live_run_moves_by_itself_and_is_found_again(
    page: Page, visitor: Callable[..., Page], studio: Studio, live: RunDir
) -> None:
    _open(page, studio)
    expect(page.locator("#w-runhead .run-title")).to_have_text("live one")
    expect(page.locator("#w-runhead .phase.now")).to_contain_text("Training")
    first = _step(page)
    page.wait_for_function(f"+document.querySelector('#tile-step dd')?.innerText.split('/')[0] > {first}")
    expect(page.locator("#w-chart canvas")).to_be_visible()
    expect(page.locator("#w-samples tbody tr")).to_have_count(2)
    expect(page.locator("#w-logtail .log")).to_contain_text("step")
    expect(page.locator("#w-runhead .count-line")).to_contain_text("384 rows")
    expect(page.locator(".topbar .live")).to_contain_text("live one")

    _named(page, live)
    page.reload()
    expect(page.locator("#w-runhead .run-title")).to_have_text("live one")
    second = visitor()
    _open(second, studio)
    expect(second.locator("#w-runhead .run-title")).to_have_text("live one")


def test_only_new_points_are_fetched_and_none_for_a_hidden_tab(page: Page, studio: Studio, live: RunDir) -> None:
    offsets: list[int] = []
    page.on(
        "request",
        lambda request: offsets.append(int(request.url.split("after=")[1])) if "/api/metrics" in request.url else None,
    )
    _open(page, studio, live)
    page.wait_for_function("Studio.feed.state && Studio.feed.state.version > 4")
    assert offsets[0] == 0
    assert 0 not in offsets[1:]
    assert offsets == sorted(offsets)
    page.locator("#nav [role=tab][data-tab-id=export]").click()
    expect(page.locator("#tab-export")).to_be_visible()
    page.wait_for_timeout(1200)  # what was asked for before may still be reported
    asked = len(offsets)
    page.wait_for_timeout(2500)
    assert offsets[asked:] == []


def test_stop_asks_saves_and_resume_goes_on(page: Page, studio: Studio, live: RunDir) -> None:
    _open(page, studio, live)
    page.locator("#ask-stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert not live.stop_requested()
    page.locator("#ask-stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop and save").click()
    expect(page.locator("#w-runhead .chip")).to_have_text("stopped")
    assert live.state() is RunState.STOPPED
    # The studio's own fake makes six steps, so the resumed run is past its end at once.
    page.locator("#ask-resume").click()
    expect(page.locator("#w-runhead .chip")).to_have_text("finished")


def test_a_killed_studio_leaves_the_run_alone_and_finds_it_again(page: Page, tmp_path: Path) -> None:
    first = Studio(tmp_path)
    run = _new(tmp_path, "outlives")
    child = fake_engine.launch(run, steps=100_000, pace=0.05, slow=0)
    try:
        _open(page, first, run)
        expect(page.locator("#tile-step dd")).to_contain_text("/ 100000")
        first.end(signal.SIGKILL)
        expect(page.locator(".topbar .live.lost")).to_be_visible()
        before = run.read_status()
        assert before is not None
        assert child.poll() is None
        second = Studio(tmp_path, port=first.port)
        try:
            assert second.port == first.port
            expect(page.locator(".topbar .live.lost")).to_have_count(0)
            page.wait_for_function(f"+document.querySelector('#tile-step dd')?.innerText.split('/')[0] > {before.step}")
            expect(page.locator(".topbar .live")).to_contain_text("outlives")
            page.locator("#ask-stop").click()
            page.get_by_role("dialog").get_by_role("button", name="Stop and save").click()
            expect(page.locator("#w-runhead .chip")).to_have_text("stopped")
        finally:
            second.end()
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def test_failed_lost_and_missed_runs_say_so(page: Page, studio: Studio, home: Path) -> None:
    failed = _done(home, "failed", fail="memory", message=HOSTILE)
    _open(page, studio, failed)
    expect(page.locator("#run-error")).to_contain_text("Out of memory")
    expect(page.locator("#run-error")).to_contain_text(HOSTILE)
    expect(page.locator("#run-error")).to_contain_text("start again")
    lost = _done(home, "lost", die_at=3)
    page.goto(f"{studio.url}/?run={lost.id}#monitor")
    expect(page.locator("#w-runhead .chip")).to_have_text("lost")
    expect(page.locator("#ask-resume")).to_be_visible()
    missed = _done(home, "missed", passes=False)
    page.goto(f"{studio.url}/?run={missed.id}#monitor")
    expect(page.locator("#run-verdict .light.poor")).to_have_count(1)
    expect(page.locator("#run-verdict .light.good")).to_have_count(2)
    page.locator("#run-verdict summary").first.click()
    expect(page.locator("#run-verdict .fail")).to_contain_text("<b>I am Ember.</b>")


def test_hostile_names_and_answers_stay_text(page: Page, studio: Studio, home: Path) -> None:
    run = _done(home, HOSTILE)
    _open(page, studio, run)
    expect(page.locator("#w-runhead .run-title")).to_have_text(HOSTILE)
    expect(page.locator("#w-samples tbody th").nth(1)).to_have_text(HOSTILE)
    expect(page.locator("#w-runlist .run-name", has_text="<img src=x").first).to_be_visible()
    page.locator("#nav [role=tab][data-tab-id=home]").click()
    expect(page.locator("#w-recent .recent-name", has_text="<img src=x").first).to_be_visible()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src=x]").count() == 0


# A curve of 50,000 points thinned to 500 pixels, whole and then grown point by point; smoothing likewise.
SPIKE_IS_KEPT = """async () => {
  const { Smoothed, Thinned } = await import("./studio-assets/chartdata.js");
  const steps = Array.from({ length: 50000 }, (_, index) => index + 1);
  const values = steps.map((step) => (step === 31337 ? 9 : Math.sin(step)));
  const span = { from: 1, to: 50000, pixels: 500, rewinds: 0 };
  const whole = new Thinned().of(steps, values, null, span);
  const slow = new Thinned(); const growing = values.slice(0, 49000); const smooth = new Smoothed(); let smoothed;
  for (let end = 49000; end <= 50000; end += 250) {
    while (growing.length < end) growing.push(values[growing.length]);
    slow.of(steps.slice(0, end), growing, null, { ...span, to: end });
    smoothed = smooth.of(growing, 0.9, 0);
  }
  const grown = slow.of(steps, growing, null, span);
  const again = new Smoothed().of(values, 0.9, 0);
  const same = JSON.stringify(whole) === JSON.stringify(grown) && whole[0].length <= 1000;
  return [Math.max(...whole[1]), same, again.every((value, index) => value === smoothed[index])];
}"""


# Whether a thing has kept its place for two seconds.
KEEPS_STILL = """(selector) => {
  const place = JSON.stringify(document.querySelector(selector).getBoundingClientRect());
  if (window.placeWas !== place) Object.assign(window, { placeWas: place, placeSince: performance.now() });
  return performance.now() - window.placeSince > 2000;
}"""


def _over(page: Page) -> dict[str, float]:
    page.locator("#w-chart .u-over").first.scroll_into_view_if_needed()
    page.wait_for_function(KEEPS_STILL, arg="#w-chart .u-over")
    box = page.locator("#w-chart .u-over").first.bounding_box()
    assert box is not None
    return dict(box)


def test_chart_smooths_zooms_reads_and_overlays(page: Page, studio: Studio, home: Path) -> None:
    other, run = _done(home, "other", steps=30), _done(home, "curves", steps=40)
    _open(page, studio, run)
    expect(page.locator("#w-chart canvas")).to_be_visible()
    page.locator("#chart-smooth").fill("0")
    page.locator("#chart-log").check()
    page.evaluate("(id) => dispatchEvent(new CustomEvent('studio:overlay', { detail: [id] }))", other.id)
    expect(page.locator("#w-chart .readout-runs li")).to_have_count(2)
    page.wait_for_function("Studio.feed.shown.map((run) => run.points.step.length).join() === '40,30'")
    page.locator("#w-chart [data-column=learning_rate]").click()
    expect(page.locator("#w-chart [data-column=learning_rate]")).to_have_attribute("aria-pressed", "true")
    box = _over(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    expect(page.locator("#w-chart .readout")).to_contain_text("Step 2")
    expect(page.locator("#w-chart .readout-value").nth(0)).to_contain_text("e-")
    expect(page.locator("#w-chart .readout-value").nth(1)).to_contain_text("e-")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="Show all", exact=True)).to_be_visible()
    page.get_by_role("button", name="Show all", exact=True).click()
    expect(page.get_by_role("button", name="Show all", exact=True)).to_be_hidden()
    page.locator("#curve-all").click()
    expect(page.locator("#w-chart canvas").nth(4)).to_be_attached()
    with page.expect_download() as picture:
        page.locator("#chart-png").click()
    assert picture.value.path().read_bytes().startswith(b"\x89PNG")
    with page.expect_download() as table:
        page.locator("#chart-csv").click()
    assert page.evaluate(SPIKE_IS_KEPT) == [9.0, True, True]
    lines = table.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("run,step,time,loss,learning_rate")
    assert len(lines) == 1 + 40 + 30


def test_the_coach_speaks_on_the_chart_and_nothing_moves(page: Page, studio: Studio, home: Path) -> None:
    run = _new(home, "spiked")
    child = fake_engine.launch(run, steps=400, pace=0.05, slow=0, hang_at=60)
    try:
        _open(page, studio, run)
        expect(page.locator("#w-runhead .now-line")).to_contain_text("step 60 of 400")
        expect(page.locator("#w-chart canvas")).to_be_visible()
        expect(page.locator("#w-samples tbody tr")).to_have_count(2)
        expect(page.locator("#w-logtail .log")).to_contain_text("step 60 ")
        page.wait_for_function(KEEPS_STILL, arg="#w-logtail")
        before = page.locator("#w-logtail").bounding_box()
        run.append_event(LogEvent(step=61, loss=float("nan")))
        expect(page.locator("#w-chart .coach-note.error")).to_contain_text("step 61")
        expect(page.locator("#w-chart .flag.error")).to_have_text("1")
        expect(page.locator("#w-chart .coach-note.error button")).to_have_text("Try this…")
        assert page.locator("#w-logtail").bounding_box() == before
    finally:
        child.kill()
        child.wait()


def _scrolled(page: Page, where: str) -> None:
    page.wait_for_function(f"(() => {{ const box = document.querySelector('#w-logtail .log'); return {where}; }})()")


def test_the_log_follows_searches_and_shows_one_level(page: Page, studio: Studio, home: Path) -> None:
    run = _done(home, "talkative")
    trouble = "Traceback (most recent call last):\n  File x.py\nValueError: bad\nWARNING: odd row\n"
    run.log_file.write_text("".join(f"line {n} {HOSTILE}\n" for n in range(5000)) + trouble, encoding="utf-8")
    _open(page, studio, run)
    log = page.locator("#w-logtail .log")
    expect(log.locator(".line").last).to_have_text("WARNING: odd row")
    _scrolled(page, "box.scrollHeight - box.scrollTop - box.clientHeight < 24")
    page.locator("#log-error").click()
    expect(log.locator(".line")).to_have_text(["Traceback (most recent call last):", "  File x.py", "ValueError: bad"])
    page.locator("#log-all").click()
    page.locator("#log-search").fill("line 4999")
    expect(log.locator(".line")).to_have_count(1)
    expect(log.locator("mark")).to_have_text("line 4999")
    page.locator("#log-search").fill("")
    log.evaluate("(box) => { box.scrollTop = 0; }")
    page.get_by_role("button", name="Load earlier lines").click()
    expect(page.get_by_role("button", name="↓ Newest")).to_be_visible()
    with run.log_file.open("a", encoding="utf-8") as file:
        file.write("the newest\n")
    expect(log.locator(".line").last).to_have_text("the newest")
    _scrolled(page, "box.scrollTop + box.clientHeight < box.scrollHeight - 24")
    assert log.evaluate("(box) => box.offsetHeight") == 260
    with page.expect_download() as file_:
        page.locator("#log-download").click()
    assert file_.value.path().read_bytes() == run.log_file.read_bytes()


def test_choosing_a_run_keeps_it_in_the_address(page: Page, studio: Studio, home: Path) -> None:
    first, second = _done(home, "choose me"), _done(home, "newer")
    _open(page, studio, second)
    page.locator(f"[id='row-{first.id}']").click()
    expect(page.locator("#w-runhead .run-title")).to_have_text("choose me")
    _named(page, first)
    page.reload()
    expect(page.locator("#w-runhead .run-title")).to_have_text("choose me")
