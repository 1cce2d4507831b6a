"""Every sentence of a diagnosis and of the best step is there in Chinese too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio.config import RunConfig
from studio.diagnosis import Check, Diagnosis, Evidence, diagnose
from studio.schema import build, merge
from studio.ui.sentences import translated

REPORTS = Path(__file__).resolve().parents[1] / "unit" / "reports"
GOOD, BAD = {"ok": True}, {"ok": False}
KEPT, LOST = {"ok": True, "total": 90, "asked": 100}, {"ok": False, "total": 90, "asked": 100}
SANE = (Check(step=0, learned=0.0, leaked=0.0, retained=1.0), Check(step=20, learned=1.0, leaked=0.0, retained=1.0))
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"passed": True, "learned": GOOD}, {}),
    ({"passed": True, "perplexity": GOOD}, {}),
    ({"passed": None}, {}),
    ({"passed": False, "learned": BAD}, {"updates": 20}),
    ({"passed": False, "learned": BAD}, {"updates": 20, "distinct": 1}),
    ({"passed": False, "learned": BAD}, {"checks": (Check(step=0), Check(step=90, learned=0.5))}),
    ({"passed": False, "learned": BAD}, {"lowest_loss": 4.9, "last_loss": 4.9}),
    ({"passed": False, "learned": BAD, "forgot": LOST}, {"last_loss": 9.0}),
    ({"passed": False, "forgot": LOST}, {"distinct": 1}),
    ({"passed": False, "forgot": LOST}, {"distinct": 3}),
    ({"passed": False, "forgot": LOST}, {"distinct": 1, "checks": SANE}),
    ({"passed": False, "learned": GOOD, "forgot": LOST}, {"general": 0}),
    ({"passed": False, "learned": GOOD, "forgot": LOST}, {}),
    ({"passed": False, "learned": BAD, "forgot": LOST}, {}),
    ({"passed": False, "learned": BAD, "forgot": KEPT | {"total": 3}}, {"own_template": False}),
    ({"passed": False, "perplexity": BAD}, {}),
    ({"passed": False, "learned": BAD}, {}),
    ({"passed": False, "learned": BAD}, {"distinct": 401, "general": 400}),
]
OTHERS = [
    "There are no questions that tell what was learned, so no step is chosen as the best.",
    "Ended early after step 24 of 150: the checks got no better.",
    "Saved is step 24, which did best in the checks.",
    "No kept step before 150 did better.",
    "Step 40 did better in the checks than the last step.",
    "Step 40 had a lower validation loss than the last.",
    "verdict.stop_at_best needs the checks; switch verdict.check_while_training on",
    "verdict.stop_at_best and train.load_best_model_at_end choose the step in different ways; switch one off",
]


def found(verdict: dict[str, Any], seen: dict[str, Any]) -> Diagnosis:
    usual = {"updates": 150, "distinct": 400, "general": 200, "first_loss": 5.0, "lowest_loss": 0.2, "last_loss": 0.2}
    layer = {"model.model_name_or_path": "m", "data.dataset": "d", "data.validation_share": 0.1}
    return diagnose(build(RunConfig, merge(RunConfig, layer)), verdict, Evidence(**(usual | seen)))


def is_chinese(sentence: str) -> bool:
    said = translated(sentence, "zh-CN")
    return any("\u4e00" <= char <= "\u9fff" for char in said) and "{" not in said


@pytest.mark.parametrize(("verdict", "seen"), CASES)
def test_a_diagnosis_can_be_read_in_chinese(verdict: dict[str, Any], seen: dict[str, Any]) -> None:
    diagnosis = found(verdict, seen)
    assert is_chinese(diagnosis.message), diagnosis.message
    assert is_chinese(diagnosis.hint), diagnosis.hint
    numbers = [word for word in diagnosis.message.replace(":", " ").split() if word.isdigit()]
    assert all(number in translated(diagnosis.message, "zh-CN") for number in numbers)


def test_the_cases_are_all_different() -> None:
    assert len({found(*case).message + found(*case).hint for case in CASES}) == len(CASES)


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_recorded_diagnosis_can_be_read_in_chinese(path: Path) -> None:
    diagnosis = json.loads(path.read_text(encoding="utf-8"))["report"]["diagnosis"]
    assert is_chinese(diagnosis["message"])
    assert is_chinese(diagnosis["hint"])


@pytest.mark.parametrize("sentence", OTHERS)
def test_sentences_about_the_best_step_can_be_read_in_chinese(sentence: str) -> None:
    assert is_chinese(sentence)
