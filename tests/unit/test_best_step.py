"""best.json: what it names is chosen only if it is there and is the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.best_step import best_weights, read_best
from studio.diagnosis import Check, best_of, enough
from studio.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    for name, step in (("adapter", None), ("checkpoints/checkpoint-4", 4), ("checkpoints/checkpoint-8", None)):
        folder = found.path / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
        if step:
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    return found


def name(run: RunDir, path: str) -> None:
    run.best_file.write_text(json.dumps({"step": 4, "path": path, "why": "It did better."}), encoding="utf-8")


def test_a_whole_checkpoint_is_chosen(run: RunDir) -> None:
    name(run, "checkpoints/checkpoint-4")
    best = read_best(run)
    assert best is not None
    assert (best.step, best.checkpoint, best.why) == (4, "checkpoint-4", "It did better.")
    assert best_weights(run, whole=False) == run.checkpoints / "checkpoint-4"


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints/checkpoint-8",
        "checkpoints/checkpoint-9",
        "../../etc",
        "/etc",
        "model",
        "checkpoints/../adapter",
        "",
    ],
)
def test_what_is_torn_gone_or_foreign_is_not(run: RunDir, path: str) -> None:
    name(run, path)
    assert read_best(run) is None
    assert best_weights(run, whole=False) == run.adapter
    assert best_weights(run, whole=True) == run.model


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"step": "x", "path": 3}'])
def test_a_file_that_cannot_be_read_names_nothing(run: RunDir, text: str | None) -> None:
    if text is not None:
        run.best_file.write_text(text, encoding="utf-8")
    assert read_best(run) is None


def checks(*shares: tuple[float, float, float]) -> list[Check]:
    """One check every ten steps, the base model's first: (learned, leaked, retained)."""
    return [
        Check(step=10 * n, learned=a, leaked=b, retained=c, passed=a >= 0.9 and b <= 0.05 and c >= 0.95)
        for n, (a, b, c) in enumerate([(0.0, 0.0, 1.0), *shares])
    ]


def test_the_best_is_the_highest_score_and_the_latest_of_equal_ones() -> None:
    found = checks((0.5, 0, 1), (1, 0, 1), (1, 0, 1), (1, 0.5, 0.75))
    best = best_of(found)
    assert best is not None
    assert best.step == 30
    assert best_of(found[:1]) is None


@pytest.mark.parametrize(
    ("shares", "ends"),
    [
        ([(1, 0, 1), (1, 0, 1)], True),
        ([(1, 0, 1)], False),
        ([(1, 0, 1), (1, 0.25, 1), (1, 0, 1)], False),  # passed, not passed, passed
        ([(0.8, 0, 1), (0.7, 0, 1), (0.7, 0, 1), (0.6, 0, 1)], True),  # three in a row are worse than the best
        ([(0.8, 0, 1), (0.7, 0, 1), (0.7, 0, 1)], False),
        ([(0.8, 0, 1), (0.7, 0, 1), (0.8, 0, 1), (0.7, 0, 1)], False),  # an equal one counts anew
        ([(0, 0, 1), (0, 0, 0.9), (0, 0, 0.9), (0, 0, 0.9)], False),  # nothing learned yet: wait
        ([], False),
    ],
)
def test_when_training_on_is_of_no_use(shares: list[tuple[float, float, float]], ends: bool) -> None:
    assert enough(checks(*shares)) is ends
