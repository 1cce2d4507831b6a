"""Where a run may also report to: the spellings of the field, and what is refused before the start."""

from __future__ import annotations

from typing import Any

import pytest

from studio import trackers
from studio.config import RunConfig
from studio.foreign.llamafactory import read_llamafactory
from studio.preflight import preflight
from studio.schema import ConfigError, build, dump_yaml, load_yaml, merge, parse_overrides
from studio.workspace import Workspace

MINIMAL = {"model.model_name_or_path": "crucible/ember", "data.dataset": "identity"}


def reports_to(value: Any) -> list[str]:
    config = build(RunConfig, merge(RunConfig, MINIMAL, {"train.report_to": value}))
    assert load_yaml(dump_yaml(config, full=True), RunConfig) == config
    return list(config.train.report_to)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], []),
        ("none", []),
        (["none"], []),
        (None, []),
        ("wandb", ["wandb"]),
        (["tensorboard", "mlflow"], ["tensorboard", "mlflow"]),
        (["trackio", "trackio"], ["trackio"]),
    ],
)
def test_spellings(given: Any, found: list[str]) -> None:
    assert reports_to(given) == found


def test_nothing_is_reported_unless_asked_for() -> None:
    assert build(RunConfig, merge(RunConfig, MINIMAL)).train.report_to == []


def test_the_command_line_takes_a_name_or_a_list() -> None:
    for text, found in (("wandb", ["wandb"]), ("[wandb, mlflow]", ["wandb", "mlflow"])):
        overrides = parse_overrides([f"train.report_to={text}"])
        assert build(RunConfig, merge(RunConfig, MINIMAL, overrides)).train.report_to == found


@pytest.mark.parametrize("given", ["all", "WANDB_API_KEY=secret", ["neptune"]])
def test_what_is_no_tracker_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"train\.report_to"):
        reports_to(given)


def test_the_form_says_before_the_start_what_is_missing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "installed", lambda package: package == "wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = build(RunConfig, merge(RunConfig, MINIMAL, {"train.report_to": ["wandb", "swanlab"]}))
    found = {advice.message: advice for advice in preflight(config, workspace) if advice.field == "train.report_to"}
    assert set(found) == {
        "Weights & Biases needs its key in the environment variable WANDB_API_KEY",
        "SwanLab needs the package swanlab, which is not installed",
    }
    assert all(advice.level == "error" and advice.fix for advice in found.values())


@pytest.mark.parametrize(("given", "found"), [("none", []), ("tensorboard", ["tensorboard"]), ("[wandb]", ["wandb"])])
def test_llamafactorys_word_for_it_is_carried_over(given: str, found: list[str]) -> None:
    text = f"stage: sft\nmodel_name_or_path: x/y\ndataset: identity\nreport_to: {given}\n"
    settings = read_llamafactory(text).settings
    assert build(RunConfig, merge(RunConfig, MINIMAL, settings)).train.report_to == found
