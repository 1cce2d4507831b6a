"""The queue in the browser: what it says is true, what it does is checked on the server."""

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from building import built, context
from fastapi import FastAPI
from starlette.testclient import TestClient

from studio import processes, resources, run_queue, runner
from studio.chat_memory import ChatHolder
from studio.config import RunConfig
from studio.events import Launch, RunState, Status
from studio.hardware import Gpu
from studio.resources import Decision
from studio.run_queue import Entry, Settings
from studio.rundir import RunDir
from studio.schema import build
from studio.ui import queue_routes
from studio.ui.context import Context, Refused
from studio.ui.queue_view import why
from studio.ui.tabs import monitor, monitor_actions, starting
from studio.workspace import Workspace

CARDS = tuple(Gpu(index, f"Card {index}", 80_000_000_000, 79_000_000_000, "999") for index in range(2))


@pytest.fixture
def ctx(workspace: Workspace) -> Context:
    return context(workspace)


@pytest.fixture
def page(workspace: Workspace) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(queue_routes.build(workspace))
    with TestClient(app) as opened:
        yield opened


def config(name: str) -> RunConfig:
    return build(RunConfig, {"name": name, "model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}})


@pytest.fixture
def at_work(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose engine is this very process, so that it stays at work; nobody starts what waits behind it."""
    monkeypatch.setattr(runner, "look_after", lambda workspace: False)
    run = workspace.create_run(config("at work"))
    run.write_launch(Launch(argv=["engine"], **processes.record(os.getpid())))
    run.write_status(Status(state=RunState.RUNNING, step=3, max_steps=9))
    return run


@pytest.fixture
def waiting(workspace: Workspace, at_work: RunDir) -> list[RunDir]:
    """Three runs behind the one at work."""
    return [runner.submit(workspace, config(name)) for name in ("one", "two", "three")]


def press(ctx: Context, selected: str = "", **asked: Any) -> Any:
    event: Any = SimpleNamespace(_data=asked)
    return monitor_actions.change_queue(ctx)(selected, event)


def queue(page: TestClient, **cookies: str) -> Any:
    page.cookies.clear()
    for name, value in cookies.items():
        page.cookies.set(name, value)
    return page.get("/api/queue", params={"at": str(time.monotonic_ns())}).json()


def places(page: TestClient) -> list[str]:
    return [line["name"] for line in queue(page)["waiting"]]


def test_an_empty_queue_is_empty(page: TestClient) -> None:
    found = queue(page)
    assert (found["paused"], found["running"], found["waiting"]) == (False, [], [])


def test_the_queue_says_what_is_at_work_and_what_each_run_waits_for(page: TestClient, waiting: list[RunDir]) -> None:
    found = queue(page)
    assert [line["name"] for line in found["running"]] == ["at work"]
    assert [(line["place"], line["name"], line["why"]) for line in found["waiting"]] == [
        (1, "one", "It starts when “at work” has ended."),
        (2, "two", "It waits behind “one”."),
        (3, "three", "It waits behind “one”."),
    ]
    assert queue(page, studio_lang="zh-CN")["waiting"][0]["why"] == "“at work”结束后启动。"
    assert queue(page, studio_lang="xx")["waiting"][0]["why"] == "It starts when “at work” has ended."


def test_order_pause_and_removal(ctx: Context, page: TestClient, waiting: list[RunDir]) -> None:
    one, two, three = (run.id for run in waiting)
    press(ctx, do="move", run=three, place=1)
    assert places(page) == ["three", "one", "two"]
    press(ctx, do="pause", run=three)
    assert queue(page)["waiting"][0]["paused"]
    assert "paused" in queue(page)["waiting"][0]["why"]
    assert queue(page)["waiting"][1]["why"] == "It starts when “at work” has ended."  # a paused run blocks nobody
    press(ctx, do="unpause", run=three)
    press(ctx, do="first", run=two)
    assert places(page) == ["two", "three", "one"]
    press(ctx, do="remove", run=one)
    assert places(page) == ["two", "three"]
    assert one not in {run.id for run in ctx.workspace.list_runs()}


def test_the_page_leaves_a_run_that_was_removed(ctx: Context, at_work: RunDir, waiting: list[RunDir]) -> None:
    one, two, _three = waiting
    assert press(ctx, selected=two.id, do="remove", run=one.id) == gr.skip()
    assert press(ctx, selected=two.id, do="remove", run=two.id) == at_work.id


def test_the_whole_queue_is_held_and_goes_on(ctx: Context, page: TestClient, waiting: list[RunDir]) -> None:
    press(ctx, do="hold")
    found = queue(page)
    assert found["paused"]
    assert {line["why"] for line in found["waiting"]} == {"The queue is paused."}
    press(ctx, do="go")
    assert not queue(page)["paused"]
    press(ctx, do="many", max_running=2)
    assert queue(page)["max_running"] == 2


WRONG: list[dict[str, Any]] = [
    {},
    {"do": "many", "max_running": "9"},
    {"do": "many", "max_running": 0},
    {"do": "many"},
    {"do": "explode", "run": "one"},
    {"do": "move", "run": "one", "place": "1"},
    {"do": "move", "run": "one", "place": True},
    {"do": "cards", "run": "one", "gpus": [0], "gpu_count": 1},
    {"do": "cards", "run": "one", "gpus": None, "gpu_count": 1},
    {"do": "remove", "run": "../../etc"},
    {"do": "remove", "run": "at work"},
    {"do": "remove", "run": None},
    {"do": ["remove"], "run": "one"},
]


def test_what_cannot_be_asked_is_refused_and_changes_nothing(
    ctx: Context, page: TestClient, waiting: list[RunDir]
) -> None:
    ids = {run.config().name: run.id for run in ctx.workspace.list_runs()}
    before = queue(page)
    for wrong in WRONG:
        asked = wrong | {"run": ids.get(str(wrong.get("run")), wrong.get("run"))}
        with pytest.raises((Refused, runner.StartRefused)):
            press(ctx, **asked)
        assert queue(page) == before, wrong


def test_cards_are_chosen_while_a_run_waits(
    ctx: Context, page: TestClient, waiting: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "cards", lambda: CARDS)
    one = waiting[0]
    press(ctx, do="cards", run=one.id, gpus=[1, 1], gpu_count=7)
    entry = run_queue.read(one)
    assert entry is not None
    assert (entry.gpus, entry.gpu_count) == ([1], 1)
    press(ctx, do="cards", run=one.id, gpus=None, gpu_count=2)
    entry = run_queue.read(one)
    assert entry is not None
    assert (entry.gpus, entry.gpu_count) == (None, 2)
    for wrong in ({"gpus": [2]}, {"gpus": []}, {"gpus": ["0"]}, {"gpus": None, "gpu_count": 3}, {"gpus": "0"}):
        with pytest.raises(Refused, match="cards"):
            press(ctx, do="cards", run=one.id, **wrong)
    assert [card["name"] for card in queue(page)["gpus"]] == ["Card 0", "Card 1"]


def decision(reason: str, blocking: str = "x") -> Decision:
    return Decision("r", False, reason=reason, blocking=blocking)


@pytest.mark.parametrize(
    ("entry", "settings", "found", "said"),
    [
        (Entry(position=1), Settings(), Decision("r", True), "It starts in a moment."),
        (Entry(position=1), Settings(), None, "It starts in a moment."),
        (Entry(position=1, paused=True, problem="no disk"), Settings(), None, "It could not be started: no disk"),
        (Entry(position=1), Settings(), decision("waits for card 1, which run x has"), "for card 1, which “X” has."),
        (
            Entry(position=1),
            Settings(),
            decision("waits for memory: it needs up to 9.5 GB, and 2.1 GB are free"),
            "It waits for memory: it needs up to 9.5 GB, and 2.1 GB are free.",
        ),
        (Entry(position=1), Settings(), decision("it wants 4 cards, and there are 2", ""), "It wants 4 cards, and"),
        (Entry(position=1), Settings(), decision("something new"), "It starts when there is room for it."),
    ],
)
def test_every_reason_is_a_sentence(entry: Entry, settings: Settings, found: Decision | None, said: str) -> None:
    assert said in why(entry, settings, found, {"x": "X"}, "en")
    chinese = why(entry, settings, found, {"x": "X"}, "zh-CN")
    assert chinese != why(entry, settings, found, {"x": "X"}, "en")


def test_reasons_of_the_runner_are_known(waiting: list[RunDir], workspace: Workspace, page: TestClient) -> None:
    assert "It starts when there is room for it." not in {line["why"] for line in queue(page)["waiting"]}
    assert len(runner.decisions(workspace)) == 3


# ---- the question before a start -------------------------------------------------------------------------------------


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A chat server whose memory the run needs; what is released is noted."""
    released: list[str] = []
    held = ChatHolder(pid=1, create_time=0, host="here", port=1, base="models/Qwen-7B", memory_bytes=7_000_000_000)
    monkeypatch.setattr(runner, "needs_chat_memory", lambda workspace, config: held)
    monkeypatch.setattr(starting.chat_memory, "release", lambda workspace: released.append("chat"))
    monkeypatch.setattr(starting.train_preview, "check", lambda config, workspace: None)
    return released


def test_the_chats_memory_is_asked_for_before_anything_is_done(
    workspace: Workspace, at_work: RunDir, holder: list[str]
) -> None:
    asked = starting.start_or_ask(workspace, config("big"))
    assert isinstance(asked, dict)
    assert (asked["model"], asked["held"]) == ("Qwen-7B", 7_000_000_000)
    assert holder == []
    assert [run.id for run in workspace.list_runs()] == [at_work.id]
    made = starting.start_or_ask(workspace, config("big"), release=True)
    assert isinstance(made, RunDir)
    assert holder == ["chat"]
    assert made.state() is RunState.QUEUED


def test_nothing_is_asked_without_need(
    workspace: Workspace, at_work: RunDir, holder: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "needs_chat_memory", lambda workspace, config: None)
    made = starting.start_or_ask(workspace, config("small"), release=True)
    assert isinstance(made, RunDir)
    assert holder == []


def test_a_resume_asks_too(ctx: Context, at_work: RunDir, holder: list[str]) -> None:
    done = ctx.workspace.create_run(config("ended"))
    done.write_launch(Launch(argv=["engine"], **processes.record(2**22 + 1)))
    question = monitor.resume(ctx)(done.id)
    assert question["model"] == "Qwen-7B"
    assert done.state().resumable
    assert holder == []
    assert monitor.resume(ctx, release=True)(done.id) is None
    assert done.state() is RunState.QUEUED
    assert holder == ["chat"]


def test_what_is_wrong_is_said_before_anything_is_asked(
    workspace: Workspace, holder: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(config: RunConfig, workspace: Workspace) -> None:
        raise Refused("the model is missing")

    monkeypatch.setattr(starting.train_preview, "check", wrong)
    with pytest.raises(Refused, match="missing"):
        starting.start_or_ask(workspace, config("broken"), release=True)
    assert holder == []


def test_every_event_is_private_and_quiet(workspace: Workspace) -> None:
    ctx = context(workspace)

    def make() -> None:
        with ctx.demo:
            monitor_actions.build(ctx)

    built(make)
    events: list[Any] = list(ctx.demo.fns.values())
    assert events
    assert {event.api_visibility for event in events} == {"private"}
    assert {event.show_progress for event in events} <= {"hidden"}


def test_a_removed_resume_keeps_its_run(ctx: Context, waiting: list[RunDir]) -> None:
    done = ctx.workspace.create_run(config("ended"))
    done.write_launch(Launch(argv=["engine"], **processes.record(2**22 + 1)))
    runner.resume(done)
    assert done.state() is RunState.QUEUED
    press(ctx, do="remove", run=done.id)
    assert done.state().resumable
    assert done.id in {run.id for run in ctx.workspace.list_runs()}


def test_a_start_can_name_its_card(
    workspace: Workspace, at_work: RunDir, holder: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "cards", lambda: CARDS)
    monkeypatch.setattr(resources, "cards", lambda: CARDS)
    assert [value for _, value in starting.card_choices()] == ["any", "together-2", "0", "1"]
    assert starting.wanted_cards("any") is None
    assert starting.wanted_cards("1") == [1]
    for wrong in ("2", "-1", "0,1", ["0"], "x"):
        with pytest.raises(Refused, match="cards"):
            starting.wanted_cards(wrong)
    run_queue.pause_all(workspace)
    made = starting.start_or_ask(workspace, config("picky"), release=True, gpus=[1])
    assert isinstance(made, RunDir)
    entry = run_queue.read(made)
    assert entry is not None
    assert entry.gpus == [1]
