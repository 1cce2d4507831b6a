"""The verb answers: what is asked for becomes the configuration of a run, and what came of it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio import runner
from studio.cli import main, output_run
from studio.config import AnswersConfig, RunConfig
from studio.events import ExitCode, RunState
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace


@pytest.fixture
def started(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[AnswersConfig]:
    """The configurations that were started; each run is finished at once."""
    found: list[AnswersConfig] = []

    def submit(place: Workspace, config: Any) -> RunDir:
        found.append(config)
        run = place.create_run(config)
        report = {"prompts": 3, "answers": 5, "changed": 2, "refused": 1, "cut": 1, "out": config.out}
        run.report_file.write_text(json.dumps(report), encoding="utf-8")
        return run

    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))
    monkeypatch.setattr(runner, "submit", submit)
    monkeypatch.setattr(output_run, "follow", lambda *_, **__: ExitCode.FINISHED)
    monkeypatch.setattr(RunDir, "state", lambda _: RunState.FINISHED)
    return found


@pytest.fixture
def trained(workspace: Workspace) -> RunDir:
    """A qlora run with a result and a checkpoint."""
    layer = {
        "method": "qlora",
        "model.model_name_or_path": "crucible/ember",
        "data.dataset": "d",
        "data.system": "Be kind.",
    }
    run = workspace.create_run(build(RunConfig, merge(RunConfig, layer)))
    for folder in (run.adapter, run.checkpoints / "checkpoint-4"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "crucible/ember"}', encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes(b"x")
    return run


def test_a_run_is_asked_with_its_own_precision_under_its_own_name(
    started: list[AnswersConfig], trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.jsonl"
    assert main(["answers", "p.txt", "last", str(out), "--temperature", "0.5", "--seed", "3", "--system", "S"]) == 0
    (config,) = started
    assert (config.model, config.adapter, config.bits, config.compare) == (trained.id, None, 4, True)
    assert (config.temperature, config.seed, config.system, config.out) == (0.5, 3, "S", str(out))
    said = " ".join(capsys.readouterr().out.split())
    assert "3 prompts, 5 answers; 2 answers differ; 1 could not be answered; 1 reached the longest length" in said
    assert f"answers: {out}" in said


def test_answers_are_drawn_and_ended_as_the_options_say(
    started: list[AnswersConfig], trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["--top-k", "5", "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.2"]
    ended = ["--stop-words", "END", "The end", "--prompt-template", "vicuna"]
    assert main(["answers", "p.txt", trained.id, str(tmp_path / "a.jsonl"), *drawn, *ended]) == 0
    (config,) = started
    assert (config.top_k, config.top_p, config.min_p, config.repetition_penalty) == (5, 0.9, 0.1, 1.2)
    assert (config.stop_words, config.chat_template) == (["END", "The end"], "vicuna")
    assert main(["answers", "p.txt", trained.id, "b.jsonl", "--prompt-template", "vicunna"]) == ExitCode.BAD_INPUT
    assert "Did you mean" in capsys.readouterr().err
    assert len(started) == 1


def test_the_last_run_is_the_last_that_left_something(
    started: list[AnswersConfig], trained: RunDir, tmp_path: Path
) -> None:
    for number in range(2):
        assert main(["answers", "p.txt", "last", str(tmp_path / f"{number}.jsonl")]) == 0
    assert [config.model for config in started] == [trained.id] * 2


def test_an_adapter_beside_its_base(started: list[AnswersConfig], trained: RunDir) -> None:
    assert (
        main(
            [
                "answers",
                "p.txt",
                "crucible/ember",
                "a.xlsx",
                "--adapter",
                str(trained.adapter),
                "--no-base",
                "--bits",
                "16",
            ]
        )
        == 0
    )
    (config,) = started
    assert (config.model, config.adapter, config.bits, config.compare) == (
        "crucible/ember", str(trained.adapter), 16, False,
    )  # fmt: skip
    assert main(["answers", "p.txt", "crucible/ember", "b.xlsx", "--adapter", trained.id]) == 0
    assert started[-1].adapter == str(trained.adapter)


@pytest.mark.parametrize(
    ("model", "adapter", "reason"),
    [
        ("nowhere", None, "nowhere"),
        ("crucible/ember", "nowhere", "'nowhere' is no adapter's folder"),
    ],
)
def test_what_is_not_there_is_told_before_a_run_is_made(
    started: list[AnswersConfig], capsys: pytest.CaptureFixture[str], model: str, adapter: str | None, reason: str
) -> None:
    assert main(["answers", "p.txt", model, "a.jsonl", *(["--adapter", adapter] if adapter else [])]) == 4
    assert reason in capsys.readouterr().err
    assert not started
