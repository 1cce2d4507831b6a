"""The first page's handlers: the form is checked field by field, one button prepares and starts a run."""

import json
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from building import built, context

from studio import run_queue, runner
from studio.events import RunState
from studio.records import DatasetStore
from studio.ui.tabs import home
from studio.workspace import Workspace

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"


@pytest.mark.parametrize(
    "name", ["Nova", "诺娃", "R2-D2", "Zoë 🤖", 'O\'Neil "Q"', "x" * 80, "  Nova  ", "<b>Nova</b>"]
)
def test_good_names(name: str) -> None:
    assert home.problems(name, "", ["en"]) == {}


@pytest.mark.parametrize("name", ["", "   ", "\u200b", "two\nlines", "x" * 81, "{{name}}", "a\x00b"])
def test_bad_names_are_said_at_the_name(name: str) -> None:
    found = home.problems(name, "me", ["en"])
    assert list(found) == ["name"]
    assert found["name"].endswith(".")


def test_each_field_has_its_own_problem() -> None:
    assert set(home.problems("", "{{author}}", [])) == {"name", "author", "languages"}


def test_the_validator_answers_once_per_field() -> None:
    answers = home.check("", "Class 3B", ["en"])
    assert [answer["is_valid"] for answer in answers] == [False, True, True]
    assert answers[0]["message"]


def test_empty_author_becomes_the_default() -> None:
    assert home.values_of("Nova", "  ", ["en"])["author"] == home.DEFAULT_AUTHOR


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 5, "hang_at": 3, "pace": 0, "slow": 0}))


def test_one_button_makes_the_dataset_and_starts_the_run(workspace: Workspace, fake_engine: None) -> None:
    teach = home.teach(context(workspace))
    run = workspace.run(teach("Nova 诺娃", "", ["en", "zh"]))
    try:
        info = DatasetStore(workspace.datasets).list()[0]
        assert info.identity is not None
        assert info.identity.name == "Nova 诺娃"
        assert run.state().live
        other = workspace.run(teach("Other", "", ["en"]))
        assert other.state() is RunState.QUEUED
        run_queue.remove(other)
    finally:
        assert runner.stop(run) is RunState.STOPPED


def test_every_event_of_the_tab_is_private_and_quiet(workspace: Workspace) -> None:
    ctx = context(workspace)

    def make() -> None:
        with ctx.demo, ctx.tabs, gr.Tab("home"):
            home.build(ctx)

    built(make)
    events: list[Any] = list(ctx.demo.fns.values())
    assert events
    assert {event.api_visibility for event in events} == {"private"}
    assert {event.show_progress for event in events} <= {"hidden"}
