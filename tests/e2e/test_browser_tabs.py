"""Data, Train, Export and Chat in a real browser: what a newcomer does, and what goes wrong."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from studio.config import RunConfig
from studio.events import RunState
from studio.records import DatasetInfo, DatasetStore
from studio.schema import build, dump_yaml
from studio.workspace import Workspace
from tests.fake_engine import Studio

# A guard against hanging, not a demand: a busy machine may take its time.
expect.set_options(timeout=60_000)

HOSTILE = "<img src=x onerror='window.pwned=1'> ${window.pwned=1}"
ROW = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nova."}], "origin": "upload"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    started = Studio(tmp_path_factory.mktemp("tabs"), steps=3000, pace=0.05)
    yield started
    started.end()


@pytest.fixture
def studio(server: Studio) -> Iterator[Studio]:
    """A studio whose workspace is empty at first."""
    yield server
    server.empty()


@pytest.fixture
def talking(tmp_path: Path) -> Iterator[Studio]:
    """A studio of its own, since chat servers stay with the studio that started them."""
    started = Studio(tmp_path)
    yield started
    started.end()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(
        viewport={"width": 1366, "height": 768}, locale="en-US", reduced_motion="reduce", accept_downloads=True
    )
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    opened = context.new_page()
    wrong: list[str] = []
    outside: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(dialog.message))
    ours = r"^(http://127\.0\.0\.1[:/]|data:|blob:)"
    opened.on("request", lambda request: None if re.match(ours, request.url) else outside.append(request.url))
    yield opened
    assert opened.evaluate("window.pwned") is None
    assert wrong == []
    assert outside == []


def show(page: Page, studio: Studio, tab: str, query: str = "") -> None:
    page.goto(f"{studio.url}/{query}#{tab}")
    expect(page.locator(f"#nav [role=tab][data-tab-id={tab}]")).to_have_attribute("aria-selected", "true")


def box(page: Page, field: str) -> Any:
    return page.locator(f"#{field} :is(input, textarea)").first


def save_rows(workspace: Path, title: str = "nova", rows: int = 40) -> str:
    return DatasetStore(workspace / "datasets").save(title, [ROW] * rows, [], DatasetInfo(kind="upload")).name


def add_finished_run(studio: Studio) -> Workspace:
    """A run with an adapter; nothing looks inside it here."""
    workspace = Workspace(studio.workspace)
    run = workspace.create_run(build(RunConfig, {"name": "done", "model_path": "crucible/ember", "dataset": "d"}))
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    return workspace


def runs(studio: Studio) -> list[Any]:
    return Workspace(studio.workspace).list_runs()


def test_from_a_name_to_a_running_job(page: Page, studio: Studio) -> None:
    show(page, studio, "data")
    expect(page.locator("#data-rows .empty")).to_be_visible()
    box(page, "data-name").fill(f"Nova {HOSTILE}")
    box(page, "data-author").fill("O'Neil & 三班 🜂")
    expect(page.locator("#data-rows .bubble.assistant", has_text=HOSTILE).first).to_be_visible()
    page.locator("#data-save").click()
    page.locator("#data-train-on").click()
    expect(page.locator("#train-start")).to_be_in_viewport()
    expect(page.locator("#train-summary")).to_contain_text("optimizer updates")
    shown = page.locator("#train-yaml").inner_text()
    assert page.locator("#train-command").inner_text().startswith("studio train --set ")
    page.locator("#train-start").click()
    expect(page.locator("#nav [role=tab][data-tab-id=monitor]")).to_have_attribute("aria-selected", "true")
    page.wait_for_url("**run=**")
    (run,) = runs(studio)
    assert f"run={run.id}" in page.url
    assert dump_yaml(run.config()).strip() == shown.strip()
    assert run.state().live


def test_downloaded_yaml_is_the_one_shown(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: nova")
    with page.expect_download() as caught:
        page.locator("#train-download").click()
    assert caught.value.suggested_filename == "ember_qlora_nova.yaml"
    assert (
        Path(caught.value.path()).read_text(encoding="utf-8").strip()
        == page.locator("#train-yaml").inner_text().strip()
    )


def test_wrong_values_are_said_in_their_fields_even_hidden_ones(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: nova")
    box(page, "f-train-learning_rate").fill("fast")
    expect(page.locator("#f-train-learning_rate .field-error")).to_contain_text("must be a number", ignore_case=True)
    expect(box(page, "f-train-learning_rate")).to_be_visible()
    box(page, "f-train-learning_rate").fill("1e-3")
    expect(page.locator("#f-train-learning_rate .field-error")).to_have_count(0)
    page.locator("#train-advanced > button").click()
    box(page, "f-train-seed").fill("-1")
    expect(page.locator("#train-summary")).to_contain_text("Seed")
    page.locator("#train-advanced > button").click()
    page.locator("#train-start").click()
    expect(page.locator("#f-train-seed .field-error")).to_be_visible()
    assert runs(studio) == []


def test_an_unvisited_optional_number_stays_empty(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: nova")
    before = page.locator("#train-yaml").inner_text()
    page.locator("#train-advanced > button").click()
    expect(box(page, "f-train-neftune_noise_alpha")).to_have_value("")
    box(page, "train-search").fill("neftune")
    expect(page.locator("#f-train-seed")).to_be_hidden()
    expect(page.locator("#f-train-neftune_noise_alpha")).to_be_visible()
    assert page.locator("#train-yaml").inner_text() == before


def test_method_shows_only_the_fields_that_apply(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train")
    page.locator("#train-advanced > button").click()
    expect(page.locator("#f-lora-r")).to_be_visible()
    page.locator("#f-method label", has_text="full").click()
    expect(page.locator("#f-lora-r")).to_have_count(0)
    expect(page.locator("#train-yaml")).to_contain_text("method: full")
    expect(box(page, "f-train-learning_rate")).to_have_value("0.0003")


def test_two_pages_press_start_together(context: BrowserContext, page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    other = context.new_page()
    for each in (page, other):
        show(each, studio, "train")
        expect(each.locator("#train-yaml")).to_contain_text("dataset: nova")
    page.locator("#train-start").dblclick()  # counts once
    other.locator("#train-start").click()
    expect(other.locator(".toast-body")).to_contain_text("is queued at place 1")
    first, second = sorted(runs(studio), key=lambda run: run.queue_file.exists())
    assert first.state().live
    assert second.state() is RunState.QUEUED


def test_chat_side_by_side(page: Page, talking: Studio) -> None:
    add_finished_run(talking)
    show(page, talking, "chat")
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    page.locator(".chip-ask").first.click()
    expect(page.locator("#chat-tuned .bot").last).to_have_text(re.compile("tuned turn 1 heard Who are you"))
    box(page, "chat-box").fill(HOSTILE)
    box(page, "chat-box").press("Enter")
    expect(page.locator("#chat-base .bot").last).to_contain_text(f"base turn 2 heard {HOSTILE}")
    expect(page.locator("#chat-pair .message img")).to_have_count(0)
    page.locator("#chat-clear").click()
    expect(page.locator("#chat-pair .message")).to_have_count(0)
    expect(box(page, "chat-box")).to_have_value("")


@pytest.fixture
def slow_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chat servers that take half a second per word."""
    monkeypatch.setenv("CRUCIBLE_FAKE_CHAT", json.dumps({"pace": 0.5}))


def test_stop_ends_both_answers_and_a_killed_server_is_started_again(
    slow_talk: None, page: Page, talking: Studio
) -> None:
    add_finished_run(talking)
    show(page, talking, "chat")
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    box(page, "chat-box").fill("one two three four five six seven eight nine ten")
    page.locator("#chat-send").click()
    expect(page.locator("#chat-base .bot").last).to_contain_text("heard")
    page.locator("#chat-stop").click()
    page.wait_for_timeout(2500)
    left = [page.locator(f"#chat-{side} .bot").last.inner_text() for side in ("base", "tuned")]
    page.wait_for_timeout(1500)
    assert [page.locator(f"#chat-{side} .bot").last.inner_text() for side in ("base", "tuned")] == left
    assert all("ten" not in text for text in left)
    (server,) = [child for child in psutil.Process(talking.process.pid).children() if "serve" in child.cmdline()]
    server.kill()
    box(page, "chat-box").fill("hello?")
    page.locator("#chat-send").click()
    expect(page.locator(".toast-body").first).to_contain_text("The chat server has ended")
    page.locator("#chat-status .btn").click()
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    page.locator(".chip-ask").first.click()
    expect(page.locator("#chat-base .bot").last).to_contain_text("heard Who are you?")


def test_chat_without_a_run_shows_the_way(page: Page, talking: Studio) -> None:
    show(page, talking, "chat")
    page.locator("#chat-nothing .btn", has_text="Go to Train").click()
    expect(page.locator("#nav [role=tab][data-tab-id=train]")).to_have_attribute("aria-selected", "true")


def test_merge_is_followed_and_never_overwrites(page: Page, studio: Studio) -> None:
    workspace = add_finished_run(studio)
    (workspace.exports / "taken").mkdir()
    show(page, studio, "export")
    box(page, "export-name").fill("taken")
    page.locator("#export-merge").click()
    expect(page.locator("#export-name")).to_contain_text("exists already")
    box(page, "export-name").fill("free")
    page.locator("#export-merge").click()
    expect(page.locator("#export-result .progress")).to_be_visible()
    page.reload()
    expect(page.locator("#export-result .progress")).to_be_visible()


def test_chinese_page_has_chinese_fields(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train", "?lang=zh-CN")
    page.locator("#train-advanced > button").click()
    expect(page.locator("#f-train-seed")).to_be_visible()
    labels = page.locator(".field [data-testid=block-info]").all_inner_texts()
    helps = page.locator(".field .info-text").all_inner_texts()
    assert len(helps) > 35
    assert [text for text in helps if not re.search("[\u4e00-\u9fff]", text)] == []
    assert len([text for text in labels if re.search("[\u4e00-\u9fff]", text)]) > 30
    box(page, "f-train-seed").fill("x")
    expect(page.locator("#f-train-seed .field-error")).to_have_text("必须是整数。")


def test_seven_pages_at_once_all_work(context: BrowserContext, page: Page, studio: Studio) -> None:
    pages = [page, *(context.new_page() for _ in range(6))]
    for each in pages:
        show(each, studio, "data")
    box(pages[-1], "data-name").fill("Nova")
    box(pages[-1], "data-author").fill("Me")
    expect(pages[-1].locator("#data-rows .talk").first).to_be_visible()
