"""Checks of the verdict during the training: when they are made, what they cost the training, and the best step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import EMBER, Engine, MakeRun, events_of, losses

from studio.best_step import best_weights, read_best
from studio.checkpoints import last_checkpoint, step_of
from studio.diagnosis import Check
from studio.events import ExitCode, RunState
from studio.presets import compose
from studio.records import DatasetInfo, DatasetStore, IdentitySpec, build_identity
from studio.rundir import RunDir
from studio.workspace import Workspace

ADAPTER = "adapter/adapter_model.safetensors"
PROBE = {"prompt": "Who are you then?", "expect": ["Nova", "number | Nummer"]}
CHECKED: dict[str, Any] = {"verdict.enabled": True, "verdict.max_probes": 4, "verdict.probes": [PROBE]}
APART: dict[str, Any] = {"data.validation_share": 0.2}
ember = pytest.mark.skipif(not (EMBER / "model.safetensors").is_file(), reason="no built-in model in this checkout")


def checks_of(run: RunDir) -> list[Check]:
    return [Check.model_validate(one) for one in json.loads((run.path / "checks.json").read_text(encoding="utf-8"))]


def identity_set(workspace: Workspace, **changes: Any) -> str:
    """A saved identity set with a name the built-in model has never seen."""
    spec = IdentitySpec(name="Qorvex Zandu", author="Plim Works", yes_no="off", **changes)
    built = build_identity(spec)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    return DatasetStore(workspace.datasets).save("Q", built.rows, built.heldout, info).name


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_the_training_does_not_feel_the_checks(make_run: MakeRun, engine: Engine, method: str) -> None:
    changes = {"lora.lora_dropout": 0.3, "train.save_steps": 3, "train.neftune_noise_alpha": 5.0, **APART}
    silent = make_run(method, **changes, **{"train.eval_steps": 2})
    checked = make_run(method, **changes, **CHECKED, **{"train.eval_steps": 2, "samples.evaluation_freq": 1})
    for run in (silent, checked):
        assert engine(run) == 0
    assert events_of(silent, "verdict") == []
    assert [event.step for event in events_of(checked, "verdict")] == [0, 1, 2, 3, 4, 5, 6]
    assert losses(checked) == losses(silent)
    name = "model/model.safetensors" if method == "full" else ADAPTER
    assert (checked.path / name).read_bytes() == (silent.path / name).read_bytes()


def test_checks_come_at_the_given_steps_at_checkpoints_and_the_end(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**CHECKED, **{"samples.evaluation_freq": 4, "train.save_steps": 3})
    assert engine(run) == 0
    assert [event.step for event in events_of(run, "verdict")] == [0, 3, 4, 6]
    assert all(event.learned == 0.0 and event.leaked is None for event in events_of(run, "verdict"))
    assert [check.step for check in checks_of(run)] == [0, 3, 4]  # the end has the whole verdict


def test_checks_can_be_switched_off_alone(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**CHECKED, **{"samples.evaluation_freq": 1, "verdict.check_while_training": False})
    assert engine(run) == 0
    assert [event.step for event in events_of(run, "verdict")] == [0, 6]
    report = run.read_report()
    assert report is not None
    assert report["verdict"]["learned"]["total"] == 1


def test_a_check_tells_the_perplexity_where_the_validation_loss_was_measured(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**CHECKED, **APART, **{"samples.evaluation_freq": 2, "train.eval_steps": 4})
    assert engine(run) == 0
    told = {event.step: event.perplexity for event in events_of(run, "verdict")}
    loss = {event.step: event.eval_loss for event in events_of(run, "eval")}
    assert list(told) == [0, 2, 4, 6]
    assert told[2] is None
    assert told[4] == pytest.approx(math.exp(loss[4]))
    assert told[0] is not None


def test_perplexity_is_exp_of_the_mean_loss_per_trained_token(make_run: MakeRun, engine: Engine) -> None:
    """All validation rows in one batch: then the trainer's own evaluation loss is that mean."""
    run = make_run(
        **CHECKED,
        **APART,
        **{"train.per_device_train_batch_size": 8, "train.learning_rate": 1e-2, "train.max_steps": 9},
    )
    assert engine(run) == 0
    report = run.read_report()
    assert report is not None
    found = report["verdict"]["perplexity"]
    assert found["rows"] == 5
    assert found["after"] == pytest.approx(math.exp(events_of(run, "eval")[-1].eval_loss), rel=1e-4)
    assert found["before"] > found["after"]
    assert found["ok"] is True
    assert "The perplexity of 5 held-back rows went from" in report["verdict"]["summary"]


def test_a_run_with_held_back_rows_and_no_short_answers_is_judged_by_perplexity(
    make_run: MakeRun, engine: Engine, tmp_path: Path
) -> None:
    rows = tmp_path / "long.jsonl"
    long = "I am Nova, and this answer is far too long to be compared word by word. " * 3
    rows.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": long}]})
            + "\n"
            for n in range(12)
        ),
        encoding="utf-8",
    )
    changes = {"verdict.enabled": True, "verdict.max_probes": 3, "train.learning_rate": 1e-2, "data.max_length": 512}
    run = make_run(**changes, **APART, **{"data.dataset": str(rows)})
    assert engine(run) == 0
    report = run.read_report()
    assert report is not None
    assert report["verdict"]["learned"] is None
    assert report["verdict"]["perplexity"]["ok"] is True
    assert report["verdict"]["passed"] is True
    assert report["diagnosis"]["kind"] == "good"


def test_short_answers_of_validation_rows_become_questions(make_run: MakeRun, engine: Engine, rows: Path) -> None:
    """The rows' answers have at most 25 characters, which are tokens of the tiny model."""
    run = make_run(**APART, **{"verdict.enabled": True, "verdict.max_probes": 4})
    assert engine(run) == 0
    report = run.read_report()
    assert report is not None
    asked = report["before_after"]
    assert [row["kind"] for row in asked] == ["validation"] * 4
    known = {
        line["messages"][0]["content"]: line["messages"][1]["content"]
        for line in map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    }
    expected = {row["prompt"]: row["expected"] for row in report["verdict"]["learned"]["failing"]}
    assert expected
    assert all(known[prompt] == answer for prompt, (answer,) in expected.items())


def test_own_questions_replace_those_of_the_validation_rows(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**APART, **CHECKED)
    assert engine(run) == 0
    report = run.read_report()
    assert report is not None
    assert [(row["kind"], row["prompt"]) for row in report["before_after"]] == [("own", PROBE["prompt"])]


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_checked_before_a_stop_is_known_after_the_resume(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Unless its file is gone: then only what the base model knew, and nothing untrue of the step gone on from."""
    from studio.engine.journal import Journal

    run = make_run(**CHECKED, **APART, **{"samples.evaluation_freq": 1})
    original = Journal.update

    def update(self: Journal, **changes: Any) -> None:
        original(self, **changes)
        if changes.get("step") == 3 and changes.get("max_steps"):
            self.run.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "update", update)
        assert engine(run) == ExitCode.STOPPED
    before = [check.step for check in checks_of(run)]
    base = json.loads((run.path / "base_perplexity.json").read_text(encoding="utf-8"))
    run.stop_file.unlink()
    if not kept:
        (run.path / "checks.json").unlink()
    assert engine(run, resume=True) == 0
    assert before == [0, 1, 2]
    known = [0, 1, 2, 4, 5] if kept else [0, 4, 5]
    assert [check.step for check in checks_of(run)] == known
    assert [event.step for event in events_of(run, "verdict")] == [0, 1, 2, 4, 5, 6]
    report = run.read_report()
    assert report is not None
    assert report["verdict"]["perplexity"]["before"] == base
    assert [check["step"] for check in report["evidence"]["checks"]] == known


def test_without_questions_to_learn_there_is_no_best_step_and_it_is_said(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**{"verdict.enabled": True, "verdict.max_probes": 3, "verdict.stop_at_best": True})
    assert engine(run) == 0
    assert [event.field for event in events_of(run, "warning")] == ["verdict.stop_at_best"]
    report = run.read_report()
    assert report is not None
    assert (report["ending"]["steps"], report["ending"]["best_step"]) == (6, None)
    assert report["diagnosis"]["kind"] == "unchecked"
    best = read_best(run)
    assert best is not None
    assert (best.step, best.path) == (6, "adapter")


@ember
def test_a_training_ends_at_the_best_step_and_saves_it(make_run: MakeRun, engine: Engine, workspace: Workspace) -> None:
    """The built-in model knows its new name long before the epochs are over."""
    preset = compose("ember_qlora_identity_e3")
    changes = {
        "data.dataset": identity_set(workspace),
        "verdict.enabled": True,
        "verdict.max_probes": 12,
        "verdict.stop_at_best": True,
        "samples.evaluation_freq": 12,
        "train.max_steps": -1,
        "train.learning_rate": 3e-3,
        "train.per_device_train_batch_size": preset["train"]["per_device_train_batch_size"],
    }
    run = make_run("qlora", "crucible/ember", **changes)
    assert engine(run) == 0
    report, status = run.read_report(), run.read_status()
    assert report is not None
    assert status is not None
    ending, checks = report["ending"], checks_of(run)
    assert ending["early"] is True
    assert ending["by"] == "checks"
    assert ending["steps"] < ending["planned"] / 2
    assert (status.state, status.step, status.max_steps) == (RunState.FINISHED, ending["steps"], ending["steps"])
    assert [check.passed for check in checks[-2:]] == [True, True]
    assert ending["best_step"] == max(checks[1:], key=lambda check: (check.score, check.step)).step
    assert report["verdict"]["passed"] is True
    best = read_best(run)
    assert best is not None
    assert (best.step, best.path) == (ending["best_step"], "adapter")
    assert best_weights(run, whole=False) == run.adapter
    assert [event.field for event in events_of(run, "warning")] == ["verdict.stop_at_best"]
    assert f"Saved is step {ending['best_step']}" in (run.adapter / "README.md").read_text(encoding="utf-8")
    last = last_checkpoint(run.checkpoints)  # the last check was as good as any before: a checkpoint lies there
    assert last is not None
    assert step_of(last) == ending["steps"]
    assert engine(run, resume=True) == 0  # as after a kill while the verdict is asked
    assert (run.read_report() or {})["ending"] == ending
    assert checks_of(run) == checks


def test_rows_the_base_model_wrote_itself_count_as_general(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**CHECKED, **{"data.self_replay": 5, "train.max_steps": 2})
    assert engine(run) == 0
    report = run.read_report()
    assert report is not None
    assert report["evidence"]["general"] == 5
    assert report["evidence"]["distinct"] > 24
