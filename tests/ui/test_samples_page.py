"""What the page says of a verdict, and the clone it offers: true to the report, checked on the server."""

import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from building import context
from fastapi import FastAPI
from starlette.testclient import TestClient

from studio import processes, runner
from studio.config import MergeConfig, RunConfig
from studio.events import Launch, RunState, Status
from studio.rundir import RunDir
from studio.schema import ConfigError, build
from studio.ui import queue_routes
from studio.ui.context import Context, Refused
from studio.ui.tabs import monitor_actions, starting
from studio.workspace import Workspace

TOO_FEW = {
    "kind": "too_few_updates",
    "message": "It was updated only 8 times, too few to learn this.",
    "hint": "Give it about 64 updates: train.num_train_epochs 24.",
    "changes": {"train.num_train_epochs": 24},
}


@pytest.fixture
def ctx(workspace: Workspace) -> Context:
    return context(workspace)


@pytest.fixture
def page(workspace: Workspace) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(queue_routes.build(workspace))
    with TestClient(app) as opened:
        yield opened


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    data = {"name": "nova", "model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}}
    return workspace.create_run(build(RunConfig, data))


@pytest.fixture
def merge(workspace: Workspace) -> RunDir:
    return workspace.create_run(build(MergeConfig, {"base": "b", "adapter": "a", "out": "o"}))


def told(page: TestClient, run: RunDir, **report: Any) -> Any:
    run.report_file.write_text(json.dumps(report), encoding="utf-8")
    return page.get("/api/diagnosis", params={"run": run.id}).json()


def offer(page: TestClient, run: RunDir, changes: Any) -> Any:
    text = changes if isinstance(changes, str) else json.dumps(changes)
    return page.get("/api/clone", params={"run": run.id, "changes": text}).json()


def clone(ctx: Context, run: str, changes: Any, **more: Any) -> Any:
    event: Any = SimpleNamespace(_data={"run": run, "changes": changes, **more})
    return monitor_actions.clone(ctx)(event)


def test_a_run_without_a_report_means_nothing(page: TestClient, run: RunDir) -> None:
    assert page.get("/api/diagnosis", params={"run": run.id}).json() == {"diagnosis": None, "best": None}
    assert page.get("/api/diagnosis", params={"run": "../x"}).status_code == 404


def test_the_diagnosis_names_the_change_by_its_label(page: TestClient, run: RunDir) -> None:
    found = told(page, run, diagnosis=TOO_FEW)["diagnosis"]
    assert (found["kind"], found["message"]) == (TOO_FEW["kind"], TOO_FEW["message"])
    assert found["hint"] == "Give it about 64 updates: Epochs 24."
    [change] = found["differences"]
    assert change == {"field": "train.num_train_epochs", "label": "Epochs", "old": "3", "new": "24"}
    page.cookies.set("studio_lang", "zh-CN")
    [chinese] = told(page, run, diagnosis=TOO_FEW)["diagnosis"]["differences"]
    assert chinese["label"] != "Epochs"


@pytest.mark.parametrize("changes", [{"train.gone": 1}, {"train.num_train_epochs": "many"}, ["x"], {}])
def test_a_remedy_that_cannot_be_used_is_not_offered(page: TestClient, run: RunDir, changes: Any) -> None:
    found = told(page, run, diagnosis=TOO_FEW | {"changes": changes})["diagnosis"]
    assert found["message"] == TOO_FEW["message"]
    assert (found["changes"], found["differences"]) == ({}, [])


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"step": "x"}', '{"path": "adapter"}', "null"])
def test_a_broken_best_file_is_no_best_checkpoint(page: TestClient, run: RunDir, broken: str) -> None:
    run.best_file.write_text(broken, encoding="utf-8")
    assert told(page, run)["best"] is None


def test_the_best_checkpoint_is_named_while_it_is_there(page: TestClient, run: RunDir) -> None:
    run.best_file.write_text(json.dumps({"step": 40, "path": "adapter", "why": "So."}), encoding="utf-8")
    assert told(page, run)["best"] is None
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert told(page, run)["best"] == {"step": 40, "why": "So."}


def test_a_clone_is_shown_before_it_is_made(page: TestClient, run: RunDir, workspace: Workspace) -> None:
    found = offer(page, run, {"lr": "1e-3", "train.num_train_epochs": 9})
    assert (found["name"], found["waits"]) == ("nova_v2", False)
    assert {(line["field"], line["new"]) for line in found["differences"]} == {
        ("train.learning_rate", "0.001"),
        ("train.num_train_epochs", "9"),
    }
    assert [one.id for one in workspace.list_runs()] == [run.id]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ([1], "no training"),
        ({"train.num_train_epochs": 3}, "already"),
        ({"train.nope": 1}, "nope"),
        ({"train.learning_rate": -1}, "learning_rate"),
    ],
)
def test_a_clone_that_cannot_be_is_refused_in_a_sentence(
    page: TestClient, run: RunDir, merge: RunDir, changes: Any, said: str
) -> None:
    found = offer(page, merge if said == "no training" else run, {"lr": 1} if said == "no training" else changes)
    assert list(found) == ["problem"]
    assert said in found["problem"]


@pytest.mark.parametrize(("name", "following"), [("a", "a_v2"), ("a_v2", "a_v3"), ("a_v9", "a_v10"), ("v2", "v2_v2")])
def test_clones_are_counted(name: str, following: str) -> None:
    assert monitor_actions.next_name(name) == following


def test_cloning_starts_the_same_run_with_the_change(
    ctx: Context, run: RunDir, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting.train_preview, "check", lambda config, workspace: None)
    monkeypatch.setattr(runner, "look_after", lambda workspace: False)
    run.write_launch(Launch(argv=["engine"], **processes.record(os.getpid())))
    run.write_status(Status(state=RunState.RUNNING))
    new, question = clone(ctx, run.id, {"train.num_train_epochs": 24})
    assert question is None
    made = workspace.run(new)
    assert made.state() is RunState.QUEUED  # the original is at work
    before, after = run.config(), made.config()
    assert isinstance(before, RunConfig)
    assert isinstance(after, RunConfig)
    assert after.name == "nova_v2"
    assert after.train.num_train_epochs == 24
    same = after.model_copy(
        update={"name": before.name, "train": after.train.model_copy(update={"num_train_epochs": 3})}
    )
    assert same == before


def test_a_yes_to_the_question_starts_the_same_clone(
    ctx: Context, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def ask(workspace: Workspace, config: RunConfig, *, release: bool) -> Any:
        asked.append(release)
        return run if release else {"model": "m", "held": 1, "now": 2.0}

    monkeypatch.setattr(starting, "start_or_ask", ask)
    _, question = clone(ctx, run.id, {"lr": 1e-3})
    assert question["again"] == {"run": run.id, "changes": {"lr": 1e-3}}
    assert clone(ctx, release=True, **question["again"]) == (run.id, None)
    assert clone(ctx, release="yes", **question["again"])[1] == question  # nothing but true is a yes
    assert asked == [False, True, False]


@pytest.mark.parametrize(
    ("run_id", "changes"),
    [("", {"lr": 1e-3}), ("gone", {"lr": 1e-3}), ("nova", None), ("nova", []), ("nova", {}), ("nova", {"x.y": 1})],
)
def test_a_clone_nobody_can_make_is_refused(
    ctx: Context, run: RunDir, workspace: Workspace, run_id: str, changes: Any
) -> None:
    with pytest.raises((Refused, ConfigError)):
        clone(ctx, run_id, changes)
    assert [one.id for one in workspace.list_runs()] == [run.id]


def test_a_merge_is_not_cloned(ctx: Context, merge: RunDir) -> None:
    with pytest.raises(Refused, match="no training"):
        clone(ctx, merge.id, {"lr": 1e-3})
