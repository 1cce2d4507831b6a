"""The form of the Train tab: what differs from the preset, where its settings come from, fit, this machine, models."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from building import built, context
from gradio.context import LocalContext

from studio import presets
from studio.availability import Machine
from studio.config import MergeConfig, RunConfig
from studio.events import RunState
from studio.fetchdir import FetchDir, FetchJob, FetchStatus, new_fetch
from studio.hardware import Gpu
from studio.records import DataError, DatasetInfo, DatasetStore
from studio.schema import ConfigError, build, dump_yaml, parse_yaml
from studio.ui import choices, machine
from studio.ui.context import Refused
from studio.ui.counting import Counting
from studio.ui.tabs import train_changes, train_fit, train_model, train_routes
from studio.ui.tabs import train_preview as tp
from studio.ui.tabs.train import Handlers
from studio.ui.widgets.form import Form
from studio.workspace import Workspace

XTUNER = """import os
pretrained_model_name_or_path = 'Qwen/Qwen2.5-7B-Instruct'
os.system('exit 3')
batch_size = 2
custom = os.getcwd()
model = dict(
    type=SupervisedFinetune,
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=pretrained_model_name_or_path))
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=3e-5), accumulative_counts=16)
train_dataloader = dict(batch_size=batch_size)
"""
LLAMAFACTORY = (
    "model_name_or_path: crucible/ember\nstage: sft\nfinetuning_type: lora\ncutoff_len: 512\nflash_attn: odd\n"
)
HOSTILE = "<img src=x onerror='window.pwned=1'> ${window.pwned=1}"


@pytest.fixture(scope="module")
def form() -> Form:
    def make() -> Form:
        with gr.Blocks():
            form = Form(RunConfig, {tp.MODEL: [], tp.DATASET: []}, tp.LISTS)
            form.place([spec.path for spec in form.specs])
        return form

    return built(make)


@pytest.fixture
def handlers(form: Form, workspace: Workspace) -> Handlers:
    return Handlers(context(workspace), form)


@pytest.fixture
def chinese() -> Iterator[None]:
    token = LocalContext.request.set(SimpleNamespace(cookies={"studio_lang": "zh-CN"}))
    yield
    LocalContext.request.reset(token)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU from before bfloat16 and without bitsandbytes."""
    gpu = Gpu(index=0, name="T4", memory_bytes=2**34, free_bytes=2**34, driver="550", capability=(7, 5))
    made = Machine((gpu,), lambda package: package != "bitsandbytes")
    monkeypatch.setattr(machine, "machine", lambda: made)
    forget()
    yield
    forget()


def forget() -> None:
    for kept in (tp.recommended, tp._ever_recommended, train_changes._composed):
        kept.cache_clear()


def shown(form: Form, preset: str = tp.FIRST_PRESET, **changes: Any) -> list[Any]:
    """Control values after a preset was chosen, with changes (dots written as __)."""
    return after(form, form.show(tp.preset_mapping(preset, "nova")), changes)


def after(form: Form, updates: list[Any], changes: dict[str, Any] | None = None) -> list[Any]:
    found = {spec.path: update["value"] for spec, update in zip(form.specs, updates, strict=True)}
    found |= {key.replace("__", "."): value for key, value in (changes or {}).items()}
    return [found[spec.path] for spec in form.specs]


def paths(form: Form, values: list[Any], preset: str | None = tp.FIRST_PRESET) -> list[str]:
    return [one["path"] for one in train_changes.changes(form, values, preset)["fields"]]


def sent(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


# ---- what differs from the preset ------------------------------------------------------------------------------------


def test_a_preset_just_chosen_differs_in_nothing(form: Form) -> None:
    names = presets.list_presets()
    for name in [*presets.list_presets("ember_"), *names[:: len(names) // 40]]:
        assert paths(form, shown(form, name), name) == [], name


def test_every_field_that_differs_is_named_with_both_values(form: Form) -> None:
    values = shown(form, train__learning_rate="1e-4", data__packing="true", samples__evaluation_inputs=f"a\n{HOSTILE}")
    found = train_changes.changes(form, values, tp.FIRST_PRESET)
    assert found["preset"] == tp.FIRST_PRESET
    by_path = {one["path"]: one for one in found["fields"]}
    assert list(by_path) == ["data.packing", "train.learning_rate", "samples.evaluation_inputs"]
    rate = by_path["train.learning_rate"]
    assert (rate["label"], rate["base"], rate["now"]) == ("Learning rate", "0.003", "1e-4")
    assert by_path["data.packing"]["base"] == ""


@pytest.mark.parametrize("written", ["3e-3", "0.0030", " 0.003 ", ".003"])
def test_another_spelling_of_the_same_number_is_no_change(form: Form, written: str) -> None:
    assert paths(form, shown(form, train__learning_rate=written)) == []


def test_dataset_and_name_are_the_visitors_own_and_hidden_fields_do_not_count(form: Form) -> None:
    assert paths(form, shown(form, name="mine", data__dataset="other")) == []
    assert paths(form, shown(form, method="full", lora__r="3")) == ["method"]


def test_a_wrong_value_is_a_change_too(form: Form) -> None:
    assert paths(form, shown(form, train__learning_rate="fast", train__seed="")) == [
        "train.learning_rate",
        "train.seed",
    ]


def test_further_datasets_are_compared_by_what_they_hold(form: Form) -> None:
    entries = [{"dataset": "more", "weight": "2"}]
    (one,) = train_changes.changes(form, shown(form, data__sources=entries), tp.FIRST_PRESET)["fields"]
    assert (one["base"], one["now"]) == ("", "more")


@pytest.mark.parametrize("preset", [None, "", "no_such_preset", HOSTILE])
def test_without_a_preset_the_recommended_values_are_compared(form: Form, preset: str | None) -> None:
    values = shown(form, train__num_train_epochs="9")
    found = train_changes.changes(form, values, preset)
    assert found["preset"] == ""
    assert "train.num_train_epochs" in [one["path"] for one in found["fields"]]
    assert not {"method", tp.MODEL} & {one["path"] for one in found["fields"]}


def test_a_field_is_set_back_and_the_fields_that_apply_are_shown(handlers: Handlers, form: Form) -> None:
    values = shown(form, method="full", train__num_train_epochs="9")
    event = sent(reset=["method", "train.num_train_epochs"], preset=tp.FIRST_PRESET)
    updates = dict(zip([spec.path for spec in form.specs], handlers.apply(event, *values), strict=True))
    assert updates["method"]["value"] == "qlora"
    assert updates["train.num_train_epochs"]["value"] == "3"
    assert updates["lora.r"]["visible"]
    assert "value" not in updates["train.learning_rate"]


def test_what_is_hidden_goes_back_with_the_rest(handlers: Handlers, form: Form) -> None:
    values = shown(form, method="full", lora__lora_dropout="0.05")
    changes = train_changes.changed_to(form, values, {"reset": ["method"], "preset": tp.FIRST_PRESET})
    assert changes["lora.lora_dropout"] == "0"
    values = [changes.get(spec.path, value) for spec, value in zip(form.specs, values, strict=True)]
    assert paths(form, values) == []


def test_another_method_taken_over_brings_its_values(handlers: Handlers, form: Form) -> None:
    updates = handlers.apply(sent(set={"method": "full"}, advise=True), *shown(form))
    by_path = dict(zip([spec.path for spec in form.specs], updates, strict=True))
    assert by_path["method"]["value"] == "full"
    assert by_path["train.learning_rate"]["value"] == "0.0003"
    assert not by_path["lora.r"]["visible"]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"reset": "method"},
        {"reset": [["method"], None, "no.such"], "preset": 7},
        {"set": ["method"]},
        {"set": {"no.such": 1, "data.sources": [{"dataset": "x"}], "train.seed": {"a": 1}, "method": None}},
    ],
)
def test_what_a_script_sends_is_not_trusted(handlers: Handlers, form: Form, data: dict[str, Any]) -> None:
    values = shown(form)
    assert all("value" not in update for update in handlers.apply(sent(**data), *values))


# ---- where settings come from ----------------------------------------------------------------------------------------


def loaded(handlers: Handlers, folder: Path, name: str, text: str) -> tuple[list[Any], Any, dict[str, Any]]:
    (folder / name).write_text(text, encoding="utf-8")
    *updates, preset, report = handlers.load(str(folder / name))
    return updates, preset, report


def test_an_xtuner_file_fills_the_form_and_says_what_it_left_out(
    handlers: Handlers, form: Form, weird_path: Path
) -> None:
    updates, preset, report = loaded(handlers, weird_path, "internlm <b>.py", XTUNER)
    found = dict(zip([spec.path for spec in form.specs], updates, strict=True))
    assert found[tp.MODEL]["value"] == "Qwen/Qwen2.5-7B-Instruct"
    assert found["method"]["value"] == "full"
    assert found["train.learning_rate"]["value"] == "3e-05"
    assert "value" not in found[tp.DATASET]  # the file names none: the visitor's stays
    assert preset is None
    assert (report["origin"], report["name"]) == ("xtuner", "internlm <b>.py")
    assert {(3, "os.system"), (5, "custom")} & {(one["line"], one["name"]) for one in report["left"]}
    assert all(one["reason"] for one in report["left"])


def test_reasons_are_in_the_visitors_language(handlers: Handlers, weird_path: Path, chinese: None) -> None:
    _, _, report = loaded(handlers, weird_path, "a.py", XTUNER)
    assert "是运行文件时才算出来的，请手动设置" in [one["reason"] for one in report["left"]]


def test_a_llamafactory_file_fills_the_form(handlers: Handlers, form: Form, weird_path: Path) -> None:
    updates, _, report = loaded(handlers, weird_path, "sft.yaml", LLAMAFACTORY)
    found = {spec.path: update.get("value") for spec, update in zip(form.specs, updates, strict=True)}
    assert (found["method"], found["data.max_length"]) == ("lora", "512")
    assert report["origin"] == "llamafactory"
    assert [(one["line"], one["name"]) for one in report["left"]] == [(5, "flash_attn")]


def test_what_is_shown_can_be_loaded_again(handlers: Handlers, form: Form, weird_path: Path) -> None:
    values = shown(form, train__seed="7", name=HOSTILE[:100], data__sources=[{"dataset": "b", "weight": "2"}])
    config = form.config(values)
    updates, preset, report = loaded(handlers, weird_path, "again.yaml", dump_yaml(config))
    assert form.config(after(form, updates)) == config
    assert (preset, report["origin"], report["left"]) == (None, "studio", [])


def test_a_file_named_after_a_preset_is_compared_with_it(handlers: Handlers, form: Form, weird_path: Path) -> None:
    config = form.config(shown(form, name=tp.FIRST_PRESET, train__seed="7"))
    updates, preset, _ = loaded(handlers, weird_path, "named.yaml", dump_yaml(config))
    assert preset == tp.FIRST_PRESET
    assert paths(form, after(form, updates), preset) == ["train.seed"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.py", "x = ("), ("a.yaml", "a: ["), ("a.yaml", "lrr: 1"), ("a.txt", "lr: 1"), ("a.yaml", "lr: " + "1" * 2**21)],
)
def test_a_file_that_cannot_be_used_is_one_sentence(handlers: Handlers, weird_path: Path, name: str, text: str) -> None:
    with pytest.raises((Refused, ConfigError)) as caught:
        loaded(handlers, weird_path, name, text)
    assert 10 < len(str(caught.value)) < 400


def test_an_earlier_run_fills_the_form_with_all_it_had(handlers: Handlers, form: Form, workspace: Workspace) -> None:
    settings = {"name": "old", "model_path": "crucible/ember", "dataset": "d.jsonl", "lr": 7e-4, "method": "lora"}
    run = workspace.create_run(build(RunConfig, settings | {"sources": [{"dataset": "e.jsonl", "weight": 2}]}))
    merge = workspace.create_run(MergeConfig(name="m", base="b", adapter="a", out="o"))
    (workspace.create_run(build(RunConfig, settings)).config_file).write_text("a: [", encoding="utf-8")
    assert [value for _, value in choices.run_choices(workspace)] == [run.id]
    *updates, preset, report = handlers.recall(run.id)
    assert form.config(after(form, updates)) == run.config()
    assert (preset, report["origin"], report["name"]) == (None, "run", "old")
    with pytest.raises(Refused):
        handlers.recall(merge.id)
    with pytest.raises(Refused):
        handlers.recall("../gone")


# ---- does it fit -----------------------------------------------------------------------------------------------------


def config_of(**settings: Any) -> RunConfig:
    return build(RunConfig, {"model_path": "Qwen/Qwen2.5-7B-Instruct", "dataset": "d"} | settings)


def test_a_change_that_is_offered_makes_it_fit(handlers: Handlers, form: Form, workspace: Workspace) -> None:
    config = config_of(method="full")
    found = train_fit.fit_json(config, None, workspace, "RTX 4090 24GB")
    assert found["verdict"] == "no"
    assert found["low"] < found["expected"] < found["high"]
    assert sum(size for _, size in found["parts"]) == pytest.approx(found["expected"], rel=0.01)
    assert 1 <= len(found["fixes"]) <= 3
    values = after(form, form.show(parse_yaml(dump_yaml(config))))
    for fix in found["fixes"]:
        assert all(change["label"] != "" for change in fix["changes"])
        changes = train_changes.changed_to(form, values, {"set": json.loads(json.dumps(fix["set"]))})
        better = form.config(after(form, [{"value": value} for value in values], changes))
        assert isinstance(better, RunConfig)
        now = train_fit.fit_json(better, None, workspace, "RTX 4090 24GB")
        assert now["verdict"] == fix["verdict"] != "no"
        assert now["expected"] == fix["bytes"]


def test_this_machine_comes_first_and_an_unknown_card_is_this_machine(workspace: Workspace) -> None:
    for card in ("", "here:99", HOSTILE):
        found = train_fit.fit_json(config_of(), None, workspace, card)
        assert found["card"] == found["cards"][0]["value"] == "here:0"
        assert found["cards"][0]["here"]
        assert not found["cards"][-1]["here"]


def test_a_model_of_unknown_size_has_no_verdict(workspace: Workspace) -> None:
    found = train_fit.fit_json(config_of(model_path="nobody/knows-it"), None, workspace, "")
    assert "verdict" not in found
    assert found["cards"]


def test_time_to_finish_needs_the_counts(form: Form, workspace: Workspace) -> None:
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nova."}], "origin": "u"}
    DatasetStore(workspace.datasets).save("nova", [row] * 40, [], DatasetInfo(kind="upload"))
    counting = Counting(workspace)
    short, long = (
        tp.review(form, shown(form, train__num_train_epochs=epochs), counting)["fit"] for epochs in ("1", "10")
    )
    assert 0 < short["seconds"] < long["seconds"]
    assert train_fit.fit_json(config_of(), None, workspace, "")["seconds"] is None


def test_the_adviser_names_every_method_once(workspace: Workspace, chinese: None) -> None:
    methods = train_fit.fit_json(config_of(), None, workspace, "RTX 4090 24GB")["methods"]
    assert {one["method"] for one in methods} == {"qlora", "lora", "full"}
    assert [one["best"] for one in methods] == [True, False, False]
    assert [one["method"] for one in methods if one["now"]] == ["qlora"]
    assert all("需要" in one["message"] or "用时" in one["message"] for one in methods)


# ---- this machine ----------------------------------------------------------------------------------------------------


def test_a_choice_that_cannot_be_had_says_why(handlers: Handlers, form: Form, old_gpu: None) -> None:
    updates = handlers.offered()
    asked = [spec for spec in form.specs if spec.choices]
    by_path = dict(zip([spec.path for spec in asked], updates, strict=True))
    methods = dict((value, text) for text, value in by_path["method"]["choices"])
    assert methods["qlora"].startswith("qlora ✕ needs the package bitsandbytes")
    assert methods["lora"] == "lora"
    attention = {value: text for text, value in by_path["model.attn_implementation"]["choices"]}
    assert set(attention) == set(form.spec("model.attn_implementation").choices or ())
    assert "7.5" in attention["flash_attention_2"]
    assert "choices" not in by_path["train.lr_scheduler_type"]


def test_reasons_of_choices_are_translated(handlers: Handlers, old_gpu: None, chinese: None) -> None:
    assert any("需要安装软件包 bitsandbytes" in str(update) for update in handlers.offered())


def test_the_form_starts_with_what_suits_the_machine(handlers: Handlers, form: Form, old_gpu: None) -> None:
    preset, *updates = handlers.first()
    found = {spec.path: update.get("value") for spec, update in zip(form.specs, updates, strict=True)}
    assert preset == "ember_lora_identity_e3"
    assert (found["method"], found["model.dtype"]) == ("lora", "float16")
    values = ["" if found[spec.path] is None else found[spec.path] for spec in form.specs]
    assert paths(form, values, preset) == []
    known = {spec.path: value for spec, value in zip(form.specs, values, strict=True)}
    assert "model.dtype" not in tp.advised(form, [*(known | {"method": "full"}).values()])


# ---- the base model --------------------------------------------------------------------------------------------------


def test_models_on_disk_come_first_with_size_and_type(workspace: Workspace) -> None:
    offered = choices.model_choices(workspace)
    label, value = offered[0]
    assert value == "crucible/ember"
    assert "on disk" in label
    assert "MB" in label
    away = dict((value, label) for label, value in offered)["Qwen/Qwen2.5-7B-Instruct"]
    assert "download 15." in away
    assert len({value for _, value in offered}) == len(offered)


def test_only_a_hub_id_that_is_not_here_can_be_downloaded() -> None:
    state = train_model.model_state(config_of())
    assert state is not None
    assert (state["id"], state["offline"]) == ("Qwen/Qwen2.5-7B-Instruct", True)
    assert state["size"] > 10e9
    for reference in ("crucible/ember", "crucible/embr", "/no/such/folder", HOSTILE):
        assert train_model.model_state(config_of(model_path=reference)) is None


def test_offline_is_said_at_once(handlers: Handlers, workspace: Workspace) -> None:
    with pytest.raises(Refused, match="HF_HUB_OFFLINE"):
        handlers.download(sent(id="a/b"))
    assert train_model.downloads(workspace, "en") == []


def test_a_download_is_started_once_with_what_was_typed(
    handlers: Handlers, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_model, "offline", lambda: False)
    started: list[FetchJob] = []

    def start(where: Workspace, job: FetchJob) -> FetchDir:
        started.append(job)
        fetch = new_fetch(where, job)
        fetch.write_status(FetchStatus(state=RunState.RUNNING, done=3, total=9))
        return fetch

    monkeypatch.setattr(train_model, "start_fetch", start)
    for _ in range(2):
        handlers.download(sent(id=" a/b ", hub="modelscope", revision="v1", endpoint="https://hf-mirror.com"))
    (job,) = started
    assert (job.what, job.id, job.hub, job.revision) == ("model", "a/b", "modelscope", "v1")
    (line,) = train_model.downloads(workspace, "en")
    assert (line["model"], line["live"], line["done"], line["total"]) == ("a/b", True, 3, 9)
    with pytest.raises(Refused):
        handlers.stop_download(sent(id="../../x"))


@pytest.mark.parametrize(
    "data", [{}, {"id": "../etc"}, {"id": "a/b", "endpoint": "file:///etc"}, {"id": "a/b", "revision": "../x"}]
)
def test_a_wrong_download_is_one_sentence(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, data: dict[str, str]
) -> None:
    monkeypatch.setattr(train_model, "offline", lambda: False)
    monkeypatch.setattr(train_model, "start_fetch", lambda *_: pytest.fail("nothing may be started"))
    with pytest.raises(DataError):
        handlers.download(sent(**data))


# ---- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["learning rate", "学习率", "learning_rate", "lr", "forgets everything"])
def test_a_field_is_found_by_every_name_in_both_languages(word: str) -> None:
    assert word in train_routes.field_words()["train.learning_rate"]


def test_every_field_of_the_form_can_be_found(form: Form) -> None:
    words = train_routes.field_words()
    assert {spec.path for spec in form.specs} <= words.keys()
    assert "weight" in words["data.sources"]
