"""The Data tab's handlers on a real workspace: preview, upload, saving, editing, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from studio.records import DataError, DatasetStore
from studio.rundir import Workspace
from studio.ui.context import Refused
from studio.ui.tabs import data_view as dv
from studio.ui.tabs.data import SPEC, Handlers, check_spec, spec_errors
from studio.ui.wording import in_chinese

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "${alert(1)}",
    "$(touch pwned); `id`",
    "../../etc/passwd",
    "Q\"uo'te",
    "🜂 炉子",
    "{0} %s \\n",
]


def event(**data: Any) -> gr.EventData:
    return SimpleNamespace(_data=data)  # type: ignore[return-value]


def spec(**changes: Any) -> tuple[Any, ...]:
    base = {"name": "Nova", "author": "Class 3B", "languages": ["en", "zh"], "tone": "plain", "facts": None}
    base |= {"replay_share": 0.5, "rows_per_language": 60, "seed": "42"} | changes
    return tuple(base[name] for name in SPEC)


@pytest.fixture
def handlers(workspace: Workspace) -> Handlers:
    return Handlers(DatasetStore(workspace.datasets))


@pytest.fixture
def saved(handlers: Handlers) -> dict[str, Any]:
    view: dict[str, Any] = handlers.save_identity(*spec(), "First")[0]
    return view


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_preview_counts_and_pages(handlers: Handlers) -> None:
    view = handlers.preview(*spec())
    assert view["counts"]["identity"] == 120
    assert view["counts"][""] == view["total"] == 240
    assert view["counts"]["heldout"] > 0
    assert view["facts"]["phrasings"] == {"en": 60, "zh": 60}
    assert len(view["rows"]) == dv.PAGE
    assert not view["editable"]
    second = handlers.page(event(source="builder", offset=dv.PAGE), *spec(), None, None, None)
    assert [row["n"] for row in second["rows"]] == list(range(dv.PAGE, 2 * dv.PAGE))


def test_page_beyond_the_end_is_the_last_page(handlers: Handlers) -> None:
    view = handlers.page(event(source="builder", offset=10**9), *spec(), None, None, None)
    assert view["rows"]
    assert view["offset"] + len(view["rows"]) == view["total"]


def test_filter_by_origin_and_heldout(handlers: Handlers) -> None:
    view = handlers.page(event(source="builder", origin="hard_negative"), *spec(), None, None, None)
    assert {row["origin"] for row in view["rows"]} == {"hard_negative"}
    held = handlers.page(event(source="builder", origin="heldout"), *spec(), None, None, None)
    assert all(row["expect"] for row in held["rows"])


def test_nothing_typed_is_an_empty_state_without_complaint(handlers: Handlers) -> None:
    assert handlers.preview(*spec(name=None, author="")) == {"source": "builder", "empty": True, "wrong": {}}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": "{{NAME}}"}, "name", "placeholder"),
        ({"author": "a\nb"}, "author", "line"),
        ({"facts": "good\n{{fact}}"}, "facts", "placeholder"),
        ({"languages": []}, "languages", "at least one language"),
        ({"seed": "abc"}, "seed", "integer"),
        ({"name": "x" * 81}, "name", "80"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], field: str, words: str) -> None:
    found = spec_errors(spec(**changes))
    assert list(found) == [field]
    assert words in found[field]
    answers = check_spec(*spec(**changes), "title")
    assert [answer["is_valid"] for answer in answers].count(False) == 1
    assert not answers[SPEC.index(field)]["is_valid"]


def test_all_wrong_fields_at_once() -> None:
    assert set(spec_errors(spec(name="", author="{{a}}", seed="-1"))) == {"name", "author", "seed"}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_only_text(handlers: Handlers, workspace: Workspace, text: str) -> None:
    view, name, _ = handlers.save_identity(*spec(name=text), text)
    assert (workspace.datasets / name).parent == workspace.datasets
    assert view["title"] == text
    rows = (workspace.datasets / name / "rows.jsonl").read_text(encoding="utf-8")
    assert any(text in message["content"] for line in rows.splitlines() for message in json.loads(line)["messages"])


def test_saving_twice_keeps_both(handlers: Handlers) -> None:
    names = {handlers.save_identity(*spec(), "Same")[1] for _ in range(2)}
    assert len(names) == 2
    assert len(dv.saved_list(handlers.store)["datasets"]) == 2


def test_edit_one_row(handlers: Handlers, saved: dict[str, Any]) -> None:
    row = saved["rows"][3]
    texts = [message["content"] for message in row["messages"][:-1]] + ["I am <b>Nova</b>\nindeed ${1}"]
    seen = {"source": saved["source"], "sha256": saved["sha256"], "n": row["n"], "contents": texts}
    after, _ = handlers.change_row(event(**seen))
    assert after["rows"][3]["messages"][-1]["content"] == texts[-1]
    others = [r for i, r in enumerate(after["rows"]) if i != 3]
    assert others == [r for i, r in enumerate(saved["rows"]) if i != 3]
    with pytest.raises(Refused, match="changed since"):  # a second page still shows the old rows
        handlers.change_row(event(**seen))


def test_added_and_deleted_row(handlers: Handlers, saved: dict[str, Any]) -> None:
    base = {"source": saved["source"], "sha256": saved["sha256"]}
    after, listed = handlers.change_row(event(**base, n=-1, contents=["Hello?", "Hi."]))
    assert listed["datasets"][0]["rows"] == saved["total"] + 1
    assert after["rows"][-1]["messages"][0]["content"] == "Hello?"
    again, _ = handlers.delete_row(event(**base | {"sha256": after["sha256"]}, n=saved["total"]))
    assert again["total"] == saved["total"]
    assert again["sha256"] == saved["sha256"]


@pytest.mark.parametrize("answer", ["", "   ", "I am {{NAME}}."])
def test_bad_edit_is_refused_and_nothing_is_written(handlers: Handlers, saved: dict[str, Any], answer: str) -> None:
    texts = [message["content"] for message in saved["rows"][0]["messages"][:-1]] + [answer]
    with pytest.raises(DataError, match="Row 1"):
        handlers.change_row(event(source=saved["source"], sha256=saved["sha256"], n=0, contents=texts))
    assert handlers.open(event(name=saved["facts"]["name"]))["sha256"] == saved["sha256"]


@pytest.mark.parametrize(
    "data", [{"source": 7}, {"offset": -1}, {"offset": "x"}, {"source": "saved:../../x"}, {"n": 10**9, "sha256": ""}]
)
def test_forged_requests_are_refused(handlers: Handlers, saved: dict[str, Any], data: dict[str, Any]) -> None:
    with pytest.raises((Refused, DataError)):
        handlers.delete_row(event(**{"source": saved["source"], **data}))
    assert handlers.open(event(name=saved["facts"]["name"]))["total"] == saved["total"]


def test_train_on_goes_to_the_train_tab(handlers: Handlers, saved: dict[str, Any]) -> None:
    name, _tabs = handlers.train_on(event(name=saved["facts"]["name"]))
    assert name == saved["facts"]["name"]
    with pytest.raises(DataError):
        handlers.train_on(event(name="gone"))


def test_upload_tells_format_rows_and_reasons(handlers: Handlers, weird_path: Path) -> None:
    rows = [
        {"instruction": "Hi", "output": "Hello"},
        {"instruction": "Empty", "output": ""},
        {"instruction": "Bye", "input": "now", "output": "Goodbye <script>"},
    ]
    view = handlers.upload(write(weird_path, "my set.json", rows), None, None)
    assert view["facts"] == {"format": "alpaca", "rows_read": 3, "usable": 2}
    assert view["skipped_total"] == 1
    assert view["skipped"][0][0] == 2
    assert "empty" in view["skipped"][0][1]


def test_upload_with_placeholders_must_be_filled(handlers: Handlers, weird_path: Path) -> None:
    turn = {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "{{NAME}} by {{AUTHOR}}"}]
    }
    path = write(weird_path, "id.jsonl", json.dumps(turn) + "\n" + json.dumps(turn))
    assert handlers.asks_names(path)["visible"] is True
    assert any("{{NAME}}" in note for note in handlers.upload(path, None, None)["notes"])
    with pytest.raises(DataError):
        handlers.save_upload(path, "Nova", "", "x")
    view, name, _ = handlers.save_upload(path, "Nova", "$x <b>", None)
    assert name == "id"
    assert view["rows"][0]["messages"][1]["content"] == "Nova by $x <b>"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.json", ""),
        ("list.json", "[]"),
        ("cut.json", '[{"instruction": "a", "out'),
        ("roles.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}'),
        ("columns.json", '[{"a": 1}]'),
        ("text.json", '["x"]'),
        ("one.jsonl", '{"messages": [{"role": "user", "content": "x"}]}'),
    ],
)
def test_bad_files_give_one_sentence_in_both_languages(
    handlers: Handlers, weird_path: Path, name: str, content: str
) -> None:
    path = write(weird_path, name, content)
    view = handlers.upload(path, None, None)
    assert view["empty"] is True
    assert len(view["notes"]) == 1
    assert "Traceback" not in view["notes"][0]
    chinese = in_chinese(view["notes"][0]) or ""
    assert any("\u4e00" <= char <= "\u9fff" for char in chinese), view["notes"][0]
    with pytest.raises(DataError):
        handlers.save_upload(path, "", "", "")
    assert handlers.store.list() == []


def test_no_file_is_refused_with_a_sentence(handlers: Handlers) -> None:
    with pytest.raises(Refused, match="No file is chosen"):
        handlers.save_upload(None, "", "", "")


def test_deleting_the_chosen_dataset_unchooses_it(handlers: Handlers, saved: dict[str, Any]) -> None:
    _, chosen, listed = handlers.delete(event(name=saved["facts"]["name"]), saved["facts"]["name"])
    assert chosen == ""
    assert listed["datasets"] == []
