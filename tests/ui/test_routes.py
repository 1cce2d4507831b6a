"""The REST reads: new bytes only, every id checked, nothing invented."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from studio.config import AnswersConfig, RunConfig
from studio.events import (
    CountsEvent,
    EvalEvent,
    LogEvent,
    PhaseEvent,
    RunError,
    RunState,
    SampleEvent,
    SavedEvent,
    StartedEvent,
    Status,
    VerdictEvent,
)
from studio.records import DatasetInfo, DatasetStore, parse_spec
from studio.rundir import RunDir
from studio.schema import build
from studio.ui import routes
from studio.ui.live_curves import ROWS_KEPT, Table, Watched
from studio.workspace import Workspace

BAD_IDS = ["../x", "..", "/etc/passwd", "no-such", "", "a/b", "%2e%2e", "x\x00y", "runs", "。。", "<b>"]


@pytest.fixture
def client(workspace: Workspace) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(routes.build(workspace))
    with TestClient(app) as opened:
        yield opened


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    return _new_run(workspace, "first")


def _new_run(workspace: Workspace, name: str, dataset: str = "rows") -> RunDir:
    model = {"model_name_or_path": "some/model"}
    return workspace.create_run(build(RunConfig, {"name": name, "model": model, "data": {"dataset": dataset}}))


def _read(client: TestClient, what: str, run: RunDir, after: int = 0) -> Any:
    answer = client.get(f"/api/{what}", params={"run": run.id, "after": after})
    assert answer.status_code == 200
    return answer.json()


@pytest.mark.parametrize("what", ["metrics", "notes", "samples", "log", "log/file", "report", "dataset"])
@pytest.mark.parametrize("run_id", BAD_IDS)
def test_unknown_and_hostile_ids_are_404(client: TestClient, run: RunDir, what: str, run_id: str) -> None:
    answer = client.get(f"/api/{what}", params={"run": run_id})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "no such run"}


def test_metrics_give_each_point_once(client: TestClient, run: RunDir) -> None:
    run.append_event(LogEvent(step=1, loss=2.0, learning_rate=1e-4))
    first = _read(client, "metrics", run)
    assert first["points"]["step"] == [1]
    assert first["points"]["loss"] == [2.0]
    assert first["points"]["grad_norm"] == [None]
    run.append_event(LogEvent(step=2, loss=1.5))
    second = _read(client, "metrics", run, first["offset"])
    assert second["points"]["step"] == [2]
    assert second["offset"] > first["offset"]
    third = _read(client, "metrics", run, second["offset"])
    assert third["points"]["step"] == []
    assert third["rewind"]["points"] is None


def test_metrics_tell_to_drop_points_that_a_resume_repeats(client: TestClient, run: RunDir) -> None:
    for step in (1, 2, 3, 4):
        run.append_event(LogEvent(step=step, loss=float(step)))
    seen = _read(client, "metrics", run)
    for step in (3, 4, 5):
        run.append_event(LogEvent(step=step, loss=10.0 + step))
    fresh = _read(client, "metrics", run, seen["offset"])
    assert fresh["rewind"]["points"] == 2
    assert fresh["points"]["step"] == [3, 4, 5]
    whole = _read(client, "metrics", run)
    assert whole["points"]["step"] == [1, 2, 3, 4, 5]
    assert whole["points"]["loss"] == [1.0, 2.0, 13.0, 14.0, 15.0]


def test_what_comes_late_for_a_step_completes_the_point_a_watcher_has(client: TestClient, run: RunDir) -> None:
    run.append_event(LogEvent(step=6, loss=0.75))
    run.append_event(LogEvent(step=7, loss=0.5))
    seen = _read(client, "metrics", run)
    run.append_event(LogEvent(step=7, grad_norm=1.25))
    late = _read(client, "metrics", run, seen["offset"])
    assert late["rewind"]["points"] == 6
    assert (late["points"]["step"], late["points"]["loss"], late["points"]["grad_norm"]) == ([7], [0.5], [1.25])


def test_a_resume_voids_what_came_after_its_checkpoint(client: TestClient, run: RunDir) -> None:
    for step in (1, 2, 3, 4):
        run.append_event(LogEvent(step=step, loss=float(step)))
    for step in (2, 4):
        run.append_event(EvalEvent(step=step, eval_loss=float(step)))
        run.append_event(VerdictEvent(step=step, learned=step / 4))
        run.append_event(SavedEvent(step=step, path=f"checkpoints/checkpoint-{step}", what="checkpoint"))
    seen = _read(client, "metrics", run)
    assert seen["exams"]["learned"] == [0.5, 1.0]
    assert seen["saved"]["step"] == [2, 4]
    run.append_event(StartedEvent(step=2, max_steps=4, resumed_from=2))
    fresh = _read(client, "metrics", run, seen["offset"])
    assert fresh["rewind"] == {"points": 2, "evals": 2, "exams": 2, "asked": None, "saved": 2}
    assert fresh["points"]["step"] == fresh["evals"]["step"] == []
    assert _read(client, "metrics", run)["points"]["step"] == [1, 2]


def test_a_studio_that_was_restarted_goes_on_where_the_page_was(workspace: Workspace, run: RunDir) -> None:
    run.append_event(LogEvent(step=1, loss=1.0))
    seen = run.events_file.stat().st_size
    run.append_event(LogEvent(step=2, loss=2.0))
    fresh = routes.metrics(run, seen, Watched())
    # Without a memory of what it sent it repeats the block, and says from where on.
    page = {1: 1.0} if fresh["rewind"]["points"] == 1 else {}
    page |= dict(zip(fresh["points"]["step"], fresh["points"]["loss"], strict=True))
    assert page == {1: 1.0, 2: 2.0}
    assert fresh["offset"] == run.events_file.stat().st_size


def test_events_that_were_replaced_by_fewer_start_over(run: RunDir) -> None:
    watched = Watched()
    for step in (1, 2, 3):
        run.append_event(LogEvent(step=step, loss=1.0))
    before = routes.metrics(run, 0, watched)["offset"]
    run.events_file.unlink()
    run.append_event(LogEvent(step=9, loss=2.0))
    again = routes.metrics(run, before, watched)
    assert again["offset"] < before
    assert again["points"]["step"] == [9]


def test_a_curve_of_any_length_stays_of_bounded_size() -> None:
    table = Table(("loss",))
    for step in range(ROWS_KEPT + 1):
        table.add(LogEvent.model_construct(step=step, loss=1.0), step + 1)
    assert len(table) == ROWS_KEPT // 2 + 1
    columns, rewind = table.since(ROWS_KEPT - 1, ROWS_KEPT + 1)
    assert (len(columns["step"]), rewind) == (len(table), -1)
    assert table.since(ROWS_KEPT + 1, ROWS_KEPT + 1)[1] is None


def test_watchers_share_one_reading(client: TestClient, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append_event(LogEvent(step=1, loss=1.0))
    asked: list[int] = []
    read_lines = RunDir.read_lines

    def counting(self: RunDir, offset: int = 0, limit: int = 1) -> tuple[list[bytes], int]:
        asked.append(offset)
        return read_lines(self, offset, limit)

    monkeypatch.setattr(RunDir, "read_lines", counting)
    size = run.events_file.stat().st_size
    for _ in range(30):
        assert _read(client, "metrics", run)["points"]["loss"] == [1.0]
    assert asked.count(0) == 1
    assert set(asked) <= {0, size}


def test_the_coach_speaks_of_a_broken_curve_in_the_language_of_the_page(client: TestClient, run: RunDir) -> None:
    for step in range(1, 20):
        run.append_event(LogEvent(step=step, loss=2.0 if step < 19 else float("nan"), learning_rate=3e-4))
    (note,) = _read(client, "notes", run)["notes"]
    assert (note["kind"], note["level"], note["step"]) == ("nan", "error", 19)
    assert note["changes"] == {"train.learning_rate": 1e-4}
    client.cookies.set("studio_lang", "zh-CN")
    (chinese,) = _read(client, "notes", run)["notes"]
    assert "19" in chinese["message"]
    assert "loss" not in chinese["message"]


def test_two_lines_of_one_step_are_one_point(client: TestClient, run: RunDir) -> None:
    run.append_event(LogEvent(step=7, loss=0.5))
    run.append_event(LogEvent(step=7, grad_norm=1.25))
    points = _read(client, "metrics", run)["points"]
    assert (points["step"], points["loss"], points["grad_norm"]) == ([7], [0.5], [1.25])


def test_torn_foreign_and_unknown_lines_are_left_out(client: TestClient, run: RunDir) -> None:
    run.append_event(LogEvent(step=1, loss=float("nan")))
    with run.events_file.open("ab") as file:
        file.write(b'{"type":"from_the_future","step":2}\nnot json\n{"type":"log","step":3,"lo')
    found = _read(client, "metrics", run)
    assert found["points"]["step"] == [1]
    assert found["points"]["loss"] == [None]
    with run.events_file.open("ab") as file:
        file.write(b'ss":0.25}\n')
    assert _read(client, "metrics", run, found["offset"])["points"]["loss"] == [0.25]


def test_metrics_carry_phases_counts_and_status(client: TestClient, run: RunDir) -> None:
    run.append_event(PhaseEvent(name="load"))
    run.append_event(CountsEvent(rows_read=9, conversations=8, tokens=70, trained_tokens=30, packs=8, updates=4))
    run.append_event(EvalEvent(step=4, eval_loss=0.75))
    error = RunError(kind="memory", message="too big", hint="shrink it")
    run.write_status(Status(state=RunState.FAILED, phase="train", step=3, max_steps=4, exit_code=5, error=error))
    found = _read(client, "metrics", run)
    assert [phase["name"] for phase in found["phases"]] == ["load"]
    assert found["counts"]["updates"] == 4
    assert found["evals"] == {"step": [4], "eval_loss": [0.75]}
    assert found["status"]["error"]["hint"] == "shrink it"
    assert found["status"]["step"] == 3
    assert found["status"]["name"] == "first"


def test_fifty_thousand_points_arrive_in_compact_parts(client: TestClient, run: RunDir) -> None:
    lines = [LogEvent(step=step, loss=1.0, t=0).model_dump_json() for step in range(1, 50_001)]
    run.events_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    steps: list[int] = []
    offset, more = 0, True
    while more:
        part = _read(client, "metrics", run, offset)
        assert part["offset"] > offset
        steps += part["points"]["step"]
        offset, more = part["offset"], part["more"]
    assert steps == list(range(1, 50_001))


def test_samples_keep_text_as_it_is(client: TestClient, run: RunDir) -> None:
    answer = '<img src=x onerror="x"> ${1+1} {{x}} 丹炉'
    run.append_event(SampleEvent(index=0, prompt="who?", answer=answer, reason="start", step=0))
    found = _read(client, "samples", run)
    assert found["samples"][0]["answer"] == answer
    assert _read(client, "samples", run, found["offset"])["samples"] == []


def test_log_reads_on_and_never_cuts_a_character(client: TestClient, run: RunDir) -> None:
    whole = "载入模型 ok\n".encode()
    run.log_file.write_bytes(whole[:4])
    first = _read(client, "log", run)
    assert first["text"] == "载"
    run.log_file.write_bytes(whole)
    second = _read(client, "log", run, first["offset"])
    assert first["text"] + second["text"] == whole.decode()


def test_long_log_shows_its_end(client: TestClient, run: RunDir) -> None:
    run.log_file.write_text("old\n" * 100_000 + "newest\n", encoding="utf-8")
    found = _read(client, "log", run)
    assert found["skipped"]
    assert len(found["text"]) <= 64 * 1024
    assert found["text"].endswith("newest\n")
    assert found["offset"] == run.log_file.stat().st_size


def test_earlier_parts_of_a_log_begin_with_a_whole_line(client: TestClient, run: RunDir) -> None:
    lines = [f"行 {number}\n" for number in range(20_000)]
    run.log_file.write_text("".join(lines), encoding="utf-8")
    text, first = "", run.log_file.stat().st_size
    while first:
        part = client.get("/api/log", params={"run": run.id, "before": first}).json()
        assert part["first"] < first
        text, first = part["text"] + text, part["first"]
    assert text == "".join(lines)


def test_a_line_longer_than_a_part_of_the_log_is_read_over(client: TestClient, run: RunDir) -> None:
    run.log_file.write_text("first\n" + "x" * 200_000 + "\nlast\n", encoding="utf-8")
    text, first = "", run.log_file.stat().st_size
    while first:
        part = client.get("/api/log", params={"run": run.id, "before": first}).json()
        assert part["first"] < first
        text, first = part["text"] + text, part["first"]
    assert text == run.log_file.read_text(encoding="utf-8")


def test_the_log_is_downloaded_whole_under_the_name_of_the_run(client: TestClient, run: RunDir) -> None:
    assert client.get("/api/log/file", params={"run": run.id}).status_code == 404
    run.log_file.write_bytes("a\n丹炉\n".encode() * 100_000)
    answer = client.get("/api/log/file", params={"run": run.id})
    assert answer.content == run.log_file.read_bytes()
    assert answer.headers["content-disposition"].startswith("attachment")
    assert run.id in answer.headers["content-disposition"]


def test_the_answers_to_a_file_of_prompts_are_downloaded(
    client: TestClient, workspace: Workspace, run: RunDir, tmp_path: Path
) -> None:
    table = tmp_path / "answers 回答.jsonl"
    settings = {"prompts": "p.txt", "model": "crucible/ember", "out": str(table)}
    asked = {"run": workspace.create_run(build(AnswersConfig, settings)).id}
    assert client.get("/api/answers", params=asked).status_code == 404
    table.write_text("{}\n", encoding="utf-8")
    answer = client.get("/api/answers", params=asked)
    assert answer.content == table.read_bytes()
    assert answer.headers["content-disposition"].startswith("attachment")
    assert client.get("/api/answers", params={"run": run.id}).status_code == 404


def test_a_log_that_became_shorter_starts_over(client: TestClient, run: RunDir) -> None:
    run.log_file.write_text("new", encoding="utf-8")
    found = _read(client, "log", run, 500)
    assert found["restart"]
    assert found["text"] == "new"


def test_report_is_null_until_it_is_there(client: TestClient, run: RunDir) -> None:
    assert _read(client, "report", run) is None
    run.report_file.write_text('{"verdict": {"pass', encoding="utf-8")
    assert _read(client, "report", run) is None
    run.report_file.write_text(json.dumps({"verdict": {"passed": True}}), encoding="utf-8")
    assert _read(client, "report", run) == {"verdict": {"passed": True}}


def test_runs_are_listed_with_true_states_newest_first(client: TestClient, workspace: Workspace, run: RunDir) -> None:
    second = workspace.create_run(run.config().model_copy(update={"name": "<b>second</b>"}))
    second.report_file.write_text(json.dumps({"verdict": {"passed": False}}), encoding="utf-8")
    broken = workspace.runs / "00000000-000000_broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("kind: train\nnonsense: [", encoding="utf-8")
    listed = client.get("/api/runs").json()
    assert {line["name"] for line in listed} == {"<b>second</b>", "first", "00000000-000000_broken"}
    by_name = {line["name"]: line for line in listed}
    assert by_name["first"]["state"] == "queued"
    assert by_name["first"]["verdict_passed"] is None
    assert by_name["<b>second</b>"]["verdict_passed"] is False
    assert by_name["first"]["model"] == "model"
    assert listed[-1]["kind"] == "unreadable"
    assert client.get("/api/runs?live=1").json() == []


def test_dataset_of_a_run_has_counts_and_examples(client: TestClient, workspace: Workspace) -> None:
    talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Nova."}]
    rows = [{"messages": talk, "origin": "identity"}, {"messages": talk, "origin": "replay"}]
    spec = parse_spec({"name": "Nova", "author": "Class 3B"})
    info = DatasetInfo(kind="identity", identity=spec)
    saved = DatasetStore(workspace.datasets).save("nova", rows, [], info)
    found = _read(client, "dataset", _new_run(workspace, "with", saved.name))
    assert found["origins"] == {"identity": 1, "replay": 1}
    assert found["info"]["identity"]["name"] == "Nova"
    assert found["examples"] == [talk]


@pytest.mark.parametrize("dataset", ["../../secret", "/etc/passwd", "gone"])
def test_dataset_outside_the_workspace_is_not_read(client: TestClient, workspace: Workspace, dataset: str) -> None:
    assert _read(client, "dataset", _new_run(workspace, "odd", dataset)) is None


def test_health(client: TestClient, workspace: Workspace) -> None:
    assert client.get("/api/health").json()["ok"] is True
