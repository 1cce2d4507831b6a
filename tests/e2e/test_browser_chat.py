"""The chat room in a real browser: other models, long messages, and what a reload may not lose."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.config import RunConfig
from studio.schema import build
from studio.workspace import Workspace
from tests.fake_engine import Studio

LONG = "slowly " + " ".join("abcdefghijklmnopqrstuvwxyz" * 6)  # answered for minutes


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with the runs one and two."""
    started = Studio(tmp_path_factory.mktemp("talking"))
    workspace = Workspace(started.workspace)
    for name in ("one", "two"):
        run = workspace.create_run(build(RunConfig, {"name": name, "model_path": "crucible/ember", "dataset": "d"}))
        run.adapter.mkdir()
        (run.adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    yield started
    started.end()


def opened(page: Page, studio: Studio) -> None:
    """The chat room, its newest run on the right."""
    page.goto(f"{studio.url}/#chat")
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()


def choose(page: Page, name: str) -> None:
    """The run of that name on the right."""
    page.locator("#chat-right input").click()
    page.locator("#chat-right [role=option]", has_text=name).first.click()
    expect(page.locator("#chat-pair .head.right b")).to_have_text(name)


def ask(page: Page, text: str) -> None:
    """A question by the keyboard; it is not taken while the answer before is not quite over."""
    box = page.locator("#chat-box textarea")
    box.fill(text)
    while box.input_value() == text:
        box.press("Enter")
        page.wait_for_timeout(300)


def asked(page: Page) -> list[str]:
    """The questions that are shown."""
    return page.locator("#chat-pair .question").all_inner_texts()


def test_each_pair_keeps_its_conversation_until_it_is_cleared(page: Page, talking: Studio) -> None:
    opened(page, talking)
    exchanges = page.locator("#chat-pair .exchange")
    ask(page, "to two")
    expect(page.locator("#chat-pair .reply.right .prose")).to_contain_text("heard to two")
    choose(page, "one")
    expect(exchanges).to_have_count(0)
    page.locator("#chat-pair .hint .btn").click()  # the earlier question again
    expect(page.locator("#chat-pair .reply.right .prose")).to_contain_text("heard to two")
    ask(page, "to one")
    expect(page.locator("#chat-pair .reply.right .prose").last).to_contain_text("heard to one")
    choose(page, "two")
    expect(exchanges).to_have_count(1)
    ask(page, "and again")
    expect(page.locator("#chat-pair .reply.right .prose").last).to_contain_text("turn 2 heard and again")
    page.reload()
    expect(exchanges).to_have_count(2)
    choose(page, "one")
    expect(exchanges).to_have_count(2)
    assert asked(page) == ["to two", "to one"]
    page.locator("#chat-clear").click()
    page.locator("dialog button.bad").click()
    expect(exchanges).to_have_count(0)
    choose(page, "two")
    expect(exchanges).to_have_count(2)
    choose(page, "one")
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    expect(exchanges).to_have_count(0)


def test_another_model_ends_the_answers_of_the_one_before(page: Page, talking: Studio) -> None:
    opened(page, talking)
    ask(page, LONG)
    expect(page.locator("#chat-pair .reply.right .prose")).to_contain_text("heard")
    choose(page, "one")
    expect(page.locator("#chat-status .chip.finished")).to_be_visible()
    expect(page.locator("#chat-send")).to_be_visible()
    ask(page, "and you?")
    expect(page.locator("#chat-pair .reply.right .prose")).to_contain_text("heard and you?")
    assert asked(page) == ["and you?"]
    choose(page, "two")
    expect(page.locator("#chat-pair .reply.right .foot .num")).to_contain_text("stopped")
    assert asked(page) == [LONG]


def test_a_reload_keeps_the_question_that_was_being_answered(page: Page, talking: Studio) -> None:
    opened(page, talking)
    ask(page, LONG)
    expect(page.locator("#chat-pair .reply.right .prose")).to_contain_text("heard")
    page.reload()
    expect(page.locator("#chat-pair .reply.right .foot .num")).to_contain_text("stopped")
    page.locator("#q-retry-0").click()
    expect(page.locator("#chat-pair .reply.right .prose")).to_contain_text("heard slowly a")


def test_a_message_that_is_too_long_is_refused_whole(page: Page, talking: Studio) -> None:
    opened(page, talking)
    page.locator("#chat-box textarea").fill("long " * 200_000)
    page.locator("#chat-box textarea").press("Enter")
    expect(page.locator(".toast-body")).to_contain_text("longer than 100,000 characters")
    held: Any = page.locator("#chat-box textarea").evaluate("box => box.value.length")
    assert held > 900_000, "it is still there to be shortened"
    assert asked(page) == []
