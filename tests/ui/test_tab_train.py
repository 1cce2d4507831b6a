"""The Train tab: what it says before the start is what runs, and exactly one run starts."""

import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from building import built, context

from studio import presets, runner
from studio.config import RunConfig
from studio.estimate import FEW_UPDATES
from studio.records import DatasetInfo, DatasetStore, IdentitySpec, build_identity
from studio.rundir import Workspace
from studio.schema import dump_yaml, load_yaml
from studio.ui.context import Refused
from studio.ui.tabs import train_preview as tp
from studio.ui.tabs.train import Handlers
from studio.ui.widgets.form import Form


@pytest.fixture(scope="module")
def form() -> Form:
    def make() -> Form:
        with gr.Blocks():
            form = Form(RunConfig, {tp.MODEL: [], tp.DATASET: []})
            form.place([spec.path for spec in form.specs])
        return form

    return built(make)


@pytest.fixture
def dataset(workspace: Workspace) -> str:
    spec = IdentitySpec(name="Nova", author="Class 3B", languages=("en",), rows_per_language=60)
    found = build_identity(spec)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    return DatasetStore(workspace.datasets).save("nova", found.rows, found.heldout, info).name


@pytest.fixture
def handlers(form: Form, workspace: Workspace) -> Handlers:
    return Handlers(context(workspace), form)


def shown(form: Form, dataset: str, **changes: Any) -> list[Any]:
    """Control values after the built-in preset was chosen, with changes (dots written as __)."""
    updates = form.show(tp.preset_mapping(tp.FIRST_PRESET, dataset))
    found = {spec.path: update["value"] for spec, update in zip(form.specs, updates, strict=True)}
    found |= {key.replace("__", "."): value for key, value in changes.items()}
    return [found[spec.path] for spec in form.specs]


def test_review_of_a_good_configuration(form: Form, workspace: Workspace, dataset: str) -> None:
    found = tp.review(form, shown(form, dataset), workspace)
    assert found["ok"]
    assert found["counts"]["rows"] == 120
    assert found["counts"]["updates"] == 45
    assert not found["counts"]["few"]
    assert found["command"] == f"python launch.py train {found['file']}"


def test_yaml_shown_is_the_configuration_that_runs(
    form: Form, handlers: Handlers, workspace: Workspace, dataset: str, engine: None
) -> None:
    values = shown(form, dataset, train__learning_rate="5e-4", name='quote\'s "and" $(id) 丹炉 <b>')
    text = tp.review(form, values, workspace)["yaml"]
    _tabs, run_id = handlers.start(*values)
    run = workspace.run(run_id)
    assert run.config() == load_yaml(text, RunConfig)
    assert run.path.parent == workspace.runs
    assert dump_yaml(run.config()) == text


def test_unnamed_run_is_named_after_what_it_does(form: Form, workspace: Workspace, dataset: str) -> None:
    assert tp.review(form, shown(form, dataset), workspace)["name"] == "ember_qlora_nova"


def test_too_few_updates_are_called_so(form: Form, workspace: Workspace, dataset: str) -> None:
    values = shown(form, dataset, train__num_train_epochs="0.2")
    found = tp.review(form, values, workspace)
    assert found["counts"]["updates"] < FEW_UPDATES
    assert found["counts"]["few"]
    assert [issue["level"] for issue in found["issues"]] == ["warning"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data.dataset": "gone"}, "data.dataset"),
        ({"data.dataset": ""}, "data.dataset"),
        ({"model.model_name_or_path": "/no/such/folder"}, "model.model_name_or_path"),
        ({"train.learning_rate": "fast"}, "train.learning_rate"),
        ({"model.attn_implementation": "flash_attention_2"}, "model.attn_implementation"),
    ],
)
def test_what_would_fail_is_said_beside_its_field_and_not_started(
    form: Form, handlers: Handlers, workspace: Workspace, dataset: str, changes: dict[str, str], field: str
) -> None:
    values = shown(form, dataset, **changes)
    found = tp.review(form, values, workspace)
    errors = [issue for issue in found["issues"] if issue["level"] == "error"]
    if field == "model.attn_implementation" and not errors:
        pytest.skip("this machine has a GPU")
    assert errors[0]["field"] == field
    assert not found["ok"]
    with pytest.raises(Exception, match=r"\w"):
        handlers.start(*values)
    assert workspace.list_runs() == []


def test_incomplete_model_folder(form: Form, workspace: Workspace, dataset: str, weird_path: Path) -> None:
    folder = weird_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{not json", encoding="utf-8")
    values = shown(form, dataset, **{"model.model_name_or_path": str(folder)})
    issue = tp.review(form, values, workspace)["issues"][0]
    assert issue["level"] == "error"
    assert "config.json" in issue["message"]


def test_second_start_names_the_run_in_the_way(
    form: Form, handlers: Handlers, workspace: Workspace, dataset: str, engine: None
) -> None:
    handlers.start(*shown(form, dataset, name="the first"))
    with pytest.raises(Refused, match="the first"):
        handlers.start(*shown(form, dataset, name="the second"))
    assert len(workspace.list_runs()) == 1


def test_many_starts_at_once_start_exactly_one_run(
    form: Form, workspace: Workspace, dataset: str, engine: None
) -> None:
    config = RunConfig.model_validate(tp_config(form, dataset))
    outcomes: list[str] = []

    def press() -> None:
        try:
            outcomes.append(tp.launch(Workspace(workspace.path), config).id)
        except (Refused, runner.StartRefused):
            outcomes.append("")

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = [run_id for run_id in outcomes if run_id]
    assert len(started) == 1
    assert [run.id for run in workspace.list_runs()] == started
    deadline = time.monotonic() + 60
    while not workspace.run(started[0]).read_status() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workspace.run(started[0]).state().live


def tp_config(form: Form, dataset: str) -> dict[str, Any]:
    config = form.config(shown(form, dataset))
    assert isinstance(config, RunConfig)
    return tp.named(config).model_dump()


def test_another_method_brings_its_values_but_keeps_what_was_typed(form: Form, dataset: str) -> None:
    values = shown(form, dataset, method="full", train__max_steps="77")
    changes = tp.advised(form, values)
    assert changes["train.learning_rate"] == "0.0003"
    assert "train.max_steps" not in changes
    typed = shown(form, dataset, method="full", train__learning_rate="0.00123")
    assert "train.learning_rate" not in tp.advised(form, typed)


def test_every_preset_fills_the_form_without_errors(form: Form, dataset: str) -> None:
    for name in presets.list_presets():
        updates = form.show(tp.preset_mapping(name, dataset))
        assert form.errors([update["value"] for update in updates]) == {}, name


def test_unknown_preset_names_the_nearest(handlers: Handlers, form: Form, dataset: str) -> None:
    with pytest.raises(Exception, match="ember_qlora_identity_e3"):
        handlers.use_preset("ember_qlora_identty_e3", *shown(form, dataset))


def test_yaml_with_the_notes_names_fills_the_form(handlers: Handlers, form: Form, weird_path: Path) -> None:
    path = weird_path / "notes.yaml"
    lines = ("\ufeffmodel_path: crucible/ember", "data_path: nova", "lr: 1e-4", "max_epochs: 2", "batch_size: 1")
    path.write_text("\n".join(lines), encoding="utf-8")
    updates = handlers.load_yaml(str(path))
    values = {spec.path: update["value"] for spec, update in zip(form.specs, updates, strict=True)}
    assert values["train.learning_rate"] == "1e-4"
    assert values["train.num_train_epochs"] == "2"
    assert values["train.per_device_train_batch_size"] == "1"


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"- 1", b"unknown_field: 1", b"!!python/object:os.x {}"])
def test_bad_yaml_is_one_sentence(handlers: Handlers, weird_path: Path, content: bytes) -> None:
    path = weird_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"YAML|unknown field") as caught:
        handlers.load_yaml(str(path))
    assert "Traceback" not in str(caught.value)


def test_chosen_dataset_reaches_the_form(handlers: Handlers, form: Form, dataset: str) -> None:
    assert handlers.choose_dataset(dataset)["value"] == dataset
    lists = handlers.opened("", *shown(form, ""))
    assert lists[0]["value"] == dataset
    assert ("nova · 120", dataset) in lists[0]["choices"]
    assert handlers.opened("", *shown(form, "mine.jsonl"))[0]["value"] == "mine.jsonl"
