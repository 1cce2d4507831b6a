"""Watching a run where no line can change, in a pipe or a log file: every phase is a line, and silence is broken."""

import io

import pytest
from rich.console import Console

from studio.cli import follow as watching
from studio.cli import main, train
from studio.config import RunConfig
from studio.estimate import Advice
from studio.events import (
    CountsEvent,
    ExitCode,
    Launch,
    LogEvent,
    PhaseEvent,
    ProgressEvent,
    RunState,
    StartedEvent,
    Status,
)
from studio.schema import build


@pytest.fixture
def begun(workspace):
    """A run of which nothing has been heard yet."""
    return workspace.create_run(build(RunConfig, {"model_path": "crucible/ember", "dataset": "none"}))


def finished(run, *events):
    run.write_launch(Launch(argv=["engine"], pid=2**22 + 1, create_time=1.0, host="here"))
    for event in events:
        run.append_event(event)
    run.write_status(Status(state=RunState.FINISHED, exit_code=0, max_steps=43))
    return run


def test_a_pipe_hears_each_phase_and_a_line_now_and_then(begun, capsys):
    steps = [LogEvent(t=110.0 + step, step=step, loss=2.5 - step / 20, eta_seconds=3700.0) for step in range(1, 44)]
    counts = CountsEvent(
        t=107.0, rows_read=1240, conversations=1238, tokens=90210, trained_tokens=5, packs=60, updates=40
    )
    run = finished(
        begun,
        StartedEvent(t=100.0),
        PhaseEvent(t=100.0, name="load", detail="built-in model"),
        ProgressEvent(t=101.0, done=1, total=4, label="weights"),
        PhaseEvent(t=105.0, name="tokenise"),
        counts,
        PhaseEvent(t=110.0, name="train"),
        *steps,
        PhaseEvent(t=3750.0, name="save"),
    )
    assert watching.follow(run) == ExitCode.FINISHED
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "0:00  Loading the model: built-in model",
        "0:05  Reading the data",
        "0:07  1,240 rows, 1,238 conversations, 90,210 tokens, 60 packs, 40 updates",
        "0:10  Training",
        "0:20  step 10/43  loss 2.000  1:01:40 left",
        "0:30  step 20/43  loss 1.500  1:01:40 left",
        "0:40  step 30/43  loss 1.000  1:01:40 left",
        "0:50  step 40/43  loss 0.500  1:01:40 left",
        "0:53  step 43/43  loss 0.350  1:01:40 left",
        "1:00:50  Saving",
        f"{run.id}: finished",
    ]


def test_long_lines_of_a_pipe_are_not_broken(begun, capsys):
    detail = "a folder with quite a long name, " * 8
    watching.follow(finished(begun, PhaseEvent(t=1.0, name="load", detail=detail)))
    assert f"Loading the model: {detail}" in capsys.readouterr().err


def test_silence_is_broken_before_the_first_event_and_within_a_long_phase(begun, monkeypatch):
    said, clock = io.StringIO(), [1000.0]
    monkeypatch.setattr(watching.time, "time", lambda: clock[0])
    lines = watching._Lines(begun, Console(file=said, width=80))
    lines.wait()
    assert said.getvalue().strip() == "0:00  Starting the engine; loading its libraries takes a while"
    for passed in (1, 10, 20, 25):
        clock[0] = 1000.0 + passed
        lines.wait()
    assert len(said.getvalue().splitlines()) == 1
    lines.show(PhaseEvent(t=1026.0, name="tokenise"))
    for passed in (30, 50, 57, 80, 88):
        clock[0] = 1000.0 + passed
        lines.wait()
    assert [line.strip() for line in said.getvalue().splitlines()[1:]] == [
        "0:26  Reading the data",
        "0:57  Reading the data (still at it)",
        "1:28  Reading the data (still at it)",
    ]


def test_silence_tells_what_was_begun_last(begun, monkeypatch):
    said, clock = io.StringIO(), [1000.0]
    monkeypatch.setattr(watching.time, "time", lambda: clock[0])
    lines = watching._Lines(begun, Console(file=said, width=80))
    lines.show(PhaseEvent(t=1000.0, name="load"))
    lines.show(ProgressEvent(t=1001.0, done=1, total=2, label="machines; waiting until all are there"))
    clock[0] = 1040.0
    lines.wait()
    assert said.getvalue().splitlines()[-1].endswith("machines; waiting until all are there (still at it)")


def test_train_says_what_it_does_before_it_begins_to_count(workspace, capsys, monkeypatch):
    heard = []

    def look(config, workspace):
        heard.append(capsys.readouterr().err)
        return [Advice("error", "data.datasets", "there are no rows")]

    monkeypatch.setattr(train, "preflight", look)
    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))
    code = main(["train", "--set", "model_path=crucible/ember", "--set", "dataset=none"])
    assert code == ExitCode.BAD_INPUT
    assert heard == ["checking model, data, memory and disk before the start …\n"]
