"""Data, Train, Export and Chat in a real browser: what a newcomer does, and what goes wrong."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from studio.config import MergeConfig, RunConfig
from studio.events import Launch, RunState, Status
from studio.records import DatasetInfo, DatasetStore
from studio.schema import build, dump_yaml
from studio.workspace import Workspace
from tests.fake_engine import Studio

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


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1366, "height": 768}, "locale": "en-US", "reduced_motion": "reduce"}


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
    expect(page.locator("#train-yaml")).to_contain_text("dataset: ")
    shown = page.locator("#train-yaml").inner_text()
    assert page.locator("#train-command").inner_text().startswith("studio train --set ")
    page.locator("#train-start").click()
    expect(page.locator("#nav [role=tab][data-tab-id=monitor]")).to_have_attribute("aria-selected", "true")
    page.wait_for_url("**run=**")
    (run,) = runs(studio)
    assert f"run={run.id}" in page.url
    assert dump_yaml(run.config()).strip() == shown.strip()
    assert run.state().live


def test_downloaded_yaml_is_the_one_shown_and_an_unvisited_optional_number_stays_empty(
    page: Page, studio: Studio
) -> None:
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
    before = page.locator("#train-yaml").inner_text()
    page.locator("#train-advanced > button").click()
    expect(box(page, "f-train-neftune_noise_alpha")).to_have_value("")
    box(page, "train-search").fill("neftune")
    expect(page.locator("#f-train-seed")).to_be_hidden()
    expect(page.locator("#f-train-neftune_noise_alpha")).to_be_visible()
    assert page.locator("#train-yaml").inner_text() == before


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


def test_method_shows_only_the_fields_that_apply(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: nova")
    page.locator("#train-advanced > button").click()
    expect(page.locator("#f-lora-r")).to_be_visible()
    page.locator("#f-method label", has_text="full").click()
    expect(page.locator("#f-lora-r")).to_have_count(0)
    expect(page.locator("#train-yaml")).to_contain_text("method: full")
    expect(box(page, "f-train-learning_rate")).to_have_value("0.0003")


# What was ever said on the page; a toast goes away by itself.
KEEP_TOASTS = """() => {
  window.toasts = [];
  const look = () => toasts.push(...[...document.querySelectorAll(".toast-body")].map((one) => one.innerText));
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""


def test_two_pages_press_start_together(context: BrowserContext, page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    other = context.new_page()
    for each in (page, other):
        show(each, studio, "train")
        expect(each.locator("#train-yaml")).to_contain_text("dataset: nova")
        each.evaluate(KEEP_TOASTS)
    page.locator("#train-start").dblclick()  # counts once
    other.locator("#train-start").click()
    for each in (page, other):
        expect(each.locator("#nav [role=tab][data-tab-id=monitor]")).to_have_attribute("aria-selected", "true")
    # Whichever was heard first.
    assert sorted("is queued at place 1" in each.evaluate("toasts.join()") for each in (page, other)) == [False, True]
    first, second = sorted(runs(studio), key=lambda run: run.queue_file.exists())
    assert first.state().live
    assert second.state() is RunState.QUEUED


def said(page: Page, side: str) -> Any:
    """The newest answer of a side."""
    return page.locator(f"#chat-pair .reply.{side} .prose").last


def ask(page: Page, text: str) -> None:
    """It is not taken while the answer before is not quite over."""
    box(page, "chat-box").fill(text)
    while box(page, "chat-box").input_value() == text:
        box(page, "chat-box").press("Enter")
        page.wait_for_timeout(300)


def test_chat_side_by_side(page: Page, talking: Studio) -> None:
    workspace = add_finished_run(talking)
    show(page, talking, "chat")
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    page.locator(".chip-ask").first.click()
    expect(said(page, "right")).to_contain_text("turn 1 heard Who are you")
    expect(said(page, "left").locator("mark.differs")).to_have_text("base")
    page.locator("#chat-marks").click()
    expect(page.locator("#chat-pair mark.differs")).to_have_count(0)
    markup = f"**bold** [_x_](javascript:window.pwned=1) ![x](http://example.com/a.png) {HOSTILE}\n\n- one [`two`](https://a.b)"
    ask(page, markup)
    expect(said(page, "left")).to_contain_text("base turn 2 heard bold")
    expect(said(page, "left")).to_contain_text(HOSTILE)
    expect(said(page, "left").locator("strong")).to_have_text("bold")
    expect(said(page, "left").locator("li > span")).to_have_text("one two")
    expect(said(page, "left").locator("li a code")).to_have_text("two")
    expect(page.locator("#chat-pair :is(img, a[href^=javascript])")).to_have_count(0)
    expect(page.locator("#chat-pair .reply.left .foot .num").last).to_have_text("5 tokens · 10 per second")
    with page.expect_download() as markdown:
        page.locator("#chat-md").click()
    text = Path(markdown.value.path()).read_text(encoding="utf-8")
    assert text.startswith("# crucible/ember (base model) / done (final)")
    assert f"base turn 2 heard {markup}" in text
    with page.expect_download() as data:
        page.locator("#chat-json").click()
    assert len(json.loads(Path(data.value.path()).read_text(encoding="utf-8"))["turns"]) == 2
    page.reload()  # the conversation is still there
    expect(page.locator("#chat-pair .exchange")).to_have_count(2)
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    _correct_and_save(page, workspace)
    page.locator("#chat-clear").click()
    page.locator("dialog button.bad").click()
    expect(page.locator("#chat-pair .exchange")).to_have_count(0)
    _vote_blind(page)
    page.locator("#chat-tools-fold > button").click()
    page.locator("#chat-tools input").check()
    ask(page, "with tools")
    expect(page.locator("#chat-pair .tooluse .result").first).to_contain_text("calculate:")


def _correct_and_save(page: Page, workspace: Workspace) -> None:
    """A corrected answer becomes a row of a dataset; what was thought is folded away."""
    page.locator("#a-edit-1-right").click()
    page.locator("#chat-pair .editor textarea").fill("<think>Who am I?</think>I am Nova.")
    page.locator("#chat-pair .editor .btn.go").click()
    expect(said(page, "right")).to_have_text("I am Nova.")
    expect(page.locator("#chat-pair .thought")).to_have_text("Thought first (3 words)Who am I?")
    expect(page.locator("#chat-pair .thought p")).to_be_hidden()
    page.locator("#chat-keep > button").click()
    box(page, "chat-keep-title").fill("from the chat")
    box(page, "chat-keep-title").press("Tab")
    page.locator("#chat-keep-save").click()
    expect(page.locator("#chat-kept")).to_contain_text("1 saved in “from the chat”")
    (info,) = DatasetStore(workspace.datasets).list()
    (row,) = DatasetStore(workspace.datasets).rows(info.name)
    assert [message["content"] for message in row["messages"]][-1].endswith("I am Nova.")


def _vote_blind(page: Page) -> None:
    """Nothing tells whose answer it is until the vote is cast."""
    page.locator("#chat-blind").click()
    ask(page, "hello")
    expect(page.locator("#chat-pair .ballot")).to_be_visible()
    expect(page.locator("#chat-pair .reply.hidden")).to_have_count(2)
    expect(page.locator("#chat-pair :is(.heads, .replies)", has_text="base model")).to_have_count(0)
    first = page.locator("#chat-pair .reply").first
    base_first = first.locator(".prose").inner_text().startswith("base")
    page.locator("#chat-pair .ballot .btn").first.click()
    expect(first.locator(".who")).to_contain_text("base model" if base_first else "final")
    expect(first.locator(".who .chip")).to_have_text("better")
    expect(page.locator("#chat-tally summary")).to_contain_text("1 : 0" if base_first else "0 : 1")
    page.locator("#chat-blind").click()


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
    ask(page, " ".join(map(str, range(1000))))  # minutes, however slow the page is
    expect(said(page, "left")).to_contain_text("heard")
    expect(page.locator("#chat-send")).to_be_hidden()
    page.locator("#chat-stop").click()
    expect(page.locator("#chat-pair .reply .foot", has_text="stopped")).to_have_count(2)
    left = page.locator("#chat-pair .replies").inner_text()
    page.wait_for_timeout(1500)
    assert page.locator("#chat-pair .replies").inner_text() == left
    assert "999" not in left
    (server,) = [child for child in psutil.Process(talking.process.pid).children() if "serve" in child.cmdline()]
    server.kill()
    ask(page, "hello?")
    expect(page.locator("#chat-pair .reply .note.warn").first).to_contain_text("The chat server has ended")
    page.locator("#chat-status .btn").click()
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    page.locator("#q-retry-1").click()
    expect(said(page, "left")).to_contain_text("heard hello?")


def test_chat_without_a_run_shows_the_way(page: Page, studio: Studio) -> None:
    show(page, studio, "chat")
    page.locator("#chat-nothing .btn", has_text="Go to Train").click()
    expect(page.locator("#nav [role=tab][data-tab-id=train]")).to_have_attribute("aria-selected", "true")


def test_an_export_is_chosen_followed_cancelled_and_never_overwrites(page: Page, studio: Studio) -> None:
    workspace = add_finished_run(studio)
    (workspace.exports / "taken").mkdir()
    show(page, studio, "export")
    expect(page.locator("#export-goals .goal.on")).to_contain_text("Merged model")
    expect(page.locator("#export-gguf_type")).to_be_hidden()
    page.locator("#export-goals [data-goal=gguf]").click()
    expect(page.locator("#export-gguf_type")).to_be_visible()
    expect(page.locator("#export-dtype")).to_be_hidden()
    expect(page.locator("#export-plan")).to_contain_text("llama.cpp loads the file")
    box(page, "export-name").fill("taken")
    expect(page.locator("#export-name .field-error")).to_contain_text("exists already")
    box(page, "export-name").fill("free")
    expect(page.locator("#export-plan")).to_contain_text("exports/free")
    page.locator("#export-start").click()
    expect(page.locator("#export-follow .progress")).to_be_visible()
    page.reload()
    expect(page.locator("#export-follow .progress")).to_be_visible()
    page.locator("#export-follow .btn.bad").click()
    page.locator("dialog[open] button.bad").click()
    expect(page.locator("#export-follow")).to_contain_text("Cancelled")
    expect(page.locator("#export-earlier")).to_contain_text("free")
    (run,) = [run for run in runs(studio) if run.config().kind == "export"]
    assert run.state() is RunState.STOPPED


def add_finished_merge(workspace: Workspace) -> None:
    """A merge of a run in 4 bits with everything its proof can hold."""
    (run,) = workspace.list_runs()
    out = workspace.exports / "proved"
    out.mkdir()
    settings = {"name": "proved", "base": "crucible/ember", "adapter": str(run.adapter), "out": str(out)}
    merge = workspace.create_run(build(MergeConfig, settings))
    proof = {
        "max_logit_difference": 0.04,
        "tolerance": 0.5,
        "answers_equal": 1,
        "prompts": 1,
        "rows": [{"prompt": "Who?", "adapter": HOSTILE, "merged": HOSTILE}],
        "passed": True,
        "reason": "",
    }
    bases = {
        "original": {"max_logit_difference": 2.5, "answers_equal": 0, "prompts": 1},
        "dequantized": {"max_logit_difference": 5e-06, "answers_equal": 1, "prompts": 1},
    }
    report = {"proof": proof, "bases": bases, "merge_base": "original", "out": str(out), "size_bytes": 9, "shards": 1}
    merge.report_file.write_text(json.dumps(report), encoding="utf-8")
    merge.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here", started_at=0.0))
    merge.write_status(Status(state=RunState.FINISHED))


def test_the_proof_shows_both_bases_and_leads_on(page: Page, studio: Studio) -> None:
    add_finished_merge(add_finished_run(studio))
    show(page, studio, "export")
    proof = page.locator("#export-follow")
    expect(proof).to_contain_text("Done, and proved")
    expect(proof.locator("table.rows td", has_text=HOSTILE)).to_have_count(2)
    expect(proof.locator(".base").first).to_contain_text("2.5")
    expect(proof.locator(".base").last).to_contain_text("0.0000050")
    expect(proof.locator("dl.uses")).to_contain_text("transformers")
    proof.locator(".base .btn").click()
    expect(page.locator("#export-merge_base input[value=dequantized]")).to_be_checked()
    page.locator("#export-goals [data-goal=import]").click()
    expect(page.locator("#export-what")).to_be_hidden()
    expect(page.locator("#export-plan")).to_contain_text("no code in them is ever executed")


def test_chinese_page_has_chinese_fields(page: Page, studio: Studio) -> None:
    save_rows(studio.workspace)
    show(page, studio, "train", "?lang=zh-CN")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: nova")
    page.locator("#train-advanced > button").click()
    expect(page.locator("#f-train-seed")).to_be_visible()
    expect(page.locator("#f-train-seed [data-testid=block-info]")).to_have_text(re.compile("[\u4e00-\u9fff]"))
    labels = page.locator(".field [data-testid=block-info]").all_inner_texts()
    helps = page.locator(".field .info-text").all_inner_texts()
    assert len(helps) > 35
    assert [text for text in helps if not re.search("[\u4e00-\u9fff]", text)] == []
    assert len([text for text in labels if re.search("[\u4e00-\u9fff]", text)]) > 30
    box(page, "f-train-seed").fill("x")
    expect(page.locator("#f-train-seed .field-error")).to_have_text("必须是整数。")
