"""The end of a followed run tells its verdict, what that means and the command that tries the change."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from studio.cli.follow import report_end
from studio.config import RunConfig
from studio.events import Launch, RunState, Status
from studio.workspace import Workspace

REPORTS = Path(__file__).resolve().parent / "reports"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("one_row_few_updates", " next.yaml --set train.num_train_epochs=8, then: train next.yaml"),
        ("builder_default", None),
    ],
)
def test_the_verdict_is_told_with_the_command_to_try_next(tmp_path: Path, name: str, told: str | None) -> None:
    recorded = json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8"))
    run = Workspace(tmp_path).create_run(RunConfig.model_validate(recorded["config"]))
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here", started_at=0.0))
    run.write_status(Status(state=RunState.FINISHED))
    run.report_file.write_text(json.dumps(recorded["report"]), encoding="utf-8")
    out = io.StringIO()
    report_end(run, Console(file=out, width=400))
    lines = out.getvalue().splitlines()
    diagnosis = recorded["report"]["diagnosis"]
    assert f"verdict: {recorded['report']['verdict']['summary']}" in lines
    assert f"what it means: {diagnosis['message']} {diagnosis['hint']}" in lines
    tried = [line for line in lines if line.startswith("try next: ")]
    assert tried == ([f"try next: runs clone {run.id}{told}"] if told else [])
