"""Several processes in a real browser over a fake engine: the one that died is named, its log is read, text stays text;
a form that cannot be says so at its field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.config import RunConfig
from studio.schema import build
from studio.workspace import Workspace
from tests import fake_engine
from tests.fake_engine import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    started = Studio(tmp_path_factory.mktemp("parallel"))
    yield started
    started.end()


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1440, "height": 900}, "locale": "en-US"}


def _died(home: Path) -> str:
    """A run with two processes, the second of which died half way; what it says is hostile."""
    model, parallel = {"model_name_or_path": "crucible/ember"}, {"num_processes": 2, "deepspeed": "zero2"}
    data = {"name": "two", "model": model, "data": {"dataset": "d"}, "parallel": parallel, "method": "lora"}
    run = Workspace(home).create_run(build(RunConfig, data))
    fake_engine.launch(run, steps=8, pace=0, slow=0, bad_rank=1).wait()
    return run.id


def test_the_process_that_died_is_named_and_its_log_is_one_click_away(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.url}/?run={_died(studio.workspace)}#monitor")
    card = page.locator(".ranks-card")
    expect(card).to_contain_text("2 processes · ZeRO-2")
    expect(card.locator(".rank-trouble")).to_contain_text("Process 1 on node-a failed.")
    expect(card.locator(".rank-trouble p")).to_contain_text("onerror=window.pwned=1")
    expect(card.locator("tbody tr")).to_have_count(2)
    expect(card.locator("tbody tr").first).to_contain_text("ended")
    page.locator("#rank-1-trouble-log").click()
    expect(page.locator("#log-rank")).to_have_value("1")
    expect(page.locator(".log-lines")).to_contain_text("process 1: train step 4")
    page.locator("#log-rank").select_option("0")
    expect(page.locator(".log-lines")).to_contain_text("phase load")
    expect(page.locator(".log-lines")).not_to_contain_text("process 1:")


def test_what_cannot_be_is_said_at_its_field_while_typing(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.url}/#train")
    expect(page.locator("#train-review .card").first).to_be_visible()  # the form has been answered once
    page.locator("#train-parallel > button").click()
    field = page.locator("#f-parallel-num_processes")
    field.locator("input, textarea").fill("3")
    page.locator("#f-parallel-num_machines").locator("input, textarea").fill("2")
    expect(field.locator(".field-error")).to_contain_text("3 processes cannot be divided evenly over 2 machines")
