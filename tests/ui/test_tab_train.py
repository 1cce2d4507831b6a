"""The Train tab: what it says before the start is what runs, and exactly one run starts."""

import itertools
import shlex
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from building import built, context

from studio import presets, runner
from studio.config import RunConfig
from studio.estimate import FEW_UPDATES
from studio.events import RunState
from studio.records import DatasetInfo, DatasetStore, IdentitySpec, build_identity, sources
from studio.records.template_names import template_names
from studio.schema import build, dump_yaml, load_yaml, parse_overrides
from studio.ui.choices import all_choices, preset_choices
from studio.ui.context import Refused
from studio.ui.counting import Counting, CountingFailed
from studio.ui.tabs import train_preview as tp
from studio.ui.tabs.export import LISTS as EXPORT_LISTS
from studio.ui.tabs.train import Handlers
from studio.ui.widgets.form import Form
from studio.workspace import Workspace


@pytest.fixture(scope="module")
def form() -> Form:
    def make() -> Form:
        with gr.Blocks():
            form = Form(RunConfig, {tp.MODEL: [], tp.DATASET: []}, tp.LISTS)
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
    found = tp.review(form, shown(form, dataset), Counting(workspace))
    assert found["ok"]
    assert found["counts"]["rows_read"] == found["counts"]["conversations"] == 120
    assert found["counts"]["updates"] == 45
    assert found["counts"]["zone"] == "good"
    program, verb, *rest = shlex.split(found["command"])
    assert (program, verb) == ("studio", "train")
    assert rest[rest.index("--workspace") + 1] == str(workspace.path)
    overrides = [value for option, value in itertools.pairwise(rest) if option == "--set"]
    assert build(RunConfig, parse_overrides(overrides)) == load_yaml(found["yaml"], RunConfig)


def test_yaml_shown_is_the_configuration_that_runs(
    form: Form, handlers: Handlers, workspace: Workspace, dataset: str, engine: None
) -> None:
    values = shown(form, dataset, train__learning_rate="5e-4", name='quote\'s "and" $(id) 丹炉 <b>')
    text = tp.review(form, values, Counting(workspace))["yaml"]
    _tabs, run_id, question = handlers.start(*values)
    assert question is None
    run = workspace.run(run_id)
    assert run.config() == load_yaml(text, RunConfig)
    assert run.path.parent == workspace.runs
    assert dump_yaml(run.config()) == text


def test_unnamed_run_is_named_after_what_it_does(form: Form, workspace: Workspace, dataset: str) -> None:
    assert tp.review(form, shown(form, dataset), Counting(workspace))["name"] == "ember_qlora_nova"


def test_too_few_updates_are_called_so(form: Form, workspace: Workspace, dataset: str) -> None:
    values = shown(form, dataset, train__num_train_epochs="0.2")
    found = tp.review(form, values, Counting(workspace))
    assert found["counts"]["updates"] < FEW_UPDATES
    assert found["counts"]["zone"] == "few"
    assert [issue["level"] for issue in found["issues"]] == ["warning"]


ROW = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nova."}], "origin": "upload"}


def saved(workspace: Workspace, title: str, rows: list[dict[str, Any]]) -> str:
    return DatasetStore(workspace.datasets).save(title, rows, [], DatasetInfo(kind="upload")).name


def test_one_row_pressed_in_again_and_again_is_called_a_parrot(form: Form, workspace: Workspace) -> None:
    counts = tp.review(form, shown(form, saved(workspace, "one", [ROW] * 400)), Counting(workspace))["counts"]
    assert counts["zone"] == "parrot"
    assert counts["distinct"] == 1
    assert counts["per_row"] == counts["updates"]


def test_every_number_on_the_way_follows_the_form(form: Form, workspace: Workspace, dataset: str) -> None:
    counting = Counting(workspace)

    def counts(**changes: Any) -> dict[str, Any]:
        found: dict[str, Any] = tp.review(form, shown(form, dataset, **changes), counting)["counts"]
        return found

    plain = counts()
    assert plain["kept"] == plain["rows_read"] - plain["rows_skipped"]
    assert 0 < plain["trained"] < 1
    assert counts(data__validation_share="0.25")["validation"] > 0
    assert counts(data__self_replay="40")["self_replay"] == 40
    assert counts(data__max_length="20")["truncated"] > 0
    assert counts(data__weight="2")["conversations"] == 2 * plain["conversations"]
    assert counts(data__max_samples="10")["rows_read"] == 10
    assert counts(data__packing="true")["packs"] < plain["packs"]
    assert counts(train__num_train_epochs="6")["updates"] == 2 * plain["updates"]


def test_further_datasets_are_counted_too(form: Form, workspace: Workspace, dataset: str) -> None:
    entry = {"dataset": saved(workspace, "more", [ROW] * 10), "weight": "3"}
    found = tp.review(form, shown(form, dataset, data__sources=[entry]), Counting(workspace))
    assert found["counts"]["rows_read"] == 130
    assert found["counts"]["conversations"] == 150
    assert found["counts"]["sources"] == 2
    assert load_yaml(found["yaml"], RunConfig).data.sources[0].weight == 3


def test_a_wrong_entry_is_said_with_its_number(form: Form, workspace: Workspace, dataset: str) -> None:
    entries = [{"dataset": "a", "weight": "1"}, {"dataset": "b", "weight": "-1"}]
    (issue,) = tp.review(form, shown(form, dataset, data__sources=entries), Counting(workspace))["issues"]
    assert (issue["field"], issue["entry"], issue["name"]) == ("data.sources", 2, "weight")


def test_rows_left_out_are_counted_and_the_run_may_start(form: Form, workspace: Workspace, weird_path: Path) -> None:
    file = weird_path / "some bad.jsonl"
    good = '{"instruction": "Who?", "output": "Nova."}\n'
    file.write_text(good * 60 + '{"instruction": "Who?", "output": ""}\n', encoding="utf-8")
    found = tp.review(form, shown(form, str(file)), Counting(workspace))
    assert found["counts"]["rows_skipped"] == 1
    assert found["counts"]["kept"] == 60
    assert found["ok"]


def test_a_run_in_which_nothing_would_be_trained_cannot_start(
    form: Form, handlers: Handlers, workspace: Workspace
) -> None:
    rows = [{**ROW, "messages": [{"role": "user", "content": "word " * 80}, ROW["messages"][1]]}]
    values = shown(form, saved(workspace, "late", rows), data__max_length="16")
    found = tp.review(form, values, Counting(workspace))
    assert not found["ok"]
    assert found["issues"][0]["field"] == "data.max_length"
    with pytest.raises(Refused):
        handlers.start(*values)
    assert workspace.list_runs() == []


def test_a_large_dataset_is_waited_for_but_may_start(
    form: Form,
    handlers: Handlers,
    workspace: Workspace,
    weird_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: None,
) -> None:
    monkeypatch.setattr(sources, "INLINE_BYTES", 10)
    file = weird_path / "large.jsonl"
    file.write_text('{"instruction": "Who?", "output": "Nova."}\n' * 60, encoding="utf-8")
    values = shown(form, str(file))
    found = tp.review(form, values, Counting(workspace))
    assert found["waiting"] == [0, 0]
    assert found["counts"] is None
    assert found["ok"]
    assert found["issues"] == []
    handlers.start(*values)
    assert len(workspace.list_runs()) == 1


def test_what_the_counting_process_said_is_an_error_of_the_dataset(
    form: Form, workspace: Workspace, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*_: Any) -> None:
        raise CountingFailed("Row 7 is odd.")

    monkeypatch.setattr(Counting, "plan", failed)
    found = tp.review(form, shown(form, dataset), Counting(workspace))
    assert not found["ok"]
    assert [issue["message"] for issue in found["issues"] if issue["level"] == "error"] == ["Row 7 is odd."]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data.dataset": "gone"}, "data.dataset"),
        ({"data.dataset": ""}, "data.dataset"),
        ({"model.model_name_or_path": "/no/such/folder"}, "model.model_name_or_path"),
        ({"train.learning_rate": "fast"}, "train.learning_rate"),
        ({"model.attn_implementation": "flash_attention_2"}, "model.attn_implementation"),
        ({"model.chat_template": "{% for"}, "model.chat_template"),
        ({"model.chat_template": "chatmll"}, "model.chat_template"),
        ({"data.mapping": "alpacca"}, "data.mapping"),
        ({"data.sources": [{"dataset": "gone"}]}, "data.sources"),
        ({"data.validation_dataset": "gone"}, "data.validation_dataset"),
    ],
)
def test_what_would_fail_is_said_beside_its_field_and_not_started(
    form: Form, handlers: Handlers, workspace: Workspace, dataset: str, changes: dict[str, str], field: str
) -> None:
    values = shown(form, dataset, **changes)
    found = tp.review(form, values, Counting(workspace))
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
    issue = tp.review(form, values, Counting(workspace))["issues"][0]
    assert issue["level"] == "error"
    assert "config.json" in issue["message"]


def test_a_second_start_is_queued_and_the_page_says_so(
    form: Form,
    handlers: Handlers,
    workspace: Workspace,
    dataset: str,
    engine: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, duration: said.append(text))
    handlers.start(*shown(form, dataset, name="the first"))
    assert said == []
    tabs, run_id, _ = handlers.start(*shown(form, dataset, name="the second"))
    assert tabs.selected == "monitor"
    assert workspace.run(run_id).state() is RunState.QUEUED
    assert said == ["“the second” is queued at place 1. It starts when “the first” has ended."]


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
    assert "" not in outcomes
    assert sorted(run.id for run in workspace.list_runs()) == sorted(outcomes)
    states = [workspace.run(run_id).state() for run_id in outcomes]
    assert sum(state.live for state in states) == 1
    assert states.count(RunState.QUEUED) == 5


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
    names = presets.list_presets()
    for name in [*presets.list_presets("ember"), *names[:: len(names) // 60]]:
        updates = form.show(tp.preset_mapping(name, dataset))
        assert form.errors([update["value"] for update in updates]) == {}, name


def test_presets_offered_are_those_of_the_model(handlers: Handlers) -> None:
    assert tp.FIRST_PRESET in preset_choices()
    known = presets.models()
    key = next(key for key in known if key != "ember")
    names = handlers.presets_of(known[key].model_name_or_path)["choices"]
    assert names
    assert all(name.startswith(f"{key}_") for name in names)
    assert handlers.presets_of("some/thing else")["choices"] == preset_choices()


def test_unknown_preset_names_the_nearest(handlers: Handlers, form: Form, dataset: str) -> None:
    with pytest.raises(Exception, match="ember_qlora_identity_e3"):
        handlers.use_preset("ember_qlora_identty_e3", *shown(form, dataset))


def test_yaml_with_the_notes_names_fills_the_form(handlers: Handlers, form: Form, weird_path: Path) -> None:
    path = weird_path / "notes.yaml"
    lines = ("\ufeffmodel_path: crucible/ember", "data_path: nova", "lr: 1e-4", "max_epochs: 2", "batch_size: 1")
    path.write_text("\n".join(lines), encoding="utf-8")
    *updates, _preset, _report = handlers.load(str(path))
    values = {spec.path: update["value"] for spec, update in zip(form.specs, updates, strict=True)}
    assert values["train.learning_rate"] == "1e-4"
    assert values["train.num_train_epochs"] == "2"
    assert values["train.per_device_train_batch_size"] == "1"


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"- 1", b"unknown_field: 1", b"!!python/object:os.x {}"])
def test_bad_yaml_is_one_sentence(handlers: Handlers, weird_path: Path, content: bytes) -> None:
    path = weird_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"YAML|unknown field") as caught:
        handlers.load(str(path))
    assert "Traceback" not in str(caught.value)


def test_chosen_dataset_reaches_the_form(handlers: Handlers, form: Form, dataset: str) -> None:
    assert handlers.choose_dataset(dataset)["value"] == dataset
    lists = handlers.opened("", *shown(form, ""))
    assert lists[0]["value"] == dataset
    assert ("nova · 120", dataset) in lists[0]["choices"]
    assert ("nova · 120", dataset) in lists[2]["choices"]
    assert "value" not in handlers.opened("", *shown(form, "mine.jsonl"))[0]


def test_drawn_controls_find_their_choices(workspace: Workspace, dataset: str) -> None:
    found = all_choices(workspace)
    assert {*tp.LISTS.values(), *EXPORT_LISTS.values()} == set(found)
    assert ("nova · 120", dataset) in found["datasets"]
    assert {"alpaca", "messages"} <= {value for _, value in found["mappings"]}
    assert {value for _, value in found["templates"]} == set(template_names())
