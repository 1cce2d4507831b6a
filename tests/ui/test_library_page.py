"""The library in the browser's server: reads, downloads, and handlers that trust nothing the page sends."""

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from building import built, context
from fastapi import FastAPI
from gradio.context import LocalContext
from starlette.testclient import TestClient

from studio import labels, library, runner
from studio.config import MergeConfig, RunConfig
from studio.events import LogEvent, RunState, SampleEvent
from studio.records import DatasetInfo, DatasetStore
from studio.rundir import RunDir
from studio.schema import ConfigError, build
from studio.ui import library_routes
from studio.ui.context import Context, Refused
from studio.ui.queue_view import name_of
from studio.ui.run_lines import summary
from studio.ui.tabs import monitor, monitor_library, train
from studio.ui.tabs.train_preview import display_name
from studio.workspace import Workspace

HOSTILE = '<img src=x onerror="alert(1)"> ${x} {{y}} 丹炉'
BAD_IDS = ["", "gone", "..", "../..", "/etc", ".trash", "<b>", "last"]


@pytest.fixture
def client(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(library, "REFRESH_S", 0)
    app = FastAPI()
    app.include_router(library_routes.build(workspace))
    with TestClient(app) as opened:
        yield opened


@pytest.fixture
def ctx(workspace: Workspace) -> Context:
    return context(workspace)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the visitor is told."""
    told: list[str] = []
    for kind in ("Warning", "Info"):
        monkeypatch.setattr(gr, kind, lambda text, duration=0: told.append(text))
    return told


def _new(workspace: Workspace, name: str, dataset: str = "rows", **more: Any) -> RunDir:
    data = {"name": name, "model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": dataset}}
    return workspace.create_run(build(RunConfig, data | more))


def _event(**data: Any) -> gr.EventData:
    return gr.EventData(None, data)


# ---- reads


def test_the_list_sends_what_changed_only(client: TestClient, workspace: Workspace) -> None:
    first, second = _new(workspace, "a"), _new(workspace, HOSTILE)
    whole = client.get("/api/library").json()
    assert (whole["reset"], whole["more"]) == (True, False)
    assert {line["name"] for line in whole["runs"]} == {"a", HOSTILE}
    labels.tag(first, ["x"])
    query = {"epoch": whole["epoch"], "after": whole["version"], "at": "1"}
    news = client.get("/api/library", params=query).json()
    assert [(line["id"], line["tags"]) for line in news["runs"]] == [(first.id, ["x"])]
    assert second.id not in json.dumps(news)


@pytest.mark.parametrize("after", ["-1", "x", "9" * 400, "", "²"])
def test_odd_versions_get_an_answer(client: TestClient, workspace: Workspace, after: str) -> None:
    _new(workspace, "a")
    assert len(client.get("/api/library", params={"after": after}).json()["runs"]) == 1


def test_runs_are_compared_with_labels_in_the_visitors_language(client: TestClient, workspace: Workspace) -> None:
    runs = [_new(workspace, "a", train={"learning_rate": rate}) for rate in (1e-4, 2e-4)]
    for run in runs:
        run.append_event(SampleEvent(index=0, prompt=HOSTILE, answer="x", reason="end", step=3))
    found = client.get("/api/compare", params={"run": [run.id for run in runs]}).json()
    assert [(row["path"], row["label"]) for row in found["fields"]] == [("train.learning_rate", "Learning rate")]
    assert found["prompts"][0]["prompt"] == HOSTILE
    client.cookies.set("studio_lang", "zh-CN")
    found = client.get("/api/compare", params={"run": [run.id for run in runs]}).json()
    assert found["fields"][0]["label"] == "学习率"


@pytest.mark.parametrize(("others", "status"), [([], 422), (["gone"], 404), (["../x"], 404), (["a\x00"], 404)])
def test_what_cannot_be_compared_is_said(
    client: TestClient, workspace: Workspace, others: list[str], status: int
) -> None:
    run = _new(workspace, "a")
    assert client.get("/api/compare", params={"run": [run.id, *others]}).status_code == status


@pytest.mark.parametrize(("kind", "media"), [("html", "text/html"), ("md", "text/markdown")])
def test_a_card_is_a_download_that_no_browser_opens_as_our_page(
    client: TestClient, workspace: Workspace, kind: str, media: str
) -> None:
    run = _new(workspace, HOSTILE)
    run.append_event(LogEvent(step=1, loss=1.0))
    answer = client.get("/api/card", params={"run": run.id, "format": kind})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media)
    assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert kind == "md" or "<img" not in answer.text  # in Markdown it stands in a block of code
    assert (run.path / f"card.{kind}").read_text(encoding="utf-8") == answer.text


def test_a_card_speaks_the_visitors_language(client: TestClient, workspace: Workspace) -> None:
    run = _new(workspace, "a")
    client.cookies.set("studio_lang", "zh-CN")
    assert "运行卡片" in client.get("/api/card", params={"run": run.id}).text


def test_a_card_comes_from_a_workspace_that_cannot_be_written(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _new(workspace, "a")

    def full(path: Any, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library_routes, "write_atomic", full)
    assert run.id in client.get("/api/card", params={"run": run.id}).text
    assert not (run.path / "card.html").exists()


@pytest.mark.parametrize("run_id", [bad for bad in BAD_IDS if bad != "last"])
def test_no_card_of_what_is_no_run(client: TestClient, workspace: Workspace, run_id: str) -> None:
    _new(workspace, "a")
    assert client.get("/api/card", params={"run": run_id}).status_code == 404


def test_every_list_calls_a_run_by_its_title(workspace: Workspace) -> None:
    run = _new(workspace, "own name")
    assert (summary(run)["name"], display_name(run), name_of(run)) == ("own name",) * 3
    labels.rename(run, HOSTILE)
    assert (summary(run)["name"], display_name(run), name_of(run)) == (HOSTILE,) * 3


# ---- orders


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"do": "format", "runs": ["x"]},
        {"do": "delete", "runs": []},
        {"do": "delete", "runs": "all"},
        {"do": "delete"},
        {"do": "tag", "runs": [1]},
        {"do": "rename", "runs": ["x"], "title": ["y"]},
    ],
)
def test_orders_of_another_shape_are_refused(ctx: Context, order: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="does not know"):
        monitor_library.carry_out(ctx)("", _event(**order))


@pytest.mark.parametrize("run_id", BAD_IDS)
def test_only_exact_ids_are_deleted(ctx: Context, workspace: Workspace, run_id: str, said: list[str]) -> None:
    run = _new(workspace, "a")
    monitor_library.carry_out(ctx)("", _event(do="delete", runs=[run_id]))
    assert run.path.is_dir()
    assert len(said) == 1


def test_titles_and_tags_are_written(ctx: Context, workspace: Workspace) -> None:
    runs = [_new(workspace, "a"), _new(workspace, "b")]
    change = monitor_library.carry_out(ctx)
    change("", _event(do="rename", runs=[runs[0].id], title=HOSTILE))
    change("", _event(do="tag", runs=[run.id for run in runs], add=["one", "two"]))
    change("", _event(do="tag", runs=[runs[1].id], remove=["ONE"]))
    assert labels.read_labels(runs[0]) == labels.Labels(title=HOSTILE, tags=["one", "two"])
    assert labels.read_labels(runs[1]).tags == ["two"]
    with pytest.raises(ConfigError, match="at most 120"):
        change("", _event(do="rename", runs=[runs[0].id], title="x" * 200))


def test_deleting_selects_another_run_when_the_selected_one_is_gone(ctx: Context, workspace: Workspace) -> None:
    runs = [_new(workspace, name) for name in "abc"]
    change = monitor_library.carry_out(ctx)
    left = change(runs[0].id, _event(do="delete", runs=[runs[0].id]))
    assert left in (runs[1].id, runs[2].id)
    assert isinstance(change(left, _event(do="delete", runs=[({runs[1].id, runs[2].id} - {left}).pop()])), dict)
    assert change(left, _event(do="delete", runs=[left])) == ""


@pytest.mark.usefixtures("engine")
def test_a_live_run_is_never_deleted(ctx: Context, workspace: Workspace, said: list[str]) -> None:
    run = runner.submit(workspace, _new(workspace, "template").config())
    other = _new(workspace, "b")
    monitor_library.carry_out(ctx)(other.id, _event(do="delete", runs=[run.id, other.id]))
    assert run.state().live
    assert not other.path.exists()
    assert "cannot be deleted; stop it first" in said[0]


def test_a_refusal_is_told_in_the_visitors_language(ctx: Context, workspace: Workspace, said: list[str]) -> None:
    parent = _new(workspace, "a")
    parent.adapter.mkdir()
    child = _new(workspace, "b", model={"model_name_or_path": "crucible/ember", "adapter": str(parent.adapter)})
    request = type("Visitor", (), {"cookies": {"studio_lang": "zh-CN"}})
    token = LocalContext.request.set(request)  # type: ignore[arg-type]
    try:
        monitor_library.carry_out(ctx)("", _event(do="delete", runs=[parent.id]))
    finally:
        LocalContext.request.reset(token)
    assert said == [f"运行 {parent.id} 不能删除：运行 {child.id} 是接着它训练的，请先删除后者。"]


def _dataset(workspace: Workspace) -> str:
    talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Nova."}]
    return DatasetStore(workspace.datasets).save("rows", [{"messages": talk}], [], DatasetInfo(kind="upload")).name


@pytest.mark.usefixtures("engine")
def test_again_is_the_same_configuration_in_a_new_run(ctx: Context, workspace: Workspace, said: list[str]) -> None:
    run = _new(workspace, "a", _dataset(workspace), train={"learning_rate": 0.00077}, verdict={"enabled": False})
    run.data_file.write_text(json.dumps([["rows", "0" * 64]]), encoding="utf-8")
    made, question = monitor_library.again(ctx)(_event(run=run.id))
    assert question is None
    fresh = workspace.run(made)
    assert fresh.id != run.id
    assert fresh.config() == run.config()
    assert fresh.state() in (RunState.STARTING, RunState.RUNNING)
    assert [text for text in said if "has changed since run" in text]


def test_a_merge_is_not_run_again(ctx: Context, workspace: Workspace) -> None:
    merge = workspace.create_run(build(MergeConfig, {"base": "b", "adapter": "a", "out": "o"}))
    with pytest.raises(ConfigError, match="is no training"):
        monitor_library.again(ctx)(_event(run=merge.id))


@pytest.mark.parametrize("run_id", ["", "gone", "../.."])
def test_unknown_runs_are_refused(ctx: Context, run_id: str) -> None:
    with pytest.raises(Refused):
        monitor_library.again(ctx)(_event(run=run_id))
    with pytest.raises(Refused):
        monitor_library.open_in_form(ctx, lambda run: [])(_event(run=run_id))


def test_the_settings_of_a_run_fill_the_form_of_the_train_tab(workspace: Workspace) -> None:
    run = _new(workspace, "a", train={"learning_rate": 0.00077})

    made = built(lambda: _page(workspace))
    assert made.recall is not None
    assert made.form is not None
    fill, filled = made.recall
    tabs, *values = monitor_library.open_in_form(made, fill)(_event(run=run.id))
    assert len(values) == len(filled)
    place = [spec.path for spec in made.form.specs].index("train.learning_rate")
    shown = values[place]
    assert "0.00077" in str(shown["value"] if isinstance(shown, dict) else shown)


def _page(workspace: Workspace) -> Context:
    with gr.Blocks() as demo:
        run, dataset = gr.HTML(), gr.Textbox()
        with gr.Tabs() as tabs:
            made = Context(workspace, demo, tabs, run, dataset)
            for name in ("train", "monitor"):
                made.tab[name] = gr.Tab(name, id=name)
            with made.tab["train"]:
                train.build(made)
            with made.tab["monitor"]:
                monitor.build(made)
            return made
