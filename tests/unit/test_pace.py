"""The time that is left, on recorded runs: what the stopwatch was told, in processor seconds, and when it was over.

A recorded run has steps of different width, the validation loss, samples, checkpoints, checks and the verdict.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from studio.engine.pace import Pace, Plan

PACES = Path(__file__).parent / "paces"
RECORDED = sorted(path.stem for path in PACES.glob("*.json"))


class Replay:
    """A recorded run once more; `told` has (step, seconds left as told, seconds left in truth)."""

    def __init__(self, name: str) -> None:
        data: dict[str, Any] = json.loads((PACES / f"{name}.json").read_text(encoding="utf-8"))
        self.now, self.calls, self.share = 0.0, data["calls"], data["quick_share"]
        self.pace = Pace(clock=lambda: self.now, plan=Plan(**data["plan"]))
        self.open: list[AbstractContextManager[None]] = []
        self.told: list[tuple[int, float, float]] = []

    def run(self) -> list[tuple[int, float, float]]:
        over = self.calls[-1][1]
        for what, moment, *more in self.calls:
            self.now = moment
            if what == "ask":
                left = self.pace.left(more[0])
                assert left is not None
                self.told.append((more[0], left, over - self.now))
            else:
                self.happen(what, *more)
        return self.told

    def happen(self, what: str, *more: Any) -> None:
        match what:
            case "begin":
                self.pace.begin_step()
            case "end":
                step, self.pace.places = more
                self.pace.end_step(step)
            case "pause":
                self.enter(self.pace.timing(more[0]))
            case "rehearse":
                self.enter(self.pace.rehearsing())
            case "paused" | "rehearsed":
                self.open.pop().__exit__(None, None, None)
                self.pace.quick_share = self.share

    def enter(self, pause: AbstractContextManager[None]) -> None:
        pause.__enter__()
        self.open.append(pause)


@pytest.mark.parametrize("name", RECORDED)
def test_after_20_steps_the_time_left_is_right_within_a_tenth(name: str) -> None:
    """Near the end, where a tenth is less than a step or two, within 2 % of the whole training."""
    told = Replay(name).run()
    assert len(told) >= 100
    whole = told[0][2]
    wrong = {step: left - truth for step, left, truth in told if step >= 20 and abs(left - truth) > truth / 10}
    assert all(abs(seconds) < 0.02 * whole + 0.2 for seconds in wrong.values()), wrong
    assert all(step > 0.7 * len(told) for step in wrong), wrong


def steady(plan: Plan, seconds: float = 2.0) -> tuple[Pace, list[float]]:
    now = [0.0]
    return Pace(clock=lambda: now[0], plan=plan), now


def step(pace: Pace, now: list[float], number: int, seconds: float, places: int = 100) -> None:
    pace.begin_step()
    pace.places += places
    now[0] += seconds
    pace.end_step(number)


def test_nothing_is_promised_before_the_first_step() -> None:
    assert steady(Plan(10))[0].left(0) is None


def test_steps_are_corrected_to_the_width_of_those_to_come() -> None:
    pace, now = steady(Plan(100, places=100))
    for number, places in enumerate([400, 300, 200, 300, 400], 1):  # the longest rows come first
        step(pace, now, number, 0.5 + places / 100, places)
    assert pace.left(5) == pytest.approx(95 * 1.5)


def test_the_first_step_is_forgotten_once_there_are_others() -> None:
    pace, now = steady(Plan(100, places=100))
    step(pace, now, 1, 30.0)
    assert pace.left(1) == pytest.approx(99 * 30)
    for number in range(2, 6):
        step(pace, now, number, 1.0)
    assert pace.left(5) == pytest.approx(95)


def test_pauses_to_come_are_counted() -> None:
    plan = Plan(100, places=100, validation_places=400, evaluate_every=10, sample_every=25, save_every=40)
    pace, now = steady(plan)
    pause = {"evaluate": 3.0, "sample": 5.0, "save": 7.0}
    with pace.rehearsing():
        now[0] += 11
    for kind, seconds in pause.items():
        with pace.timing(kind):  # type: ignore[arg-type]
            now[0] += seconds
    for number in range(1, 6):
        step(pace, now, number, 1.0)
    evaluations, saves = 10, 2 + 1  # a checkpoint comes at the end, too
    samples = len({25, 50, 75, 40, 80}) + 1
    expected = 95 + evaluations * 3 + samples * 5 + saves * 7 + 11
    assert pace.left(5) == pytest.approx(expected)


def test_an_evaluation_nobody_has_seen_is_guessed_from_the_steps() -> None:
    pace, now = steady(Plan(100, places=100, validation_places=400, evaluate_every=100))
    for number in range(1, 6):
        step(pace, now, number, 1.0)
    assert pace.left(5) == pytest.approx(95 + 4 * 0.5)


def test_what_lies_between_two_steps_counts_and_pauses_do_not_count_twice() -> None:
    pace, now = steady(Plan(100, places=100))
    for number in range(1, 11):
        step(pace, now, number, 1.0)
        with pace.timing("sample"):
            now[0] += 50
        now[0] += 0.25  # the next batch is made
    assert pace.read() == (10, pytest.approx(10.0), 1000)
    assert pace.read() == (0, 0.0, 0)
    without_samples = pace.left(10) - 50  # type: ignore[operator]  # those at the end
    assert without_samples == pytest.approx(90 * 1.25)


def test_a_resumed_run_learns_from_a_check_how_long_the_verdict_takes() -> None:
    pace, now = steady(Plan(100, places=100, sample_every=1000))
    with pace.rehearsing():
        now[0] += 0.01  # asked in an earlier start
    pace.quick_share = 0.1
    for number in range(1, 6):
        step(pace, now, number, 1.0)
        with pace.timing("check"):
            now[0] += 2.0
    assert pace.left(5) == pytest.approx(95 + 20)
