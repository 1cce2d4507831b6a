"""The coach on curves of real runs (`curves/`: the built-in model and a tiny one), and on bent ones."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from studio.coach import Note, notes
from studio.config import RunConfig
from studio.events import EvalEvent, LogEvent, VerdictEvent
from studio.schema import build, merge

CURVES = Path(__file__).parent / "curves"
Events = tuple[list[LogEvent], list[EvalEvent], list[VerdictEvent]]


def recorded(name: str) -> Events:
    data = json.loads((CURVES / f"{name}.json").read_text(encoding="utf-8"))
    points = [
        LogEvent(step=step, loss=loss, learning_rate=rate, grad_norm=norm, epoch=epoch)
        for step, loss, rate, norm, epoch in data["points"]
    ]
    evals = [EvalEvent(step=step, eval_loss=loss) for step, loss in data["evals"]]
    verdicts = [VerdictEvent(step=step, learned=a, leaked=b, retained=c) for step, a, b, c in data["verdicts"]]
    return points, evals, verdicts


def kinds(found: list[Note]) -> list[tuple[str, str]]:
    return [(note.kind, note.level) for note in found]


# ---- real runs -------------------------------------------------------------------------------------------------------


def test_a_good_run_is_told_to_change_nothing() -> None:
    found = notes(*recorded("good"), finished=True)
    assert {note.kind for note in found} <= {"spike"}  # three batches of rare rows
    assert all(note.level == "info" and not note.changes for note in found)


@pytest.mark.parametrize("seen", [12, 20, 40, 80, 120, 149])
def test_nor_is_it_while_it_trains(seen: int) -> None:
    points, evals, verdicts = recorded("good")
    found = notes(points[:seen], evals, [event for event in verdicts if event.step <= seen])
    assert all(note.level == "info" and not note.changes for note in found), found


def test_a_parrot_has_memorised() -> None:
    points, _, _ = recorded("parrot")
    checks = [VerdictEvent(step=0, learned=0.0, leaked=0.0, retained=1.0)]
    checks += [VerdictEvent(step=200, learned=0.3, leaked=0.9, retained=0.1)]
    (found,) = notes(points, [], checks, finished=True)
    assert (found.kind, found.level) == ("memorised", "warning")
    assert found.step < 30
    assert "only 30% of the questions put another way" in found.message


def test_without_anything_asked_memorising_is_only_a_remark_and_only_at_the_end() -> None:
    points, _, _ = recorded("parrot")
    assert notes(points) == []
    assert kinds(notes(points, finished=True)) == [("memorised", "info")]


def test_a_check_ahead_of_the_training_says_nothing_of_what_was_learned_since() -> None:
    points, _, _ = recorded("parrot")
    before = [VerdictEvent(step=0, learned=0.17, leaked=0.0, retained=1.0)]
    assert notes(points[:120], [], before, finished=True) == []


def test_a_loss_that_climbs_from_the_first_step_is_no_curve_without_remarks() -> None:
    losses = [3.1, 1.2, 23.4, 58.4, 55.5, 93.7, 85.0, 117.3, 109.2, 93.6, 113.4, 137.9, 136.0, 180.5, 192.7, 174.5]
    losses += [149.4, 152.8, 142.0, 119.8]
    points = [LogEvent(step=step, loss=loss, learning_rate=0.9) for step, loss in enumerate(losses, 1)]
    (found,) = notes(points, finished=True)
    assert (found.kind, found.level, found.step) == ("divergence", "error", 1)


def test_a_rising_validation_loss_names_the_best_step() -> None:
    points, evals, _ = recorded("overfitted")
    (found,) = notes(points, evals)
    assert (found.kind, found.level, found.step) == ("eval_rising", "warning", 140)
    assert found.changes == {"train.load_best_model_at_end": True, "early_stopping.early_stopping_patience": 3}
    until = [event for event in evals if event.step <= 140]
    assert notes(points[:140], until) == []


def test_a_run_that_blew_up_is_stopped_at_the_step_and_was_seen_to_diverge_before() -> None:
    points, _, _ = recorded("blown_up")
    assert kinds(notes(points, finished=True)) == [("divergence", "error"), ("nan", "error")]
    assert notes(points)[-1].step == points[-1].step
    assert notes(points)[-1].changes == {"train.learning_rate": 0.3}
    assert kinds(notes(points[:15])) == [("divergence", "error")]


def test_a_jump_in_the_first_steps_asks_for_a_warm_up() -> None:
    found = notes(*recorded("jumped"), finished=True)
    assert kinds(found) == [("warmup_short", "warning"), ("plateau", "info")]
    assert found[0].step == 4
    assert found[0].changes == {"train.warmup_steps": 0.1}


def test_a_loss_that_never_falls_asks_for_larger_steps() -> None:
    (found,) = notes(*recorded("too_slow"), finished=True)
    assert (found.kind, found.level) == ("plateau", "info")
    assert "hardly fallen" in found.message
    assert found.changes == {"train.learning_rate": 3e-07}


# ---- bent curves -----------------------------------------------------------------------------------------------------


def falling(count: int = 200, rate: float = 1e-3, noise: float = 0.02, seed: int = 1) -> list[LogEvent]:
    """An ordinary curve: a warm-up of a tenth, then cosine; the loss falls from 3 to 1 with some noise."""
    rng = random.Random(seed)
    points = []
    for step in range(1, count + 1):
        part = step / count
        now = rate * min(part / 0.1, 0.5 + 0.5 * math.cos(math.pi * max(part - 0.1, 0) / 0.9))
        loss = 1 + 2 * math.exp(-5 * part) + rng.gauss(0, noise)
        points.append(LogEvent(step=step, loss=loss, learning_rate=now, grad_norm=1.0, epoch=part * 3))
    return points


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.005, 0.05, 0.15])
def test_an_ordinary_curve_is_left_alone(seed: int, noise: float) -> None:
    points = falling(noise=noise, seed=seed)
    for seen in (20, 60, 120, 200):
        assert notes(points[:seen]) == [], seen
    assert notes(points, finished=True) == []


def test_one_odd_batch_is_no_reason_to_change_anything() -> None:
    points = falling()
    points[120].loss = 6.0
    (found,) = notes(points)
    assert (found.kind, found.level, found.step, found.changes) == ("spike", "info", 121, {})
    assert "jumped to 6 at step 121" in found.message


def test_a_jump_that_takes_its_time_to_come_back_asks_for_smaller_steps() -> None:
    points = falling()
    for place in range(120, 132):
        points[place].loss = 6.0 - 0.35 * (place - 120)
    (found,) = notes(points)
    assert (found.kind, found.level, found.step) == ("spike", "warning", 121)
    assert found.changes == {"train.learning_rate": 5e-4}


def test_a_loss_that_climbs_and_stays_up_diverges() -> None:
    points = falling()[:150]
    for place in range(100, 150):
        points[place].loss = 1.2 + 0.03 * (place - 100)
    (found,) = notes(points)
    assert (found.kind, found.level) == ("divergence", "error")
    assert 80 <= found.step <= 110
    assert found.changes == {"train.learning_rate": 3.3e-4}
    assert found.hint.startswith("Stop")
    assert notes(points, finished=True)[0].hint.startswith("Try again")


def test_a_plateau_under_a_high_learning_rate() -> None:
    points = falling(400)
    for place, point in enumerate(points):
        point.learning_rate = 1e-3
        point.loss = max(3 - place / 40, 1.5) + 0.01 * math.sin(place)
    (found,) = notes(points)
    assert (found.kind, found.changes) == ("plateau", {})
    assert 55 <= found.step <= 80


def test_the_end_of_a_schedule_is_no_plateau() -> None:
    points = falling(400)
    for place, point in enumerate(points):
        point.loss = max(3 - place / 80, 1.0) + 0.01 * math.sin(place)
    assert notes(points, finished=True) == []


def test_a_gradient_that_is_no_number() -> None:
    points = falling()[:30]
    points[-1].grad_norm = None
    (found,) = notes(points)
    assert (found.kind, found.step) == ("nan", 30)
    assert "gradient" in found.message
    for point in points:
        point.grad_norm = None  # not measured at all
    assert notes(points) == []


@pytest.mark.parametrize(
    ("evals", "rising"),
    [
        ([2.0, 1.8, 1.7, 1.9, 2.0], True),
        ([2.0, 1.8, 1.7, 1.701, 1.702], False),
        ([2.0, 1.8, 1.7, 1.9], False),
        ([2.0, 1.8, 1.7, 2.0, 1.65], False),
    ],
)
def test_two_worse_evaluations_in_a_row_are_needed(evals: list[float], rising: bool) -> None:
    measured = [EvalEvent(step=40 * number, eval_loss=loss) for number, loss in enumerate(evals, 1)]
    assert [note.kind for note in notes(falling(), measured)] == ["eval_rising"] * rising


def test_after_a_resume_the_later_of_two_points_counts() -> None:
    points = falling()
    doubled = points[:100] + [point.model_copy(update={"loss": 9.0}) for point in points[100:120]] + points[100:]
    assert notes(doubled) == notes(points) == []


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_short_curve_is_not_judged(count: int) -> None:
    assert notes(falling()[:count], finished=True) == []


def test_a_long_curve_costs_little_more_than_its_points() -> None:
    """No rule looks at every point for every point: ten times the points cost about ten times the work."""
    assert notes(falling(50_000)) == []


@pytest.mark.parametrize("name", ["parrot", "overfitted", "blown_up", "jumped", "too_slow"])
def test_every_change_is_one_a_run_can_have(name: str) -> None:
    for note in notes(*recorded(name), finished=True):
        for path, value in note.changes.items():
            layer = {"model.model_name_or_path": "crucible/ember", "data.dataset": "x", "data.validation_share": 0.1}
            build(RunConfig, merge(RunConfig, layer | {path: value}))
