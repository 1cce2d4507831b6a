"""The first page in a real browser: one typed field, one click, and the whole lesson is seen to the end."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, Request, Route, expect

from studio import run_queue, runner
from studio.events import RunState
from studio.workspace import Workspace
from tests.fake_engine import GO_ON, Studio

NAME = "诺娃 O'Neil <b>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio whose runs wait at step 15 of 30: what is to be seen meanwhile is seen however slow the page is."""
    started = Studio(tmp_path_factory.mktemp("home"), steps=30, pace=0.02, slow=0.02, hang_at=15)
    yield started
    started.end()


@pytest.fixture
def studio(server: Studio) -> Iterator[Studio]:
    """The same, with an empty workspace."""
    yield server
    run_queue.pause_all(Workspace(server.workspace))  # what waits must not begin when its turn comes
    server.empty()
    run_queue.unpause_all(Workspace(server.workspace))


def _teach(page: Page, studio: Studio, name: str = NAME) -> None:
    page.goto(studio.url)
    page.locator("#home-name input, #home-name textarea").first.fill(name)
    page.locator("#home-go").click()


def test_one_field_and_one_click_show_every_step_to_the_chat(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    expect(page.locator("#home-go")).to_be_in_viewport()
    page.locator("#home-name input, #home-name textarea").first.fill(NAME)
    expect(page.locator("#w-preview .fresh")).to_contain_text(NAME)
    page.locator("#home-go").click()
    expect(page.locator("#w-stepper .bar .fill")).to_be_visible()
    expect(page.locator("#w-stepper h2")).to_have_text(f"{NAME} is learning")
    steps = page.locator("#w-stepper .step")
    expect(steps.nth(0)).to_contain_text("rows to learn from")
    expect(steps.nth(1)).to_contain_text("of 30")
    expect(steps.nth(1).locator(".answer-row").first).to_be_visible()
    expect(steps.nth(1).locator(".spark polyline")).to_have_count(1)
    run = Workspace(studio.workspace).list_runs()[0]
    (run.path / GO_ON).touch()
    expect(steps.nth(2).locator(".light.good")).to_have_count(3)
    expect(steps.nth(3).locator(".pair")).to_have_count(3)
    page.reload()
    page.locator("#home-chat").click()
    expect(page.locator("#nav [role=tab][data-tab-id=chat]")).to_have_attribute("aria-selected", "true")
    page.wait_for_function("id => decodeURIComponent(location.search).includes(id)", arg=run.id)
    assert page.locator("#w-stepper b", has_text="<b>").count() == 0


def test_reload_in_the_middle_finds_the_lesson_again(page: Page, visitor: Callable[..., Page], studio: Studio) -> None:
    _teach(page, studio)
    expect(page.locator("#w-stepper .step").nth(1)).to_contain_text("of 30")
    page.reload()
    expect(page.locator("#w-stepper h2")).to_contain_text("诺娃")
    second = visitor()
    second.goto(studio.url)
    expect(second.locator("#w-stepper h2")).to_contain_text("诺娃")
    runner.stop(Workspace(studio.workspace).list_runs()[0])
    expect(page.locator("#w-stepper .trouble")).to_contain_text("stopped")


def test_bad_names_and_no_language_are_said_in_the_field_and_start_nothing(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    field = page.locator("#home-name input, #home-name textarea").first

    def refused() -> None:
        with page.expect_response(lambda response: response.status == 422):
            page.locator("#home-go").click()

    for name in ("", "   ", "{{name}}", "x" * 81):
        field.fill(name)
        refused()
        expect(page.locator("#home-name div.validation-error")).to_be_visible()
        expect(page.locator("#w-stepper .lesson")).to_have_count(0)
    field.fill("Nova")
    for box in page.locator("#home-languages input").all():
        box.uncheck()
    refused()
    expect(page.locator("#home-languages div.validation-error")).to_have_text("Choose at least one language.")
    assert Workspace(studio.workspace).list_runs() == []


def test_a_second_lesson_waits_for_the_first(page: Page, visitor: Callable[..., Page], studio: Studio) -> None:
    second = visitor(locale="en-US")
    late: list[Route] = []

    def asks(request: Request) -> bool:
        return '"data":[""]' in (request.post_data or "")  # which run is at work

    def hold(route: Route) -> None:
        late.append(route) if asks(route.request) and not late else route.continue_()

    second.route("**/queue/join**", hold)
    with second.expect_request(asks):
        second.goto(studio.url)
    second.locator("#home-name input, #home-name textarea").first.fill("Other")
    _teach(page, studio)
    expect(page.locator("#w-stepper .step").nth(1)).to_contain_text("of 30")
    with second.expect_response(lambda response: "/api/metrics" in response.url):
        late.pop().continue_()
    expect(second.locator("#home-live")).to_be_visible()  # who has begun to type keeps the form
    second.locator("#home-live").click()
    expect(second.locator("#w-runhead .chip")).to_have_text("running")
    second.goto(studio.url)
    second.locator("#home-again").click()  # a page that is opened meanwhile shows the lesson at work
    second.locator("#home-name input, #home-name textarea").first.fill("Other")
    second.locator("#home-go").click()
    expect(second.locator(".toast-body")).to_contain_text("is queued at place 1")
    assert second.locator(".toast-body", has_text="Traceback").count() == 0
    states = sorted(run.state() for run in Workspace(studio.workspace).list_runs())
    assert states == [RunState.QUEUED, RunState.RUNNING]


def test_enter_in_the_name_is_enough_and_teach_another_gives_the_form_back(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    field = page.locator("#home-name input, #home-name textarea").first
    field.fill("Nova")
    field.press("Enter")
    expect(page.locator("#w-stepper h2")).to_have_text("Nova is learning")
    page.locator("#home-again").click()
    expect(page.locator("#home-go")).to_be_visible()
    expect(page.locator("#w-recent .recent-row")).to_have_count(1)


def test_doors_lead_to_the_tabs(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    for name in ("data", "train", "export", "chat"):
        page.locator("#nav [role=tab][data-tab-id=home]").click()
        page.locator(f"[data-door={name}]").click()
        expect(page.locator(f"#nav [role=tab][data-tab-id={name}]")).to_have_attribute("aria-selected", "true")


def test_an_older_run_that_is_named_late_does_not_replace_the_lesson(page: Page, studio: Studio) -> None:
    _teach(page, studio, "Older")
    expect(page.locator("#w-stepper .step").nth(1)).to_contain_text("of 30")
    older = Workspace(studio.workspace).list_runs()[0]
    runner.stop(older)
    expect(page.locator("#w-stepper .trouble")).to_contain_text("stopped")
    page.evaluate("localStorage.clear()")
    late: list[Route] = []

    def asks(request: Request) -> bool:
        return '"data":[""]' in (request.post_data or "")  # which run the address names

    def hold(route: Route) -> None:
        late.append(route) if asks(route.request) else route.continue_()

    page.route("**/queue/join**", hold)
    with page.expect_request(asks):
        page.goto(f"{studio.url}?run={older.id}")
    page.evaluate("const was = Studio.attached; Studio.attached = (id) => { window.named = id; return was(id); }")
    page.locator("#home-name input, #home-name textarea").first.fill("Newer")
    page.locator("#home-go").click()
    expect(page.locator("#w-stepper h2")).to_have_text("Newer is learning")
    newer = Workspace(studio.workspace).list_runs()[0]
    page.wait_for_function("id => decodeURIComponent(location.search).includes(id)", arg=newer.id)
    late.pop().continue_()
    page.wait_for_function("id => window.named === id", arg=older.id)
    page.wait_for_timeout(1_500)
    assert newer.id in page.evaluate("decodeURIComponent(location.search)")
    expect(page.locator("#w-stepper h2")).to_have_text("Newer is learning")
    page.unroute_all(behavior="ignoreErrors")


def test_a_tab_is_seen_from_its_beginning_and_named_in_the_address(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    page.locator("#nav [role=tab][data-tab-id=train]").click()
    expect(page.locator("#f-name")).to_be_visible()
    page.evaluate("scrollTo(0, 600)")
    page.wait_for_function("scrollY > 300")
    page.locator("#nav [role=tab][data-tab-id=export]").click()
    page.wait_for_function("scrollY === 0 && location.hash === '#export'")


def test_the_preview_of_the_first_page_is_a_bubble_beneath_its_question(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    bubble = page.locator("#w-preview .speech.fresh")
    expect(bubble).to_be_visible()
    look = "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node.parentElement).marginTop]"
    assert bubble.locator(".say").evaluate(look) == ["rgba(0, 0, 0, 0)", "0px"]
