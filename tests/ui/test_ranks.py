"""The processes of a run beside each other: what each does, who does not get on, whose last words and log are shown."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from building import context
from fastapi import FastAPI
from starlette.testclient import TestClient

from studio import library, run_card, runner
from studio.config import RunConfig
from studio.events import Launch, RunError, RunState, Status
from studio.rundir import RunDir
from studio.schema import ConfigError, build, merge
from studio.ui import ranks_view, routes
from studio.ui.context import Refused
from studio.ui.tabs import monitor
from studio.workspace import Workspace
from tests.fake_ranks import FakeRanks

HOSTILE = "<img src=x onerror=window.pwned=1>"


@pytest.fixture
def client(workspace: Workspace) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(routes.build(workspace))
    with TestClient(app) as opened:
        yield opened


@pytest.fixture
def new_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    """Makes a run that counts as live for as long as its status says so."""
    monkeypatch.setattr("studio.rundir.is_alive", lambda launch, status=None: True)

    def make(**parallel: Any) -> RunDir:
        base = {"name": "r", "model.model_name_or_path": "some/model", "data.dataset": "rows"}
        layer = {f"parallel.{name}": value for name, value in parallel.items()}
        run = workspace.create_run(build(RunConfig, merge(RunConfig, base | layer)))
        run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here", attempt=2, started_at=time.time()))
        run.write_status(Status(state=RunState.RUNNING, phase="train", attempt=2))
        return run

    return make


def _rows(client: TestClient, run: RunDir) -> list[dict[str, Any]]:
    answer = client.get(f"/api/runs/{run.id}/ranks")
    assert answer.status_code == 200
    rows: list[dict[str, Any]] = answer.json()["ranks"]
    return rows


@pytest.mark.parametrize("run_id", ["no-such", "..", "%2e%2e", "<b>"])
def test_unknown_and_hostile_ids_are_404(client: TestClient, run_id: str) -> None:
    assert client.get(f"/api/runs/{run_id}/ranks").status_code == 404


def test_a_run_with_one_process_has_no_rows(client: TestClient, new_run: Callable[..., RunDir]) -> None:
    assert _rows(client, new_run()) == []


def test_each_process_has_a_row_with_what_it_does_and_how_long_it_waited(
    client: TestClient, new_run: Callable[..., RunDir]
) -> None:
    run = new_run(num_processes=4, num_machines=2, main_process_ip="10.0.0.1")
    fake = FakeRanks(run)
    for step in (1, 2):
        fake.beat("train", step, "step")
        points = fake.points(step, 0.5)
        assert points is not None
        run.append_event(points)
    rows = _rows(client, run)
    assert [row["state"] for row in rows] == ["step", "waiting", "elsewhere", "elsewhere"]
    assert [(row["machine"], row["host"]) for row in rows] == [(0, "node-a")] * 2 + [(1, "node-b")] * 2
    assert [row["log"] for row in rows] == [False, True, False, False]
    assert rows[1]["waited"] == pytest.approx(0.17)
    assert len(rows[3]["course"]) == 2


def test_what_an_earlier_start_left_is_not_shown(client: TestClient, new_run: Callable[..., RunDir]) -> None:
    run = new_run(num_processes=2)
    fake = FakeRanks(run)
    fake.attempt = 1
    fake.beat("train", 7, "step")
    assert [(row["state"], row["step"]) for row in _rows(client, run)] == [("starting", None)] * 2


def test_one_that_is_silent_and_one_that_does_not_get_on_are_told(
    client: TestClient, new_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(num_processes=3)
    fake = FakeRanks(run, bad=2, how="silent")
    fake.beat("train", 1, "step")
    fake.hang(1)
    assert [row["state"] for row in _rows(client, run)] == ["waiting", "waiting", "silent"]
    monkeypatch.setattr(ranks_view, "STUCK_S", -1.0)
    fake.how = "hangs"
    fake.hang(1)
    run.append_event(fake.points(1, 0.0))  # type: ignore[arg-type]
    assert [row["state"] for row in _rows(client, run)] == ["waiting", "waiting", "stuck"]


def test_the_one_that_died_is_named_with_its_last_words(client: TestClient, new_run: Callable[..., RunDir]) -> None:
    run = new_run(num_processes=2)
    fake = FakeRanks(run, bad=1, message=f"out of luck {HOSTILE}")
    fake.beat("train", 3, "step")
    error = fake.die(3)
    run.write_status(Status(state=RunState.FAILED, phase="train", attempt=2, error=error))
    first, second = _rows(client, run)
    assert (first["state"], second["state"]) == ("ended", "failed")
    assert second["error"]["message"] == f"out of luck {HOSTILE}"  # as data; the page sets it as text
    assert second["last_words"].endswith(f"out of luck {HOSTILE}")
    assert first["last_words"] == ""


def test_who_only_missed_the_one_that_was_killed_is_not_to_blame(
    client: TestClient, new_run: Callable[..., RunDir]
) -> None:
    run = new_run(num_processes=2)
    fake = FakeRanks(run)
    fake.beat("train", 4, "step")
    missed = RunError(kind="internal", message="connection closed by peer", details={"lost": True})
    fake.status(0, phase="train", step=4, state=RunState.FAILED, error=missed)
    told = RunError(kind="internal", message="One was killed by SIGKILL.", details={"rank": 1})
    run.write_status(Status(state=RunState.FAILED, phase="train", attempt=2, error=told))
    assert [row["state"] for row in _rows(client, run)] == ["ended", "died"]


def test_each_process_has_a_log_of_its_own_and_none_lies_elsewhere(
    client: TestClient, new_run: Callable[..., RunDir]
) -> None:
    run = new_run(num_processes=2)
    run.log_file.write_text("first\n", encoding="utf-8")
    run.rank_log(1).write_text("second\n", encoding="utf-8")
    read = {rank: client.get("/api/log", params={"run": run.id, "rank": rank}).json()["text"] for rank in (0, 1, 7)}
    assert read == {0: "first\n", 1: "second\n", 7: ""}
    file = client.get("/api/log/file", params={"run": run.id, "rank": 1})
    assert (file.text, "rank1.log" in file.headers["content-disposition"]) == ("second\n", True)
    for rank in ("-1", "9999999", "../status", "1/../../x", "１"):
        answer = client.get("/api/log", params={"run": run.id, "rank": rank})
        assert answer.status_code == 422 or answer.json()["text"] == read.get(int(rank), "")


def test_a_part_of_a_run_elsewhere_shows_its_own_processes(client: TestClient, new_run: Callable[..., RunDir]) -> None:
    run = new_run(num_processes=4, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1")
    answer = client.get(f"/api/runs/{run.id}/ranks").json()
    assert (answer["machine"], answer["address"]) == (1, "10.0.0.1")
    assert [row["rank"] for row in answer["ranks"]] == [2, 3]


def test_resume_with_another_number_of_processes_checks_what_the_page_sends(
    workspace: Workspace, new_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(num_processes=2)
    asked: list[Any] = []
    monkeypatch.setattr(runner, "resume", lambda found, changes: asked.append((found.id, changes)))
    go_on = monitor.resume_with(context(workspace))
    with pytest.raises(Refused):  # it is still at work
        go_on(_event(run=run.id, processes=4))
    run.write_status(Status(state=RunState.STOPPED, phase="train", attempt=2))
    for wrong in (0, "many", None, 10**9):
        with pytest.raises(ConfigError):
            go_on(_event(run=run.id, processes=wrong))
    go_on(_event(run=run.id, processes=4))
    assert asked == [(run.id, {"parallel.num_processes": 4})]


def _event(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


def test_the_card_and_the_list_say_how_a_run_was_spread(new_run: Callable[..., RunDir]) -> None:
    run = new_run(num_processes=4, num_machines=2, main_process_ip="10.0.0.1", deepspeed="zero2")
    assert ("Processes", "4 processes on 2 machines · ZeRO-2") in run_card.contents(run, run_card.Words())["facts"]
    line = library.read_line(run)
    assert (line["processes"], line["machines"], line["sharding"]) == (4, 2, "zero2")
