"""The Data tab's handlers on a real workspace: every way in, the viewer, edits, whole datasets, refusals."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from studio.events import RunState
from studio.fetchdir import FetchJob, FetchStatus, new_fetch
from studio.records import DataError, DatasetInfo
from studio.records.identity_spec import IdentitySpec, Replay
from studio.records.identity_texts import KINDS, Tone
from studio.ui.app import build_ui
from studio.ui.context import Refused
from studio.ui.i18n import page_texts
from studio.ui.tabs import data_form, data_hub, data_own, data_routes
from studio.ui.tabs import data_view as dv
from studio.ui.tabs.data import Handlers, saved_list
from studio.ui.tabs.data_identity import FIELDS, REPLAYS, SPEC, TONES, check_spec, spec_errors
from studio.ui.wording import in_chinese
from studio.workspace import Workspace
from tests.ui.building import built

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "${alert(1)}",
    "$(touch pwned); `id`",
    "../../etc/passwd",
    "Q\"uo'te",
    "🜂 炉子",
    "{0} %s \\n",
]
TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nova."}]
ROW = {"messages": TALK, "origin": "upload"}


def event(**data: Any) -> gr.EventData:
    return SimpleNamespace(_data=data)  # type: ignore[return-value]


def spec(**changes: Any) -> tuple[Any, ...]:
    base: dict[str, Any] = dict.fromkeys(FIELDS) | {"name": "Nova", "author": "Class 3B", "languages": ["en", "zh"]}
    base |= {"tone": "plain", "replay": "builtin", "replay_share": 0.5, "rows_per_language": 60, "seed": "42"} | changes
    return tuple(base[name] for name in FIELDS)


def own(**changes: Any) -> tuple[Any, ...]:
    base: dict[str, Any] = dict.fromkeys(data_own.FIELDS) | {"way": "file", "strict": False} | changes
    return tuple(base[name] for name in data_own.FIELDS)


@pytest.fixture
def handlers(workspace: Workspace) -> Handlers:
    return Handlers(workspace)


@pytest.fixture
def saved(handlers: Handlers) -> dict[str, Any]:
    view: dict[str, Any] = handlers.save_identity(*spec(), "First")[0]
    return view


@pytest.fixture
def thirty(handlers: Handlers) -> str:
    rows = [{**ROW, "messages": [{"role": "user", "content": f"Question {n}?"}, TALK[1]]} for n in range(30)]
    return handlers.store.save("thirty", rows, [], DatasetInfo(kind="upload")).name


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def page(handlers: Handlers, form: tuple[Any, ...] = (), **ask: Any) -> dict[str, Any]:
    return handlers.page(event(**ask), *(form or spec()), *own())


# ---- identity --------------------------------------------------------------------------------------------------------


def test_preview_counts_per_origin_and_intent_and_pages(handlers: Handlers) -> None:
    view = handlers.identity.preview(*spec())
    assert view["counts"]["identity"] == 120
    assert view["counts"][""] == view["total"] == 240
    assert view["counts"]["heldout"] > 0
    assert sum(view["intents"].values()) == 120
    assert view["facts"]["phrasings"] == {"en": 60, "zh": 60}
    assert len(view["rows"]) == dv.PAGE
    assert not view["editable"]
    second = page(handlers, source="builder", offset=dv.PAGE)
    assert [row["n"] for row in second["rows"]] == list(range(dv.PAGE, 2 * dv.PAGE))


def test_page_beyond_the_end_is_the_last_page(handlers: Handlers) -> None:
    view = page(handlers, source="builder", offset=10**9)
    assert view["rows"]
    assert view["offset"] + len(view["rows"]) == view["total"]


def test_filter_by_origin_intent_text_and_heldout(handlers: Handlers) -> None:
    view = page(handlers, source="builder", origin="hard_negative")
    assert {row["origin"] for row in view["rows"]} == {"hard_negative"}
    asked = page(handlers, source="builder", intent="author")
    assert {row["intent"] for row in asked["rows"]} == {"author"}
    assert asked["total"] == view["intents"]["author"]
    found = page(handlers, source="builder", query="CLASS 3b", size=100)
    assert 0 < found["total"] < view["counts"][""]
    assert all("class 3b" in json.dumps(row["messages"]).lower() for row in found["rows"])
    held = page(handlers, source="builder", origin="heldout")
    assert all(row["expect"] for row in held["rows"])


def test_nothing_typed_is_an_empty_state_without_complaint(handlers: Handlers) -> None:
    view = handlers.identity.preview(*spec(name=None, author=""))
    assert (view["empty"], view["wrong"], view["notes"]) == (True, {}, [])


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": "{{NAME}}"}, "name", "placeholder"),
        ({"author": "a\nb"}, "author", "line"),
        ({"facts": "good\n{{fact}}"}, "facts", "placeholder"),
        ({"facts": "\n".join("abcdefghijk")}, "facts", "10"),
        ({"languages": []}, "languages", "at least one language"),
        ({"seed": "abc"}, "seed", "whole number"),
        ({"seed": "-1"}, "seed", "at least 0"),
        ({"name": "x" * 81}, "name", "80"),
        ({"answer": "I am somebody."}, "answer", "Nova"),
        ({"copies": "0"}, "copies", "1"),
        ({"tone": "rude"}, "tone", "plain"),
        ({"replay": "anything"}, "replay", "builtin"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], field: str, words: str) -> None:
    found = spec_errors(spec(**changes)[: len(SPEC)])
    assert list(found) == [field]
    assert words in found[field]
    answers = check_spec(*spec(**changes), "title")
    assert [answer["is_valid"] for answer in answers].count(False) == 1
    assert not answers[FIELDS.index(field)]["is_valid"]


def test_all_wrong_fields_at_once(handlers: Handlers) -> None:
    wrong = spec(name="", author="{{a}}", seed="-1", answer="no name")
    assert set(spec_errors(wrong[: len(SPEC)])) == {"name", "author", "seed"}
    view = handlers.identity.preview(*wrong)
    assert view["labels"] == {"author": "Author", "seed": "Seed"}  # an empty name is no mistake yet


def test_own_answers_and_facts_are_in_the_rows(handlers: Handlers) -> None:
    form = spec(answer="Call me {{name}}!", abilities="I count sheep.", facts="I live on Mars.")
    texts = json.dumps([row["messages"] for row in page(handlers, form, source="builder", size=100)["rows"]])
    for text in ("Call me Nova!", "I count sheep.", "I live on Mars."):
        assert page(handlers, form, source="builder", query=text)["total"] > 0, texts


def test_replay_of_own_rows_from_a_dataset_or_a_file(handlers: Handlers, thirty: str, workspace: Workspace) -> None:
    view = handlers.identity.preview(*spec(replay="file", replay_rows=thirty))
    assert page(handlers, spec(replay="file", replay_rows=thirty), source="builder", query="Question 7?")["total"] > 0
    assert any("used repeatedly" in note for note in view["notes"])
    file = write(workspace.path, "mine.jsonl", json.dumps({"instruction": "Sing!", "output": "La la."}))
    assert page(handlers, spec(replay="file", replay_rows=file), source="builder", query="La la.")["total"] > 0


@pytest.mark.parametrize("chosen", [None, "", "nowhere.jsonl", "/etc/passwd", "../../../etc/passwd", "\0"])
def test_replay_rows_must_lie_where_they_may_be_read(handlers: Handlers, chosen: Any) -> None:
    view = handlers.identity.preview(*spec(replay="file", replay_rows=chosen))
    assert view["empty"]
    assert len(view["notes"]) == 1
    with pytest.raises(DataError):
        handlers.save_identity(*spec(replay="file", replay_rows=chosen), "x")
    assert handlers.store.list() == []


def test_self_replay_is_counted_and_kept_with_the_dataset(handlers: Handlers) -> None:
    view = handlers.identity.preview(*spec(replay="self"))
    assert "replay" not in view["counts"]
    assert view["facts"]["self_replay"] > 50
    name = handlers.save_identity(*spec(replay="self"), "")[1]
    assert handlers.store.info(name).self_replay == view["facts"]["self_replay"]


def test_the_naive_recipe_is_copies_of_one_row(handlers: Handlers) -> None:
    view = handlers.identity.preview(*spec(recipe="naive", copies="200"))
    assert view["counts"][""] == 200
    assert len({json.dumps(row["messages"]) for row in view["rows"]}) == 1
    shown = [update["visible"] for update in handlers.identity.applies("naive", "builtin")]
    assert shown == [True, False, False, True]
    assert [update["visible"] for update in handlers.identity.applies("full", "file")] == [False, True, True, False]


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
    assert len(saved_list(handlers.store)["datasets"]) == 2


def test_every_choice_has_its_words() -> None:
    assert get_args(Tone) == TONES
    assert set(get_args(Replay)) == set(REPLAYS)
    assert set(SPEC) == set(IdentitySpec.model_fields)
    known = page_texts()["zh-CN"].keys()
    kinds = get_args(DatasetInfo.model_fields["kind"].annotation)
    assert not {f"data.intent.{kind}" for kind in KINDS} - known
    assert not {f"data.kind.{kind}" for kind in kinds} - known


# ---- rows of a saved dataset -----------------------------------------------------------------------------------------


def turns(row: dv.Row, **last: Any) -> list[dict[str, Any]]:
    found = [
        {"role": message["role"], "content": message["content"], "loss": message.get("loss", True), "at": at}
        for at, message in enumerate(row["messages"])
    ]
    return [*found[:-1], found[-1] | last]


def test_edit_one_row(handlers: Handlers, saved: dict[str, Any]) -> None:
    row = saved["rows"][3]
    seen = {"source": saved["source"], "sha256": saved["sha256"], "n": row["n"]}
    seen["turns"] = turns(row, content="I am <b>Nova</b>\nindeed ${1}")
    after, _ = handlers.change_row(event(**seen))
    assert after["rows"][3]["messages"][-1]["content"] == "I am <b>Nova</b>\nindeed ${1}"
    others = [r for i, r in enumerate(after["rows"]) if i != 3]
    assert others == [r for i, r in enumerate(saved["rows"]) if i != 3]
    with pytest.raises((Refused, DataError), match="changed"):  # a second page still shows the old rows
        handlers.change_row(event(**seen))


def test_an_edit_may_add_a_system_prompt_and_turns_and_keeps_the_rest(handlers: Handlers) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    talk = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": " 2 ", "name": "add"},
        {"role": "assistant", "content": "Two.", "loss": False},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome"},
    ]
    name = handlers.store.save("tools", [{"messages": talk, "tools": [call]}], [], DatasetInfo(kind="import")).name
    view = handlers.open(event(name=name))
    changed = [{"role": "system", "content": "Be kind.", "at": None}, *turns(view["rows"][0])[:4]]
    changed += [{"role": "user", "content": "And 2+2?"}, {"role": "assistant", "content": "Four.", "loss": False}]
    changed += [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Bye!"}]
    handlers.change_row(event(source=view["source"], sha256=view["sha256"], n=0, turns=changed))
    (row,) = handlers.store.load(name).rows
    assert row["messages"][:5] == [{"role": "system", "content": "Be kind."}, *talk[:4]]
    assert row["messages"][6] == {"role": "assistant", "content": "Four.", "loss": False}
    assert len(row["messages"]) == 9
    assert row["tools"] == [call]


def test_texts_and_rejected_answers_are_edited_as_what_they_are(handlers: Handlers) -> None:
    rows = [{"text": "Once."}, {"messages": TALK, "rejected": [{"role": "assistant", "content": "Go away."}]}]
    view = handlers.open(event(name=handlers.store.save("mix", rows, [], DatasetInfo(kind="import")).name))
    base = {"source": view["source"]}
    after, _ = handlers.change_row(event(**base, sha256=view["sha256"], n=0, text="Twice."))
    handlers.change_row(event(**base, sha256=after["sha256"], n=1, turns=turns(rows[1]), rejected=["No."]))
    text, pair = handlers.store.load("mix").rows
    assert text["text"] == "Twice."
    assert pair["rejected"] == [{"role": "assistant", "content": "No."}]
    assert pair["messages"] == TALK


def test_added_and_deleted_rows(handlers: Handlers, saved: dict[str, Any]) -> None:
    base = {"source": saved["source"], "sha256": saved["sha256"]}
    after, listed = handlers.change_row(event(**base, n=-1, turns=turns({"messages": TALK})))
    assert listed["datasets"][0]["rows"] == saved["total"] + 1
    assert after["rows"][-1]["messages"] == TALK
    gone = [0, 5, saved["total"]]
    again, _ = handlers.delete_rows(event(**base | {"sha256": after["sha256"]}, numbers=gone))
    assert again["total"] == saved["total"] - 2
    with pytest.raises(DataError):
        handlers.delete_rows(event(**base | {"sha256": again["sha256"]}, numbers=[10**6]))


@pytest.mark.parametrize("answer", ["", "   ", "I am {{NAME}}."])
def test_bad_edit_is_refused_and_nothing_is_written(handlers: Handlers, saved: dict[str, Any], answer: str) -> None:
    seen = {"source": saved["source"], "sha256": saved["sha256"], "n": 0}
    with pytest.raises(DataError, match="Row 1"):
        handlers.change_row(event(**seen, turns=turns(saved["rows"][0], content=answer)))
    with pytest.raises(DataError, match="Row 1"):
        handlers.change_row(event(**seen, turns=turns(saved["rows"][0])[:-1]))
    assert handlers.open(event(name=saved["facts"]["name"]))["sha256"] == saved["sha256"]


@pytest.mark.parametrize(
    "data",
    [
        {"source": 7},
        {"offset": -1},
        {"offset": "x"},
        {"source": "saved:../../x"},
        {"n": 10**9, "numbers": [10**9], "sha256": ""},
        {"numbers": []},
        {"size": 10**9},
        {"turns": "x", "numbers": "x"},
        {"turns": [{"role": "robot", "content": "x"}], "n": 0, "numbers": [-1]},
    ],
)
@pytest.mark.parametrize("action", ["delete_rows", "change_row"])
def test_forged_requests_are_refused(
    handlers: Handlers, saved: dict[str, Any], data: dict[str, Any], action: str
) -> None:
    seen = {"source": saved["source"], "sha256": saved["sha256"], "n": 0, "numbers": [0]}
    with pytest.raises((Refused, DataError)):
        getattr(handlers, action)(event(**{**seen, **data}))
    assert handlers.open(event(name=saved["facts"]["name"]))["total"] == saved["total"]


def test_a_saved_dataset_is_searched_and_filtered(handlers: Handlers, thirty: str, saved: dict[str, Any]) -> None:
    source = f"saved:{thirty}"
    found = page(handlers, source=source, query="question 2", size=100)
    assert [row["n"] for row in found["rows"]] == [2, *range(20, 30)]
    assert found["counts"] == {"": 30, "upload": 30}
    last = page(handlers, source=source, offset=10**6)
    assert [row["n"] for row in last["rows"]] == list(range(24, 30))
    held = page(handlers, source=saved["source"], origin="heldout")
    assert held["total"] == saved["counts"]["heldout"]
    assert page(handlers, source=source, query="no such thing")["rows"] == []


def test_a_huge_text_is_cut_for_the_page_only(handlers: Handlers) -> None:
    rows = [{"messages": [TALK[0], {"role": "assistant", "content": "x" * 10**6}]}]
    name = handlers.store.save("huge", rows, [], DatasetInfo(kind="upload")).name
    view = handlers.open(event(name=name))
    assert view["rows"][0]["cut"] is True
    assert len(json.dumps(view)) < 2 * dv.LONGEST_SHOWN
    assert len(handlers.store.load(name).rows[0]["messages"][1]["content"]) == 10**6


def test_train_on_goes_to_the_train_tab(handlers: Handlers, saved: dict[str, Any]) -> None:
    name, _tabs = handlers.train_on(event(name=saved["facts"]["name"]))
    assert name == saved["facts"]["name"]
    with pytest.raises(DataError):
        handlers.train_on(event(name="gone"))


# ---- a file of one's own ---------------------------------------------------------------------------------------------


def shown(handlers: Handlers, **form: Any) -> dict[str, Any]:
    found: dict[str, Any] = data_form.own_chosen(handlers.own)(*own(**form))[0]
    return found


def test_a_file_tells_format_encoding_rows_and_reasons(handlers: Handlers, weird_path: Path) -> None:
    rows = [
        {"instruction": "Hi", "output": "Hello"},
        {"instruction": "Empty", "output": ""},
        {"instruction": "Bye", "input": "now", "output": "Goodbye <script>"},
    ]
    view = shown(handlers, file=write(weird_path, "my set.json", rows))
    facts = {"format": "alpaca", "label": "Alpaca", "encoding": "utf-8", "rows_read": 3, "usable": 2, "head": 0}
    assert view["facts"] == facts
    assert view["skipped_total"] == 1
    assert view["skipped"][0][0] == 2
    assert "empty" in view["skipped"][0][1]


def test_strict_reading_refuses_the_file(handlers: Handlers, weird_path: Path) -> None:
    path = write(weird_path, "a.json", [{"instruction": "Hi", "output": "Hello"}, {"instruction": "x", "output": ""}])
    assert shown(handlers, file=path, strict=True)["empty"]
    with pytest.raises(DataError, match="row 2"):
        handlers.save_own(*own(file=path, strict=True), "")


def test_unknown_columns_are_asked_for_with_a_proposal(handlers: Handlers, weird_path: Path) -> None:
    lines = "\n".join(f"{n},What is {n}?,It is the number {n} and no other." for n in range(20))
    path = write(weird_path, "faq.csv", f"no,client,staff\n{lines}\n")
    view, reading, columns, _names, _mapping, split, *proposed = data_form.own_chosen(handlers.own)(*own(file=path))
    assert (reading["visible"], columns["visible"], split["visible"]) == (True, True, False)
    assert [update["value"] for update in proposed] == ["client", "staff", "", "", ""]
    assert {name for _, name in proposed[0]["choices"]} == {"", "no", "client", "staff"}
    assert view["total"] == 20
    other, visible = data_form.own_changed(handlers.own)(*own(file=path, column_text="staff"))
    assert visible["visible"]
    assert other["rows"][0]["text"] == "It is the number 0 and no other."
    name = handlers.save_own(*own(file=path, column_instruction="client", column_output="staff"), "")[1]
    assert handlers.store.load(name).rows[3]["messages"][0]["content"] == "What is 3?"


def test_known_columns_may_be_named_by_hand(handlers: Handlers, weird_path: Path) -> None:
    path = write(weird_path, "a.json", [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(3)])
    swapped = own(file=path, mapping="columns", column_instruction="output", column_output="instruction")
    view, visible = data_form.own_changed(handlers.own)(*swapped)
    assert visible["visible"]
    assert view["rows"][0]["messages"][0]["content"] == "a0"
    wrong, _ = data_form.own_changed(handlers.own)(*own(file=path, mapping="columns", column_output="<b>"))
    assert "<b>" in wrong["notes"][0]


def test_pasted_text_is_read_and_saved(handlers: Handlers) -> None:
    text = "question\tanswer\nWhat is 1+1?\tTwo.\nWhat is 2+2?\tFour."
    view = shown(handlers, way="text", text=text)
    assert (view["total"], view["title"]) == (2, "pasted text")
    _, name, _, _ = handlers.save_own(*own(way="text", text=text), "sums")
    assert handlers.store.info(name).rows == 2
    with pytest.raises(DataError, match="surrogate"):
        handlers.save_own(*own(way="text", text="x\ud800"), "")
    with pytest.raises(Refused, match="2,000,000"):
        handlers.save_own(*own(way="text", text="x" * 2_000_001), "")


def test_a_path_must_lie_in_an_allowed_folder(handlers: Handlers, workspace: Workspace, tmp_path: Path) -> None:
    write(workspace.path, "rows.jsonl", json.dumps({"instruction": "Hi", "output": "Hello"}))
    assert shown(handlers, way="path", path="rows.jsonl")["total"] == 1
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = write(outside, "secret.jsonl", json.dumps({"instruction": "Hi", "output": "secret"}))
    (workspace.path / "link.jsonl").symlink_to(secret)
    for path in (secret, "link.jsonl", "../outside/secret.jsonl", "/etc/passwd", "~/.ssh/id_rsa", "\0", "x" * 5000):
        with pytest.raises((DataError, Refused)):
            handlers.save_own(*own(way="path", path=path), "")
    assert handlers.store.list() == []


def test_a_folder_of_texts_is_one_dataset(handlers: Handlers, workspace: Workspace) -> None:
    folder = workspace.path / "texts"
    folder.mkdir()
    for n in range(3):
        write(folder, f"{n}.md", f"# Chapter {n}")
    name = handlers.save_own(*own(way="path", path="texts"), "")[1]
    assert handlers.store.info(name).texts == 3


def test_placeholders_must_be_filled_and_names_are_replaced(handlers: Handlers, weird_path: Path) -> None:
    talk = [TALK[0], {"role": "assistant", "content": "{{NAME}} by {{AUTHOR}}, not Qwen"}]
    path = write(weird_path, "id.jsonl", "\n".join(json.dumps({"messages": m}) for m in (talk, TALK, talk)))
    chosen = data_form.own_chosen(handlers.own)(*own(file=path))
    assert chosen[3]["open"] is True
    assert "Rows 1, 3 still contain {{NAME}}" in chosen[0]["notes"][0]
    for names in ({"name": "Nova"}, {}, {"name": "Nova", "author": "a\nb"}, {"name": "{{x}}", "author": "y"}):
        with pytest.raises(DataError):
            handlers.save_own(*own(file=path, **names), "x")
    assert handlers.store.list() == []
    filled = own(file=path, name="Nova", author="$x <b>", pairs="Qwen => Bert\n\nWho → Why")
    view, name, _, _ = handlers.save_own(*filled, None)
    assert name == "id"
    assert [m["content"] for m in view["rows"][0]["messages"]] == ["Why?", "Nova by $x <b>, not Bert"]


@pytest.mark.parametrize("pairs", ["Qwen Nova", "=>", " => Nova", "Qwen => {{x}}"])
def test_wrong_replacements_are_said_and_not_saved(handlers: Handlers, weird_path: Path, pairs: str) -> None:
    path = write(weird_path, "id.jsonl", json.dumps({"messages": TALK}))
    view, _ = data_form.own_changed(handlers.own)(*own(file=path, pairs=pairs))
    assert view["notes"]
    with pytest.raises((DataError, Refused)):
        handlers.save_own(*own(file=path, pairs=pairs), "")


def test_marks_that_may_be_placeholders_are_only_mentioned(handlers: Handlers, weird_path: Path) -> None:
    path = write(weird_path, "a.json", [{"instruction": "Who?", "output": "I am [NAME]."}] * 2)
    assert any("[NAME]" in note for note in shown(handlers, file=path)["notes"])
    assert handlers.save_own(*own(file=path), "")[1]


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
        ("letter.docx", "PK"),
        ("table.csv", "a,a\n1,2\n"),
        ("page.csv", "<!doctype html><html>"),
        ("noname", "x"),
    ],
)
def test_bad_files_give_one_sentence_in_both_languages(
    handlers: Handlers, weird_path: Path, name: str, content: str
) -> None:
    path = write(weird_path, name, content)
    view = shown(handlers, file=path)
    assert view["empty"] is True
    assert len(view["notes"]) == 1
    assert "Traceback" not in view["notes"][0]
    chinese = in_chinese(view["notes"][0]) or ""
    assert any("\u4e00" <= char <= "\u9fff" for char in chinese), view["notes"][0]
    with pytest.raises(DataError):
        handlers.save_own(*own(file=path), "")
    assert handlers.store.list() == []


@pytest.mark.parametrize(
    "form",
    [{}, {"way": "path"}, {"way": "text", "text": "  "}, {"way": "nowhere"}, {"file": "/nowhere/at/all.json"}],
)
def test_nothing_to_read_is_refused_with_a_sentence(handlers: Handlers, form: dict[str, Any]) -> None:
    assert shown(handlers, **form)["empty"]
    with pytest.raises((Refused, OSError)):
        handlers.save_own(*own(**form), "")


@pytest.mark.parametrize("form", [{"way": {}}, {"file": 7}, {"mapping": ["x"]}, {"split": {}}, {"strict": "maybe"}])
def test_forged_forms_are_refused(handlers: Handlers, form: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        handlers.save_own(*own(**form), "")


def test_a_big_file_shows_its_head_and_is_imported_by_a_process(
    handlers: Handlers, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_own, "BIG_BYTES", 2000)
    started: list[FetchJob] = []
    monkeypatch.setattr(
        data_own, "start_fetch", lambda _, job: started.append(job) or SimpleNamespace(id="20260101-000000_big")
    )
    lines = [json.dumps({"instruction": f"q {n}", "output": "{{name}}"}) for n in range(1000)]
    write(workspace.path, "big.jsonl", "\n".join(lines))
    form = own(way="path", path="big.jsonl", name="Nova")
    view, _ = data_form.own_changed(handlers.own)(*form)
    assert (view["total"], view["facts"]["head"]) == (data_own.HEAD_ROWS, data_own.HEAD_ROWS)
    *unchanged, follow = handlers.save_own(*form, "Big")
    assert follow == {"follow": "20260101-000000_big"}
    assert handlers.store.list() == []
    (job,) = started
    assert (job.hub, job.title, job.names.name, job.rows) == ("file", "Big", "Nova", None)
    assert Path(job.id) == (workspace.path / "big.jsonl").resolve()


# ---- whole datasets --------------------------------------------------------------------------------------------------


def order(handlers: Handlers, op: str, *names: str, chosen: str = "", **more: Any) -> tuple[Any, str, dict[str, Any]]:
    view, name, listed = handlers.order(event(op=op, names=list(names), **more), chosen)
    return name, view["facts"]["name"], listed


def test_split_merge_distinct_shuffle_sample_copy_rename(handlers: Handlers, thirty: str) -> None:
    rows: Callable[[str], int] = lambda name: handlers.store.info(name).rows  # noqa: E731
    _, first, listed = order(handlers, "split", thirty, share=0.7)
    rest = next(item["name"] for item in listed["datasets"] if item["name"] not in (first, thirty))
    assert (rows(first), rows(rest), rows(thirty)) == (21, 9, 30)
    assert "21" in listed["said"]
    assert "9" in listed["said"]
    _, merged, _ = order(handlers, "merge", first, rest, first, title="all <b>")
    assert rows(merged) == 51
    _, distinct, listed = order(handlers, "distinct", merged)
    assert rows(distinct) == 30
    assert "21" in listed["said"]
    _, mixed, _ = order(handlers, "shuffle", distinct, seed=7)
    assert rows(mixed) == 30
    _, some, _ = order(handlers, "sample", mixed, amount=0.1)
    assert rows(some) == 3
    _, copy, _ = order(handlers, "copy", some, title="mine")
    assert (copy, rows(copy)) == ("mine", 3)
    chosen, renamed, _ = order(handlers, "rename", copy, chosen=copy, title="ours")
    assert chosen == renamed == "ours"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"op": "explode", "names": ["thirty"]}, Refused),
        ({"op": "split", "names": []}, Refused),
        ({"op": "split", "names": ["thirty"], "share": float("nan")}, Refused),
        ({"op": "split", "names": ["thirty"], "share": 1.5}, DataError),
        ({"op": "merge", "names": ["thirty"]}, DataError),
        ({"op": "merge", "names": ["thirty", "../../etc"]}, DataError),
        ({"op": "sample", "names": ["thirty"], "amount": 31}, DataError),
        ({"op": "sample", "names": ["thirty"], "amount": 2.5}, DataError),
        ({"op": "shuffle", "names": ["thirty"], "seed": -1}, Refused),
        ({"op": "rename", "names": ["thirty"], "title": "  "}, Refused),
        ({"op": "rename", "names": ["gone"], "title": "x"}, DataError),
    ],
)
def test_wrong_orders_are_refused_and_change_nothing(
    handlers: Handlers, thirty: str, data: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        handlers.order(event(**data), "")
    assert [info.name for info in handlers.store.list()] == [thirty]


def test_deleting_the_chosen_dataset_unchooses_it(handlers: Handlers, saved: dict[str, Any]) -> None:
    _, chosen, listed = handlers.delete(event(name=saved["facts"]["name"]), saved["facts"]["name"])
    assert chosen == ""
    assert listed["datasets"] == []


# ---- a hub, imports, downloads ---------------------------------------------------------------------------------------


def test_a_fetch_starts_with_what_was_typed(
    handlers: Handlers, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[FetchJob] = []
    monkeypatch.setattr(data_hub, "start_fetch", lambda _, job: started.append(job) or SimpleNamespace(id="x"))
    page_address = "https://huggingface.co/datasets/tatsu-lab/alpaca"
    assert handlers.hub.start(page_address, "huggingface", "", "", "alpaca", "1,000", True, "") == {"follow": "x"}
    (job,) = started
    assert (job.id, job.mapping, job.rows, job.strict, job.split) == ("tatsu-lab/alpaca", "alpaca", 1000, True, None)


@pytest.mark.parametrize(("name", "rows"), [("", ""), ("a/b", "many"), ("a/b", "0"), ("a/b", "-1"), ("../../x", "")])
def test_a_wrong_fetch_is_refused_before_it_starts(handlers: Handlers, name: str, rows: str) -> None:
    with pytest.raises((Refused, DataError)):
        handlers.hub.start(name, "huggingface", "", "", "", rows, False, "")


def test_the_hub_form_is_judged_field_by_field() -> None:
    judged = [answer["is_valid"] for answer in data_form.check_hub("", "huggingface", "", "", "", "lots", False, "")]
    assert [name for name, good in zip(data_hub.FIELDS, judged, strict=True) if not good] == ["id", "rows"]


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    app = FastAPI()
    app.include_router(data_routes.build(workspace))
    return TestClient(app)


def test_imports_are_told_to_the_page_in_its_language(
    handlers: Handlers, workspace: Workspace, client: TestClient
) -> None:
    fetch = new_fetch(workspace, FetchJob(id="a/b", title="<b>"))
    status = FetchStatus(state=RunState.FINISHED, phase="end", done=7, dataset="b", skipped=1)
    status.first_skipped = [(3, "the row is a text, not an object")]
    fetch.write_status(status)
    (told,) = client.get("/api/imports").json()
    assert (told["name"], told["live"], told["dataset"]) == ("<b>", False, "b")
    assert "not an object" in told["first_skipped"][0][1]
    client.cookies.set("studio_lang", "zh-CN")
    (chinese,) = client.get("/api/imports").json()
    assert "不是对象" in chinese["first_skipped"][0][1]
    handlers.forget_import(event(name=told["id"]))
    assert client.get("/api/imports").json() == []


@pytest.mark.parametrize("name", ["", "..", "../datasets", "gone", "/etc"])
def test_only_known_imports_are_stopped_or_removed(handlers: Handlers, workspace: Workspace, name: str) -> None:
    fetch = new_fetch(workspace, FetchJob(id="a/b"))
    for action in (handlers.stop_import, handlers.forget_import):
        with pytest.raises(Refused):
            action(event(name=name))
    assert fetch.job_file.is_file()


def test_downloads_are_files_that_can_be_read_again(
    handlers: Handlers, workspace: Workspace, client: TestClient, weird_path: Path
) -> None:
    rows = [ROW, {"text": "Once upon a time."}, {"messages": [{"role": "system", "content": "Be short."}, *TALK]}]
    name = handlers.store.save("数据", rows, [], DatasetInfo(kind="upload")).name
    told = client.get(f"/api/datasets/{name}/convertible", params={"to": "alpaca"}).json()
    assert (told["rows"], told["left"], told["row"]) == (2, 1, 2)
    assert client.get(f"/api/datasets/{name}/convertible", params={"to": "conversation"}).json()["rows"] == 3
    for to, count in (("messages", 3), ("alpaca", 2)):
        answer = client.get(f"/api/datasets/{name}/download", params={"to": to})
        assert "%E6%95%B0%E6%8D%AE" in answer.headers["content-disposition"]
        again = shown(handlers, file=write(weird_path, f"{to}.jsonl", answer.text))
        assert again["total"] == count
        assert again["rows"][0]["messages"] == TALK


@pytest.mark.parametrize("path", ["gone/download?to=alpaca", "..%2F..%2Fetc/convertible?to=messages"])
def test_what_is_not_there_cannot_be_downloaded(client: TestClient, path: str) -> None:
    assert client.get(f"/api/datasets/{path}").status_code == 404


def test_the_tab_builds_without_any_dataset(workspace: Workspace) -> None:
    demo = built(lambda: build_ui(workspace))
    assert asyncio.iscoroutinefunction(demo.process_api)
    known = json.dumps(demo.config["components"], default=str)
    for elem_id in ("data-name", "data-author", "data-save", "data-file", "data-rows", "data-saved", "data-imports"):
        assert f'"{elem_id}"' in known
