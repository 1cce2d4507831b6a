"""The card of a run that ran out of memory: what the page is told, and the click that changes and resumes the run."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from building import context
from fastapi import FastAPI
from fastapi.testclient import TestClient

from studio import changes, chat_memory, processes, runner
from studio.config import RunConfig
from studio.events import Launch, RunError, RunState, Status
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.ui.context import Refused
from studio.ui.doctor_routes import build as doctor_routes
from studio.ui.tabs import memory_card
from studio.workspace import Workspace

GB = 1 << 30
STEP = {"phase": "train", "activity": "step", "bound": "machine", "rows": 16, "length": 512, "step": 20}
SIZES = {"requested_bytes": 2 * GB, "available_bytes": GB, "used_bytes": 2 * GB, "limit_bytes": 4 * GB}


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    """A run of the built-in model that ran out of memory after its checkpoint at step 20."""
    rows = workspace.path / "rows.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello " * 700}]
    rows.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    layer = {
        "method": "lora",
        "model.model_name_or_path": "crucible/ember",
        "data.dataset": str(rows),
        changes.BATCH: 16,
        changes.ACCUMULATION: 2,
    }
    made = workspace.create_run(build(RunConfig, merge(RunConfig, layer)))
    made.write_launch(Launch(argv=[], pid=1, create_time=0.0, host=socket.gethostname(), started_at=0))
    error = RunError(kind="memory", message="m", details=STEP | SIZES)
    made.write_status(Status(state=RunState.FAILED, phase="train", step=20, exit_code=5, error=error))
    checkpoint(made, 20)
    return made


def checkpoint(run: RunDir, step: int) -> None:
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")


def told(workspace: Workspace, run: RunDir, language: str = "en") -> Any:
    """What the page reads."""
    app = FastAPI()
    app.include_router(doctor_routes(workspace))
    answer = TestClient(app, cookies={"studio_lang": language}).get(f"/api/memory?run={run.id}")
    assert answer.status_code == 200
    return answer.json()


def click(workspace: Workspace, asked: Any) -> Any:
    """What the server answers when the page sends that."""
    return memory_card.treat(context(workspace))(SimpleNamespace(_data=asked))  # type: ignore[arg-type]


def test_the_page_is_told_what_was_lacking_and_what_would_help(workspace: Workspace, run: RunDir) -> None:
    found = told(workspace, run)
    assert (found["others"], found["checkpoint"]) == (GB, 20)
    assert {one["usable"] for one in found["remedies"]} == {3 * GB}
    assert (found["activity"], found["rows"], found["length"]) == ("step", 16, 512)
    first = found["remedies"][0]
    assert first["continues"]
    assert first["from_step"] == 20
    assert 0 < first["bytes"] <= 3 * GB
    labels = {change["field"]: change["label"] for one in found["remedies"] for change in one["changes"]}
    assert labels.get(changes.BATCH, "Batch size per device") != changes.BATCH
    chinese = {c["field"]: c["label"] for one in told(workspace, run, "zh-CN")["remedies"] for c in one["changes"]}
    assert chinese.keys() == labels.keys()
    assert all(chinese[field] != labels[field] for field in labels)


def test_other_runs_have_no_card(workspace: Workspace, run: RunDir) -> None:
    status = run.read_status()
    assert status is not None
    run.write_status(status.model_copy(update={"error": RunError(kind="disk", message="m")}))
    assert told(workspace, run) is None


def test_the_memory_that_a_chat_holds_is_asked_for_before_the_run_goes_on(
    workspace: Workspace, run: RunDir, engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 40, "pace": 0, "slow": 0}))
    chat = chat_memory.ChatHolder(**processes.record(2**22 + 1), port=5, base="some/Qwen-7B", memory_bytes=7 * GB)
    released: list[str] = []
    monkeypatch.setattr(runner, "needs_chat_memory", lambda *_: chat)
    monkeypatch.setattr(chat_memory, "release", lambda *_: released.append("chat") or [chat])
    first = next(one for one in told(workspace, run)["remedies"] if one["continues"])
    question = click(workspace, {"run": run.id, "key": first["key"]})
    assert (question["model"], question["held"]) == ("Qwen-7B", 7 * GB)
    assert run.state() is RunState.FAILED
    assert run.changes() == []
    assert released == []
    assert click(workspace, question["again"] | {"release": True}) is None
    assert released == ["chat"]
    while run.state().live:
        pass
    assert run.state() is RunState.FINISHED


def test_one_click_changes_the_run_and_it_goes_on(
    workspace: Workspace, run: RunDir, engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 40, "pace": 0, "slow": 0}))
    first = next(one for one in told(workspace, run)["remedies"] if one["continues"])
    before = run.config_file.read_bytes()
    click(workspace, {"run": run.id, "key": first["key"]})
    while run.state().live:
        pass
    assert run.state() is RunState.FINISHED
    config = run.config()
    assert isinstance(config, RunConfig)
    assert config.effective_batch_size == 32
    assert [(one.step, one.fields) for one in run.changes()] == [(20, first["set"])]
    assert run.config_file.read_bytes() == before
    assert told(workspace, run) is None
    with pytest.raises(Refused):  # pressed again in another tab
        click(workspace, {"run": run.id, "key": first["key"]})


@pytest.mark.parametrize("asked", [None, [], {}, {"run": "../x"}, {"run": 3}, {"key": "train.max_steps=1"}])
def test_only_what_is_offered_is_applied(workspace: Workspace, run: RunDir, asked: Any) -> None:
    if isinstance(asked, dict) and "key" in asked:
        asked["run"] = run.id
    with pytest.raises(Refused):
        click(workspace, asked)
    assert not run.changes_file.exists()


def test_what_begins_again_never_touches_the_run(workspace: Workspace, run: RunDir) -> None:
    again = [one for one in told(workspace, run)["remedies"] if not one["continues"]]
    for one in again:
        with pytest.raises(Refused):
            click(workspace, {"run": run.id, "key": one["key"]})
    assert again
    assert not run.changes_file.exists()


def test_the_script_and_its_texts_are_there() -> None:
    assets = Path(__file__).resolve().parents[2] / "assets"
    script = (assets / "ui" / "memorydoctor.js").read_text(encoding="utf-8")
    assert "innerHTML" not in script
    texts = json.loads((assets / "i18n" / "en.doctor.json").read_text(encoding="utf-8"))
    for activity in ("load", "tokenise", "step", "samples", "evaluation", "verdict", "save"):
        assert f"js.doctor.where.{activity}" in texts
