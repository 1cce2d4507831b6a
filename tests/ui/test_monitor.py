"""The monitor's handlers and the guard around all handlers: refusals are sentences, surprises are logged."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from building import context

from studio import run_queue, runner
from studio.config import RunConfig
from studio.events import LogEvent, RunState
from studio.rundir import RunDir
from studio.runner import StartRefused
from studio.schema import build
from studio.ui.context import Context, Refused, refuse, safe, sentence
from studio.ui.live_curves import Table
from studio.ui.tabs import monitor
from studio.ui.widgets.runlist import attach
from studio.workspace import Workspace

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"


@pytest.fixture
def ctx(workspace: Workspace) -> Context:
    return context(workspace)


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    data = {"name": "r", "model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}}
    return workspace.create_run(build(RunConfig, data))


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, run: RunDir) -> Iterator[RunDir]:
    """A live run that waits at step 2 until it is stopped."""
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 4, "hang_at": 2, "pace": 0, "slow": 0}))
    runner.start(run)
    yield run
    runner.stop(run)


def _request(**query: str) -> Any:
    return SimpleNamespace(query_params=query, cookies={})


@pytest.mark.parametrize("run_id", ["", "gone", "../..", "/etc", "<b>", None])
def test_actions_refuse_unknown_runs(ctx: Context, run_id: str | None) -> None:
    for action in (monitor.stop(ctx), monitor.resume(ctx)):
        with pytest.raises(Refused):
            action(run_id)  # type: ignore[arg-type]


def test_a_run_that_is_not_live_is_not_stopped(ctx: Context, run: RunDir) -> None:
    with pytest.raises(Refused, match="nothing to stop"):
        monitor.stop(ctx)(run.id)
    assert not run.stop_requested()


def test_a_queued_run_is_not_resumed(ctx: Context, run: RunDir) -> None:
    with pytest.raises(Refused, match="can be resumed"):
        monitor.resume(ctx)(run.id)


def test_stop_saves_and_resume_goes_on(ctx: Context, hanging: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor.stop(ctx)(hanging.id)
    assert hanging.stop_requested()
    assert runner.stop(hanging) is RunState.STOPPED
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 4, "pace": 0, "slow": 0}))
    monitor.resume(ctx)(hanging.id)
    while hanging.alive():
        pass
    assert hanging.state() is RunState.FINISHED


def test_a_second_resume_waits_for_the_live_run(
    ctx: Context, hanging: RunDir, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, duration: said.append(text))
    other = workspace.create_run(hanging.config())
    other.write_launch(hanging.read_launch().model_copy(update={"pid": 2**22 + 1}))  # type: ignore[union-attr]
    assert other.state().resumable
    monitor.resume(ctx)(other.id)
    try:
        assert other.state() is RunState.QUEUED
        assert said == ["“r” is queued at place 1. It starts when “r” has ended."]
    finally:
        run_queue.remove(other)
    assert other.state().resumable


def test_attach_prefers_the_address_then_the_live_then_the_remembered(workspace: Workspace, hanging: RunDir) -> None:
    other = workspace.create_run(hanging.config())
    find = attach(workspace)
    assert find("", _request(run=other.id)) == other.id
    assert find(other.id, _request()) == hanging.id
    assert find(other.id, _request(run="../../x")) == hanging.id
    runner.stop(hanging)
    assert find(hanging.id, _request()) == hanging.id
    assert find("gone", _request()) == other.id


def test_attach_finds_nothing_in_an_empty_workspace(workspace: Workspace) -> None:
    assert attach(workspace)("", _request()) == gr.skip()


def test_known_errors_are_their_own_sentence() -> None:
    assert sentence(StartRefused("say this")) == "say this"
    assert sentence(refuse("common.error.no_run")).startswith("No run is selected")


def test_unknown_errors_are_logged_under_the_mark_the_visitor_sees(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        said = sentence(ZeroDivisionError("secret detail"))
    mark = said.split()[-1].rstrip(".")
    assert "secret detail" not in said
    assert mark in caplog.text
    assert "secret detail" in caplog.text


def test_file_errors_name_the_reason() -> None:
    assert "No space left" in sentence(OSError(28, "No space left on device"))


def _plain() -> None:
    raise refuse("common.error.no_run")


async def _waiting() -> None:
    raise refuse("common.error.no_run")


def _steps() -> Iterator[int]:
    yield 1
    raise refuse("common.error.no_run")


async def _stream() -> AsyncIterator[int]:
    yield 1
    raise refuse("common.error.no_run")


async def _drain(stream: AsyncIterator[int]) -> list[int]:
    return [value async for value in stream]


@pytest.mark.parametrize("kind", ["plain", "waiting", "steps", "stream"])
def test_every_kind_of_handler_is_guarded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, duration: said.append(text))
    calls = {
        "plain": lambda: safe(_plain)(),
        "waiting": lambda: asyncio.run(safe(_waiting)()),
        "steps": lambda: list(safe(_steps)()),
        "stream": lambda: asyncio.run(_drain(safe(_stream)())),
    }
    with pytest.raises(gr.Error) as caught:
        calls[kind]()
    assert caught.value.visible is False
    assert said == [str(refuse("common.error.no_run"))]


def test_the_guard_keeps_the_handlers_signature() -> None:
    import inspect

    def handler(run_id: str, request: gr.Request) -> str:
        return run_id

    assert list(inspect.signature(safe(handler)).parameters) == ["run_id", "request"]


def test_a_point_keeps_the_second_of_its_time() -> None:
    table = Table(("loss", "t"))
    table.add(LogEvent(t=1795949555.1077604, step=60, loss=0.0674726814), 10)
    rows, _ = table.since(0, 20)
    assert (rows["loss"], rows["t"]) == ([0.06747268], [1795949555.1])
