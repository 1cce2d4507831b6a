"""The X-ray panel: the very tokens of the first batches, or one sentence why there are none."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from building import built, context

from studio.config import RunConfig
from studio.estimate import plan
from studio.records import DatasetInfo, DatasetStore, xray
from studio.records.batches import IGNORED, Shape, collate, first_batches, training_rows
from studio.records.counts import numbers_of
from studio.records.sources import NotCounted
from studio.records.template_names import template_names
from studio.ui import counting as counting_module
from studio.ui.tabs import data_xray as dx
from studio.ui.tabs import train_preview as tp
from studio.ui.widgets.form import Form
from studio.workspace import Workspace

HOSTILE = "<img src=x onerror=alert(1)> ${alert(1)} {{x}}"


@pytest.fixture(scope="module")
def form() -> Form:
    def make() -> Form:
        with gr.Blocks():
            form = Form(RunConfig, {tp.MODEL: [], tp.DATASET: []}, tp.LISTS)
            form.place([spec.path for spec in form.specs])
        return form

    return built(make)


@pytest.fixture
def handlers(form: Form, workspace: Workspace) -> dx.Handlers:
    return dx.Handlers(context(workspace), form)


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "origin": "upload", **more}


@pytest.fixture
def dataset(workspace: Workspace) -> str:
    rows = [row(f"Question {n} {HOSTILE}", "Yes. " * (n * 9 + 1)) for n in range(12)]
    return DatasetStore(workspace.datasets).save("long", rows, [], DatasetInfo(kind="upload")).name


def shown(form: Form, dataset: str, **changes: Any) -> list[Any]:
    updates = form.show(tp.preset_mapping(tp.FIRST_PRESET, dataset))
    found = {spec.path: update["value"] for spec, update in zip(form.specs, updates, strict=True)}
    found |= {key.replace("__", "."): value for key, value in changes.items()}
    return [found[spec.path] for spec in form.specs]


def asked(**data: Any) -> gr.EventData:
    return SimpleNamespace(_data=data)  # type: ignore[return-value]


Look = Any


@pytest.fixture
def look(form: Form, handlers: dx.Handlers, dataset: str) -> Look:
    """The X-ray with changed settings; what the page asks as `ask`."""

    def make(ask: dict[str, Any] | None = None, chosen: str = "", dataset: str = dataset, **changes: Any) -> Any:
        found = handlers.look(asked(**(ask or {})), chosen, *shown(form, dataset, **changes))
        json.dumps(found)
        return found

    return make


def test_what_is_drawn_are_the_arrays_of_the_trainer(
    look: Look, form: Form, workspace: Workspace, dataset: str
) -> None:
    settings = {"data__max_length": "64", "train__per_device_train_batch_size": "3"}
    (batch,) = look(**settings)["batches"]
    config = form.config(shown(form, dataset, **settings))
    assert isinstance(config, RunConfig)
    found = plan(config, workspace)
    assert found is not None
    (packs,) = first_batches(found.prepared, numbers_of(config), 1)
    rows = training_rows(found.prepared)
    arrays = collate([rows[pack] for pack in packs], Shape(found.chat.pad_id or 0))
    assert batch["shape"] == list(arrays["input_ids"].shape)
    for drawn, ids, labels in zip(batch["rows"], arrays["input_ids"], arrays["labels"], strict=True):
        (example,) = drawn["examples"]
        kept = [token for token in example["tokens"] if token[2] != xray.TRUNCATED]
        assert [token[0] for token in kept] == ids[: len(kept)].tolist()
        assert len(kept) + drawn["padding"] == len(ids)
        trained = [token[2] == xray.TRAINED for token in kept]
        assert trained == (labels[: len(kept)] != IGNORED).tolist()


def test_cut_rows_are_marked_counted_and_named(look: Look) -> None:
    found = look(data__max_length="48")
    (finding,) = [item for item in found["findings"] if item["code"] == "truncated"]
    assert finding["count"] == len(finding["rows"]) == found["counts"]["truncated"] > 0
    assert max(finding["rows"]) == 12
    examples = [example for batch in found["batches"] for line in batch["rows"] for example in line["examples"]]
    cut = {example["row"] for example in examples if example["cut"]}
    assert cut
    assert cut <= set(finding["rows"])


def test_text_of_rows_arrives_as_it_is(look: Look) -> None:
    example = look()["batches"][0]["rows"][0]["examples"][0]
    assert HOSTILE in example["messages"][0]["content"]
    assert HOSTILE in "".join(piece for _, piece, _ in example["tokens"])
    assert [message["trained"] for message in example["messages"]] == [False, True]


def test_special_tokens_are_known(look: Look) -> None:
    found = look()
    tokens = found["batches"][0]["rows"][0]["examples"][0]["tokens"]
    marked = {piece for number, piece, _ in tokens if number in found["special"]}
    assert marked == {"<|im_start|>", "<|im_end|>"}


def test_lengths_say_where_the_limit_is(look: Look) -> None:
    lengths = look(data__max_length="99")["lengths"]
    assert lengths["max_length"] == 99
    assert sum(lengths["counts"]) == lengths["rows"] == 12


def test_more_batches_up_to_a_limit(look: Look) -> None:
    settings = {"train__per_device_train_batch_size": "2"}
    assert [len(look({"batches": n}, **settings)["batches"]) for n in (1, 2, 4)] == [1, 2, 4]
    assert look({"batches": 1}, **settings)["more"]
    assert not look({"batches": 4}, **settings)["more"]


def test_of_a_huge_batch_only_some_rows_are_sent(look: Look) -> None:
    (batch,) = look(train__per_device_train_batch_size="4096", data__weight="3")["batches"]
    assert batch["shape"][0] == 36
    assert len(batch["rows"]) + batch["more"] == 36
    assert batch["more"] > 0


def test_packed_examples_are_apart(look: Look) -> None:
    found = look(data__packing="true", data__max_length="512")
    assert found["packed"]
    assert max(len(line["examples"]) for line in found["batches"][0]["rows"]) > 1


def test_another_dataset_is_looked_at_without_the_settings_of_the_first(
    look: Look, workspace: Workspace, tmp_path: Path
) -> None:
    other = DatasetStore(workspace.datasets).save("other", [row("Hi", "Hello")], [], DatasetInfo(kind="upload")).name
    extra = [{"dataset": "gone"}]
    found = look({"dataset": other}, data__split="nowhere", data__system="Be brief.", data__sources=extra)
    assert found["state"] == "seen"
    assert found["dataset"] == other
    (example,) = found["batches"][0]["rows"][0]["examples"]
    assert [message["role"] for message in example["messages"]] == ["user", "assistant"]
    assert look(chosen=other)["dataset"] == other


def test_every_source_of_the_run_is_looked_up(look: Look, workspace: Workspace) -> None:
    rows = [row("From the second", "Yes") for _ in range(12)]
    other = DatasetStore(workspace.datasets).save("second", rows, [], DatasetInfo(kind="upload")).name
    sources = [{"dataset": other, "system": "Second system.", "weight": "2"}]
    found = look(data__sources=sources, train__per_device_train_batch_size="16")
    examples = [example for line in found["batches"][0]["rows"] for example in line["examples"]]
    assert {example["source"] for example in examples} == {0, 1}
    second = next(example for example in examples if example["source"] == 1)
    assert second["messages"][0]["content"] == "Second system."
    number = examples.index(second)
    left = look({"example": number}, data__sources=sources, train__per_device_train_batch_size="16")["templates"]
    assert left["source"] == 1
    assert "Second system." in "".join(piece for _, piece, _ in left["left"]["tokens"])


# ---- two templates ---------------------------------------------------------------------------------------------------


def test_the_row_beside_itself_in_every_named_template(look: Look) -> None:
    whole = {"data__max_length": "1024"}  # the first row is the longest one
    found = look(**whole)["templates"]
    assert found["used"] == {"kind": "own", "name": ""}
    assert found["other"] == "llama3_chat"  # not the marks of the model's own
    assert {value for _, value in found["choices"]} == set(template_names())
    example = look(**whole)["batches"][0]["rows"][0]["examples"][0]
    assert [token[:2] for token in found["left"]["tokens"]] == [
        token[:2] for token in example["tokens"] if token[2] != xray.TRUNCATED
    ]


def test_every_named_template_writes_the_row_or_says_why_not(
    look: Look, form: Form, workspace: Workspace, dataset: str
) -> None:
    examples = [look()["batches"][0]["rows"][0]["examples"][0]]
    config = form.config(shown(form, dataset))
    assert isinstance(config, RunConfig)
    found = plan(config, workspace)
    assert found is not None
    sides = {
        name: dx.templates_view(found, config, dx.Ask(template=name), examples)["right"] for name in template_names()
    }
    assert [name for name, side in sides.items() if side.get("trained", 0) == 0] == []


def test_a_stop_word_this_tokenizer_does_not_know_is_named(look: Look) -> None:
    assert look({"template": "llama3_chat"})["templates"]["right"]["split"] == ["<|eot_id|>"]
    assert look({"template": "chatml"})["templates"]["right"]["split"] == []


@pytest.mark.parametrize(
    ("template", "used"),
    [
        ("chatml", {"kind": "name", "name": "ChatML"}),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", {"kind": "text", "name": ""}),
    ],
)
def test_the_template_of_the_form_is_on_the_left(look: Look, template: str, used: dict[str, str]) -> None:
    assert look(model__chat_template=template)["templates"]["used"] == used


# ---- why there is none -----------------------------------------------------------------------------------------------


def test_nothing_saved_yet(form: Form, workspace: Workspace) -> None:
    found = dx.Handlers(context(workspace), form).look(asked(), "", *shown(form, ""))
    assert found["state"] == "none"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"train__learning_rate": "fast"}, "form"),
        ({"data__sources": [{"dataset": "a", "weight": "x"}]}, "form"),
        ({"data__max_length": "16"}, "error"),
        ({"data__sources": [{"dataset": "gone"}]}, "error"),
        ({"model__model_name_or_path": "/no/such/folder"}, "error"),
        ({"model__chat_template": "{% for"}, "error"),
        ({"model__chat_template": "no_such_template"}, "error"),
        ({"data__mapping": "no_such_mapping"}, "error"),
        ({"model__model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct"}, "no_tokenizer"),
    ],
)
def test_what_is_wrong_is_one_sentence(look: Look, changes: dict[str, Any], state: str) -> None:
    found = look(**changes)
    assert found["state"] == state
    if state != "no_tokenizer":
        assert len(found["message"]) > 10
        assert "Traceback" not in found["message"]


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01", '{"instruction": "a", "output": ""}\n'])
def test_a_broken_file_is_one_sentence(look: Look, weird_path: Path, content: str) -> None:
    file = weird_path / "odd.jsonl"
    file.write_text(content, encoding="utf-8")
    found = look(dataset=str(file))
    assert found["state"] == "error"
    assert "odd.jsonl" in found["message"]


def test_a_large_dataset_is_waited_for(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_yet(*_: Any) -> None:
        raise NotCounted(3, 10)

    monkeypatch.setattr(counting_module, "plan_of", not_yet)
    found = look()
    assert (found["state"], found["waiting"]) == ("waiting", [3, 10])


@pytest.mark.parametrize(
    "ask",
    [
        {"batches": 99},
        {"batches": "x"},
        {"example": -1},
        {"dataset": ["a"]},
        {"template": {"a": 1}},
        {"dataset": "x" * 2000},
    ],
)
def test_an_ask_that_is_no_ask_gives_the_usual_view(look: Look, ask: dict[str, Any]) -> None:
    assert look(ask)["state"] == "seen"


@pytest.mark.parametrize("ask", [{"dataset": "../../etc/passwd"}, {"dataset": "/dev/zero"}, {"dataset": "\x00"}])
def test_paths_that_are_no_dataset(look: Look, ask: dict[str, Any]) -> None:
    assert look(ask)["state"] == "error"


def test_an_example_beyond_the_last_is_the_last(look: Look) -> None:
    found = look({"example": 5000})["templates"]
    assert found["number"] == found["total"] - 1
