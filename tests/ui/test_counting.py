"""Counting beside the page: one process at a time, started once the form has settled; what it said when it failed."""

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from studio import runner
from studio.config import RunConfig
from studio.records.sources import NotCounted
from studio.schema import build
from studio.ui import counting as module
from studio.ui.counting import FORGOTTEN_S, RETRY_S, SETTLED_S, Counting, CountingFailed, Waiting
from studio.workspace import Workspace


class Process:
    """As much of a process as counting looks at."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self.returncode = -number


class World:
    """A clock that is turned by hand, and what was started."""

    def __init__(self) -> None:
        self.now = 100.0
        self.started: list[Process] = []
        self.found: Any = NotCounted(3, 10)

    def start(self, _workspace: Workspace, _config: RunConfig) -> Process:
        self.started.append(Process())
        return self.started[-1]

    def plan(self, _config: RunConfig, _workspace: Workspace) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(module, "plan_of", world.plan)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: world.now))
    monkeypatch.setattr(runner, "start_counting", world.start)
    return world


@pytest.fixture
def counting(workspace: Workspace) -> Counting:
    return Counting(workspace)


def config(dataset: str = "big", **fields: Any) -> RunConfig:
    return build(RunConfig, {"model_path": "crucible/ember", "dataset": dataset, **fields})


Ask = Callable[..., Any]


@pytest.fixture
def ask(world: World, counting: Counting) -> Ask:
    def make(seconds: float, **fields: Any) -> Any:
        world.now += seconds
        return counting.plan(config(**fields))

    return make


def test_what_is_counted_already_needs_no_process(world: World, ask: Ask) -> None:
    world.found = None
    assert ask(0) is None
    assert world.started == []


def test_a_process_starts_once_when_the_form_has_settled(world: World, ask: Ask) -> None:
    assert ask(0) == Waiting(3, 10)
    assert world.started == []
    for _ in range(5):
        ask(SETTLED_S + 0.1)
    assert len(world.started) == 1


def test_every_letter_typed_starts_nothing(world: World, ask: Ask) -> None:
    for end in range(8):
        ask(0.3, dataset="big.jsonl"[: end + 2])
    assert world.started == []


def test_settings_that_need_the_same_tokens_are_the_same_question(world: World, ask: Ask) -> None:
    ask(0)
    ask(SETTLED_S + 0.1)
    ask(1, max_length=99, num_train_epochs=7)
    ask(1, packing=True, validation_share=0.1)
    assert len(world.started) == 1
    assert world.started[0].signals == []


def test_a_forgotten_process_makes_place(world: World, ask: Ask) -> None:
    ask(0)
    ask(SETTLED_S + 0.1)
    (first,) = world.started
    for _ in range(round(FORGOTTEN_S) + 1):
        ask(1, dataset="other")
    assert first.signals == [signal.SIGINT]
    ask(1, dataset="other")
    assert len(world.started) == 2


def test_two_pages_do_not_stop_each_others_process(world: World, ask: Ask) -> None:
    for _ in range(20):
        ask(0.5)
        ask(0.5, dataset="other")
    assert [process.signals for process in world.started] == [[]]


def test_a_failure_is_said_for_a_while_then_tried_again(world: World, ask: Ask, workspace: Workspace) -> None:
    ask(0)
    ask(SETTLED_S + 0.1)
    runner.counting_log(workspace).parent.mkdir(exist_ok=True)
    runner.counting_log(workspace).write_text("noise\nerror: Row 3 is <b>odd</b>.\n", encoding="utf-8")
    world.started[0].returncode = 4
    for _ in range(3):
        with pytest.raises(CountingFailed, match="Row 3 is <b>odd</b>"):
            ask(1)
    assert len(world.started) == 1
    ask(1, dataset="other")  # what failed is another question
    ask(RETRY_S)
    ask(SETTLED_S + 0.1)
    assert len(world.started) == 2


def test_a_failure_without_a_word_is_still_a_sentence(world: World, ask: Ask) -> None:
    ask(0)
    ask(SETTLED_S + 0.1)
    world.started[0].returncode = -9
    with pytest.raises(CountingFailed, match=r"could not be counted\. Start"):
        ask(1)


def test_a_file_that_changed_meanwhile_is_counted_anew(world: World, ask: Ask) -> None:
    ask(0)
    ask(SETTLED_S + 0.1)
    world.started[0].returncode = 0
    assert ask(1) == Waiting(3, 10)
    assert len(world.started) == 2
