"""What is said of a run is true of it: on recorded runs of the built-in model (reports/make.py makes them again), and
rule by rule.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio.config import RunConfig
from studio.diagnosis import Check, Diagnosis, Evidence, diagnose
from studio.schema import build, merge

REPORTS = Path(__file__).resolve().parent / "reports"
RECORDED = {
    "one_row_few_updates": "too_few_updates",
    "one_row_many_updates": "parrot",
    "builder_default": "good",
    "no_general_rows": "forgetting",
    "learning_rate_high": "learning_rate_high",
    "learning_rate_low": "learning_rate_low",
    "other_template": "template_mismatch",
}
GOOD, BAD = {"ok": True, "share": 1.0}, {"ok": False, "share": 0.1}
KEPT = {"ok": True, "retained": 1.0, "kept": 90, "total": 90, "asked": 100}
LOST = {"ok": False, "retained": 0.5, "kept": 45, "total": 90, "asked": 100}


def config_of(**changes: Any) -> RunConfig:
    layer = {"model.model_name_or_path": "crucible/ember", "data.dataset": "rows"}
    return build(RunConfig, merge(RunConfig, layer | changes))


def verdict_of(learned: Any = GOOD, leaked: Any = GOOD, forgot: Any = KEPT, perplexity: Any = None) -> dict[str, Any]:
    parts = [part for part in (learned or perplexity, leaked, forgot) if part]
    passed = all(part["ok"] for part in parts) if parts else None
    return {"learned": learned, "leaked": leaked, "forgot": forgot, "perplexity": perplexity, "passed": passed}


def evidence(**changes: Any) -> Evidence:
    """150 updates on 400 rows, half of them general, whose loss fell from 5 to 0.2."""
    usual = {"updates": 150, "distinct": 400, "general": 200, "first_loss": 5.0, "lowest_loss": 0.2, "last_loss": 0.2}
    return Evidence(**(usual | changes))


def recorded(name: str) -> tuple[RunConfig, dict[str, Any]]:
    found = json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8"))
    return RunConfig.model_validate(found["config"]), found["report"]


def applied(config: RunConfig, found: Diagnosis) -> RunConfig:
    """The clone with the change: it must be a valid configuration that differs."""
    changed = build(RunConfig, merge(RunConfig, config.model_dump(), found.changes))
    assert changed != config
    return changed


@pytest.mark.parametrize(("name", "kind"), RECORDED.items())
def test_recorded_runs_are_called_what_they_are(name: str, kind: str) -> None:
    config, report = recorded(name)
    found = diagnose(config, report["verdict"], Evidence.model_validate(report["evidence"]))
    assert found.kind == kind
    assert found.model_dump() == report["diagnosis"]  # made by the same rules: else record again
    if found.changes:
        applied(config, found)


def test_the_recorded_underfit_run_had_learned_nothing_and_lost_nothing() -> None:
    _, report = recorded("one_row_few_updates")
    assert report["evidence"]["updates"] <= 10
    assert report["verdict"]["learned"]["share"] < 0.2
    assert report["verdict"]["leaked"]["hits"] == 0
    assert report["verdict"]["forgot"]["ok"] is True
    assert set(report["diagnosis"]["changes"]) == {"train.num_train_epochs"}


def test_the_recorded_parrot_says_its_sentence_everywhere() -> None:
    _, report = recorded("one_row_many_updates")
    assert report["evidence"]["distinct"] == 1
    assert report["evidence"]["last_loss"] < 0.01
    assert report["verdict"]["forgot"]["ok"] is False
    assert report["verdict"]["leaked"]["hits"] > 0
    assert all("Qorvex Zandu" in row["answer"] or "Plim Works" in row["answer"]
               for row in report["verdict"]["leaked"]["failing"])  # fmt: skip


def test_the_recorded_builder_run_learned_and_kept() -> None:
    _, report = recorded("builder_default")
    assert report["verdict"]["learned"]["share"] >= 0.9
    assert report["verdict"]["leaked"]["hits"] == 0
    assert report["verdict"]["forgot"]["retained"] >= 0.95
    checks = [Check.model_validate(one) for one in report["evidence"]["checks"]]
    assert checks[0].learned == 0.0
    assert checks[-1].passed


@pytest.mark.parametrize(
    ("kind", "verdict", "seen"),
    [
        ("good", verdict_of(), {}),
        ("good", verdict_of(learned=None, perplexity={"ok": True}), {}),
        ("unchecked", verdict_of(learned=None, leaked=None), {}),
        ("unchecked", None, {}),
        ("too_few_updates", verdict_of(learned=BAD), {"updates": 20, "lowest_loss": 3.0, "last_loss": 3.0}),
        ("learning_rate_low", verdict_of(learned=BAD), {"lowest_loss": 4.5, "last_loss": 4.5}),
        ("learning_rate_high", verdict_of(learned=BAD, forgot=LOST), {"lowest_loss": 2.0, "last_loss": 6.0}),
        ("learning_rate_high", verdict_of(learned=BAD, forgot=LOST), {"lowest_loss": 4.5, "last_loss": 4.6}),
        ("parrot", verdict_of(forgot=LOST), {"distinct": 2, "general": 0}),
        ("parrot", verdict_of(leaked=BAD), {"distinct": 1, "general": 0}),
        ("forgetting", verdict_of(forgot=LOST), {"general": 0}),
        ("forgetting", verdict_of(forgot=LOST), {}),
        ("template_mismatch", verdict_of(learned=BAD, forgot=KEPT | {"total": 4}), {"own_template": False}),
        ("overfit", verdict_of(learned=None, perplexity={"ok": False}), {}),
        ("not_enough_data", verdict_of(learned=BAD), {"distinct": 12}),
    ],
)
def test_every_kind(kind: str, verdict: dict[str, Any] | None, seen: dict[str, Any]) -> None:
    config = config_of(**{"data.validation_share": 0.1 if (verdict or {}).get("perplexity") else 0.0})
    if kind == "template_mismatch":
        config = config_of(**{"model.chat_template": "vicuna"})
    found = diagnose(config, verdict, evidence(**seen))
    assert found.kind == kind
    assert found.message.endswith(".")
    if found.changes:
        assert len(found.changes) == 1  # one change to try next
        applied(config, found)
    else:
        assert kind in ("good", "not_enough_data")


def test_a_template_of_ones_own_that_works_is_not_blamed() -> None:
    found = diagnose(config_of(**{"model.chat_template": "vicuna"}), verdict_of(), evidence(own_template=False))
    assert found.kind == "good"


@pytest.mark.parametrize(
    ("changes", "updates", "change"),
    [
        ({"train.gradient_accumulation_steps": 16}, 10, {"train.gradient_accumulation_steps": 2}),
        ({"train.gradient_accumulation_steps": 2, "train.num_train_epochs": 3}, 20, {"train.num_train_epochs": 9}),
        ({"train.max_steps": 15}, 15, {"train.max_steps": 60}),
        ({"train.gradient_accumulation_steps": 1, "train.num_train_epochs": 50}, 2, {"train.num_train_epochs": 100}),
    ],
)
def test_more_updates_at_the_lowest_price(changes: dict[str, Any], updates: int, change: dict[str, Any]) -> None:
    found = diagnose(config_of(**changes), verdict_of(learned=BAD), evidence(updates=updates))
    assert found.changes == change


def test_a_run_that_was_still_getting_better_is_given_more_updates() -> None:
    checks = tuple(Check(step=40 * n, learned=share) for n, share in enumerate((0.0, 0.2, 0.5)))
    found = diagnose(config_of(), verdict_of(learned=BAD), evidence(checks=checks))
    assert (found.kind, found.message) == (
        "too_few_updates",
        "It was still getting better when it ended, after 150 updates.",
    )


def test_a_parrot_that_was_sane_at_a_checked_step_is_told_to_stop_there() -> None:
    shares = [(0, 0.0, 0.0, 1.0), (20, 0.6, 0.0, 1.0), (40, 0.7, 0.0, 1.0), (60, 0.8, 0.25, 0.5), (150, 0.6, 0.5, 0.4)]
    checks = tuple(Check(step=a, learned=b, leaked=c, retained=d) for a, b, c, d in shares)
    found = diagnose(config_of(), verdict_of(forgot=LOST), evidence(distinct=1, checks=checks))
    assert found.changes == {"train.max_steps": 40}
    assert found.hint.startswith("At step 40 it had learned it and damaged nothing yet")


def test_fewer_epochs_where_another_rule_chooses_the_step() -> None:
    config = config_of(**{"data.validation_share": 0.1, "verdict.stop_at_best": True, "train.num_train_epochs": 3})
    found = diagnose(config, verdict_of(learned=None, perplexity={"ok": False}), evidence())
    assert found.changes == {"train.num_train_epochs": 1.5}
    applied(config, found)
