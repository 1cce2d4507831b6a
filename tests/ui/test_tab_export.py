"""The Export tab's handlers: what can be merged, what is refused, what is started."""

import json
from pathlib import Path
from typing import Any

import pytest
from building import context

from studio.config import MergeConfig, RunConfig
from studio.events import Launch, RunState, Status
from studio.rundir import RunDir
from studio.schema import build
from studio.ui.tabs.export import Handlers, mergeable, sources
from studio.workspace import Workspace

CHOICES = ("original", "bfloat16", "2GB")


def add_run(workspace: Workspace, name: str, state: RunState = RunState.FINISHED, *parts: str) -> RunDir:
    run = workspace.create_run(build(RunConfig, {"name": name, "model_path": "crucible/ember", "dataset": "d"}))
    for part in parts:
        (run.path / part).mkdir(parents=True)
        (run.path / part / "adapter_config.json").write_text("{}", encoding="utf-8")
        step = int(part.rpartition("-")[2]) if "-" in part else 0
        (run.path / part / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here", started_at=0.0))
    run.write_status(Status(state=state))
    return run


@pytest.fixture
def handlers(workspace: Workspace) -> Handlers:
    return Handlers(context(workspace))


def test_final_adapter_first_then_checkpoints_newest_first(workspace: Workspace) -> None:
    run = add_run(workspace, "r", RunState.FINISHED, "checkpoints/checkpoint-9", "checkpoints/checkpoint-10", "adapter")
    (run.checkpoints / "checkpoint-11").mkdir()  # half-written
    assert sources(run) == ["adapter", "checkpoint-10", "checkpoint-9"]


def test_only_runs_with_something_to_merge_are_offered(workspace: Workspace) -> None:
    done = add_run(workspace, "done", RunState.FINISHED, "adapter")
    stopped = add_run(workspace, "stopped", RunState.STOPPED, "checkpoints/checkpoint-5")
    failed = add_run(workspace, "failed", RunState.FAILED, "checkpoints/checkpoint-7")
    add_run(workspace, "nothing")
    assert {run_id for _, run_id in mergeable(workspace)} == {done.id, stopped.id, failed.id}


def test_empty_workspace_is_an_empty_state(handlers: Handlers) -> None:
    *_, panel, form, nothing = handlers.opened("", None)
    assert panel == {"run": None, "empty": True}
    assert form["visible"] is False
    assert nothing == {"empty": True}


def test_merge_starts_a_run_with_the_complete_configuration(
    handlers: Handlers, workspace: Workspace, engine: None
) -> None:
    run = add_run(workspace, "r", RunState.FINISHED, "adapter")
    started = workspace.run(handlers.merge(run.id, "adapter", "dequantized", "float32", "500 mb", "My Model")["run"])
    config = started.config()
    assert isinstance(config, MergeConfig)
    assert config.adapter == str(run.adapter)
    assert config.base == "crucible/ember"
    assert Path(config.out).parent == workspace.exports
    assert (config.merge_base, config.dtype, config.max_shard_size) == ("dequantized", "float32", "500MB")
    assert handlers.opened("", None)[3]["run"] == started.id  # a reload finds the merge again
    another = workspace.run(handlers.merge(run.id, "adapter", *CHOICES, "Another")["run"])
    assert another.state() is RunState.QUEUED


@pytest.mark.parametrize("name", ["../../outside", "/etc/x", "a/b", "$(id)", "<b>x</b>", "名字 🜂"])
def test_results_stay_inside_the_workspace(handlers: Handlers, workspace: Workspace, name: str, engine: None) -> None:
    run = add_run(workspace, "r", RunState.FINISHED, "adapter")
    config = workspace.run(handlers.merge(run.id, "adapter", *CHOICES, name)["run"]).config()
    assert isinstance(config, MergeConfig)
    assert Path(config.out).resolve().parent == workspace.exports.resolve()


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("checkpoint-7", (*CHOICES, "x"), "nothing to merge"),
        ("../../adapter", (*CHOICES, "x"), "nothing to merge"),
        (None, (*CHOICES, "x"), "nothing to merge"),
        ("adapter", (*CHOICES, " "), "Type a name"),
        ("adapter", (*CHOICES, "taken"), "exists already"),
        ("adapter", ("original", "bfloat16", "much", "x"), "max_shard_size"),
        ("adapter", ("sideways", "bfloat16", "2GB", "x"), "merge_base"),
    ],
)
def test_refusals(handlers: Handlers, workspace: Workspace, source: Any, options: Any, words: str) -> None:
    run = add_run(workspace, "r", RunState.FINISHED, "adapter")
    (workspace.exports / "taken").mkdir()
    with pytest.raises(Exception, match=words):
        handlers.merge(run.id, source, *options)
    assert [found.id for found in workspace.list_runs()] == [run.id]


def test_check_marks_name_and_size(handlers: Handlers, workspace: Workspace) -> None:
    (workspace.exports / "taken").mkdir()
    answers = handlers.check("run", "adapter", "original", "bfloat16", "2 parsecs", "taken")
    assert [answer["is_valid"] for answer in answers] == [True, True, True, True, False, False]
    assert "exists already" in answers[-1]["message"]
    assert all(answer["is_valid"] for answer in handlers.check("run", "adapter", *CHOICES, "free"))


def test_suggested_name_is_free(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace, "r", RunState.FINISHED, "adapter")
    (workspace.exports / "r-merged").mkdir()
    assert handlers.choose(run.id)[1] == "r-merged-2"


def test_the_best_step_is_chosen_by_default_and_marked(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace, "r", RunState.FINISHED, "checkpoints/checkpoint-9", "checkpoints/checkpoint-10", "adapter")
    assert handlers.choose(run.id)[0]["value"] == "adapter"
    for path, chosen in (("checkpoints/checkpoint-9", "checkpoint-9"), ("adapter", "adapter"), ("model", "adapter")):
        run.best_file.write_text(json.dumps({"step": 9, "path": path, "why": ""}), encoding="utf-8")
        shown = handlers.choose(run.id)[0]
        assert shown["value"] == chosen
        marked = [name for label, name in shown["choices"] if "best step" in label]
        assert marked == (["checkpoint-9"] if chosen == "checkpoint-9" else [])
