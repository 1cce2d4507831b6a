"""`studio queue` and `studio train` while another run is at work; the engine is a stand-in, the processes are real."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from studio import dispatching, run_queue, runner
from studio.cli import main
from studio.events import ExitCode, RunState
from studio.workspace import Workspace

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"


@pytest.fixture
def ws(workspace, monkeypatch):
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 6, "pace": 0.01, "slow": 0.0, "hang_at": 3}))
    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))
    yield workspace
    run_queue.pause_all(workspace)
    for run in workspace.list_runs():
        runner.stop(run)
    while dispatching.at_work(workspace):
        time.sleep(0.05)


@pytest.fixture
def config(tmp_path):
    rows = [{"instruction": f"What is {number}?", "output": f"It is N{number}."} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "run.yaml"
    file.write_text(f"model_path: crucible/ember\ndataset: {json.dumps(str(tmp_path / 'rows.jsonl'))}\n")
    return str(file)


def run(capsys, *argv):
    code = main(list(argv))
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def train(capsys, config, name, *more):
    code, out, _ = run(capsys, "train", config, "--work-dir", name, "--detach", "--json", *more)
    assert code == ExitCode.FINISHED
    return json.loads(out)


def test_an_empty_queue_says_what_to_do(ws, capsys):
    code, out, _ = run(capsys, "queue", "list")
    assert code == 0
    assert "nothing runs and nothing waits" in out
    assert json.loads(run(capsys, "queue", "list", "--json")[1]) == {
        "paused": False, "max_running": 1, "running": [], "waiting": [],
    }  # fmt: skip


def test_train_while_another_runs_is_queued_and_the_order_can_be_changed(ws, config, capsys):
    assert train(capsys, config, "first")["place"] is None
    assert [train(capsys, config, name)["place"] for name in ("second", "third", "fourth")] == [1, 2, 3]
    found = json.loads(run(capsys, "queue", "list", "--json")[1])
    first = found["running"][0]["id"]
    assert [line["id"].partition("_")[2] for line in found["waiting"]] == ["second", "third", "fourth"]
    assert found["waiting"][0]["why"] == f"waits until run {first} has ended"

    def order(*argv):
        code, out, _ = run(capsys, "queue", *argv, "--json")
        assert code == 0
        return [line["id"].partition("_")[2] for line in json.loads(out)["waiting"]]

    assert order("move", "fourth", "2") == ["second", "fourth", "third"]
    assert order("next", "third") == ["third", "second", "fourth"]
    assert order("pause", "third") == ["third", "second", "fourth"]
    assert "paused" in run(capsys, "queue", "list")[1]
    assert order("remove", "second") == ["third", "fourth"]
    assert order("resume", "third") == ["third", "fourth"]
    assert '_second"' not in run(capsys, "runs", "list", "--json")[1]
    assert order("pause") == ["third", "fourth"]
    runner.stop(ws.run("first"))
    assert ws.run("third").state() is RunState.QUEUED, "the whole queue is paused"
    run(capsys, "queue", "resume")
    while ws.run("third").state() is RunState.QUEUED:
        time.sleep(0.05)


def test_what_cannot_be_done_is_one_sentence(ws, config, capsys):
    train(capsys, config, "first")
    for argv, expected in (
        (("move", "first", "1"), "does not wait in the queue"),
        (("remove", "first"), "does not wait in the queue"),
        (("next", "nobody"), "there is no run"),
        (("settings", "--max-running", "0"), "1 to 64"),
    ):
        code, _, err = run(capsys, "queue", *argv)
        assert code == ExitCode.BAD_INPUT
        assert expected in err
    code, _, err = run(capsys, "train", config, "--gpus", "0,3", "--detach")
    assert code == ExitCode.BAD_INPUT
    assert "gpus: there is no card" in err
    with pytest.raises(SystemExit):
        main(["train", config, "--gpus", "first"])
    assert "no list of card numbers" in capsys.readouterr().err
    run(capsys, "train", config, "--work-dir", "second", "--detach")
    code, _, err = run(capsys, "runs", "stop", "second")
    assert code == ExitCode.BAD_INPUT
    assert "queue remove" in err


def test_settings_are_shown_and_kept(ws, capsys):
    assert json.loads(run(capsys, "queue", "settings", "--max-running", "3", "--json")[1])["max_running"] == 3
    assert "at once without a GPU of their own: 3" in run(capsys, "queue", "settings")[1]
    assert run_queue.settings(Workspace(ws.path)).max_running == 3


def wait_until_said(capsys, words):
    said = ""
    while words not in said:
        time.sleep(0.05)
        said += capsys.readouterr().err


def test_a_followed_run_waits_and_is_then_watched_to_its_end(ws, config, capsys, monkeypatch):
    train(capsys, config, "first")
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 6, "pace": 0.01, "slow": 0.0}))
    outcome = []
    follower = threading.Thread(target=lambda: outcome.append(main(["train", config, "--work-dir", "second"])))
    follower.start()
    wait_until_said(capsys, "Waiting in the queue")
    runner.stop(ws.run("first"))
    follower.join()
    assert outcome == [ExitCode.FINISHED]
    assert ws.run("second").state() is RunState.FINISHED


def test_a_followed_run_that_is_taken_out_ends_the_following(ws, config, capsys):
    train(capsys, config, "first")
    outcome = []
    follower = threading.Thread(target=lambda: outcome.append(main(["train", config, "--work-dir", "second"])))
    follower.start()
    wait_until_said(capsys, "Waiting in the queue")
    run_queue.remove(ws.run("second"))
    follower.join()
    assert outcome == [ExitCode.STOPPED]
    assert "was taken out of the queue" in capsys.readouterr().err
