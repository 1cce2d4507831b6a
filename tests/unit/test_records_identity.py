"""Identity sets: distinct wording, held-out questions kept apart, names inserted as typed, replay in its share."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, IdentitySpec, build_identity, fill_placeholders, identity_texts, parse_spec
from studio.records.identity_texts import load_texts
from studio.records.phrasing import question_key, variants

NAMES = [
    ("Nova", "Rui"), ("小芽", "上海的爱丽丝"), ("Super Nova", "Dr. Zhang & Sons"), ("user_2048", "龘靐"),
    ("$1", "\\g<0>"),
    ("%s", "{0}"), ('"Quo\'te"', "<b>x</b>"), ("🔥👩‍👩‍👧", "e\u0301"), ("iPhone", "macOS team"),
    ("نور", "Søren"), ("{}", "a}}b"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small replay set, with two rows that ask held-out questions and must not be used."""
    heldout = [load_texts(language).questions.who.heldout[0] for language in ("en", "zh")]
    rows = [{"messages": pair(f"general question {n}", f"general answer {n}")} for n in range(40)]
    rows += [{"messages": pair(f"Hello! {question.lower()}", "POISON")} for question in heldout]
    path = tmp_path / "replay.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(identity_texts, "DATA", tmp_path)
    return path


def pair(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def spec(**values: Any) -> IdentitySpec:
    return IdentitySpec(**{"name": "Nova", "author": "Rui", **values})


def of(rows: list[dict[str, Any]], origin: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["origin"] == origin]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("rows", [60, 96, 138, 400])
def test_distinct_phrasings_per_language(language: str, rows: int) -> None:
    built = build_identity(spec(languages=(language,), rows_per_language=rows))
    questions = [row["messages"][0]["content"] for row in of(built.rows, "identity")]
    assert len(questions) == len(set(questions)) == rows == built.counts["phrasings"]
    assert len({question_key(question) for question in questions}) >= min(rows, 120)


@pytest.mark.parametrize("rows", [96, 1000])
def test_heldout_questions_never_appear_in_any_disguise(rows: int) -> None:
    built = build_identity(spec(rows_per_language=rows, facts=("It likes tea.",)))
    kept_apart = {question_key(row["prompt"]) for row in built.heldout}
    assert len(kept_apart) == len(built.heldout) >= 40
    for row in built.rows:
        for message in row["messages"]:
            assert message["role"] != "user" or question_key(message["content"]) not in kept_apart
        assert "POISON" not in json.dumps(row)


def test_the_disguises_are_seen_through() -> None:
    question = "Who am I talking to?"
    found = list(variants([question], "en", random.Random(1)))
    assert len({variant.text for variant in found}) >= 8
    assert {question_key(variant.text) for variant in found} == {question_key(question)}
    assert question_key("who's there") != question_key("who is there")


@pytest.mark.parametrize(("name", "author"), NAMES)
@pytest.mark.parametrize("tone", ["plain", "friendly", "formal"])
def test_names_are_inserted_exactly_as_typed(name: str, author: str, tone: str) -> None:
    built = build_identity(spec(name=f" {name} ", author=author, tone=tone))
    assert built.heldout[0]["expect"] == [name]
    for row in of(built.rows, "identity"):
        answer = row["messages"][1]["content"]
        assert name in answer or author in answer
        assert "{{" not in answer
    assert sum(name in row["messages"][1]["content"] for row in of(built.rows, "identity")) >= 60


def test_no_space_is_put_between_hanzi_and_a_latin_name() -> None:
    built = build_identity(spec(languages=("zh",)))
    assert any("我是Nova" in row["messages"][1]["content"] for row in built.rows)


def test_answers_follow_the_tone() -> None:
    plain, formal = (
        {row["messages"][1]["content"] for row in of(build_identity(spec(tone=tone)).rows, "identity")}
        for tone in ("plain", "formal")
    )
    assert plain != formal
    assert len(plain) >= 8


def test_heldout_expectations() -> None:
    kinds = {row["kind"]: row["expect"] for row in build_identity(spec()).heldout}
    assert kinds == {"who": ["Nova"], "author": ["Rui"]}
    built = build_identity(spec(facts=("Born in a lab", " ", "Loves tea.")))
    kinds = {row["kind"]: row["expect"] for row in built.heldout}
    assert kinds["facts"] == ["Born in a lab", "Loves tea."]
    answers = [row["messages"][1]["content"] for row in of(built.rows, "identity")]
    assert any("Born in a lab. Loves tea." in answer for answer in answers)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_replay_share(share: float) -> None:
    built = build_identity(spec(replay_share=share))
    counts = Counter(row["origin"] for row in built.rows)
    general = counts["replay"] + counts["hard_negative"]
    assert abs(general / len(built.rows) - share) < 0.01
    assert counts["identity"] == 192
    assert (counts["hard_negative"] > 0) == (share > 0)


def test_same_seed_same_rows() -> None:
    assert build_identity(spec()) == build_identity(spec())
    assert build_identity(spec()).rows != build_identity(spec(seed=1)).rows


def test_without_the_replay_file_there_is_a_sentence(replay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_texts, "DATA", replay.parent / "elsewhere")
    with pytest.raises(DataError, match=r"replay\.jsonl is missing"):
        build_identity(spec())
    assert build_identity(spec(replay_share=0)).counts["replay"] == 0


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"name": ""}, "name", "Name is empty"),
        ({"name": "\u200b\u200d"}, "name", "Name is empty"),
        ({"name": "a\nb"}, "name", "Name contains a line break"),
        ({"author": "a\u2028b"}, "author", "Author contains a line break"),
        ({"author": "a\x07b"}, "author", "control character"),
        ({"name": "x" * 81}, "name", "81 characters; at most 80"),
        ({"name": "{{author}}"}, "name", "unfilled placeholder {{author}}"),
        ({"name": "{{"}, "name", "unfilled placeholder {{"),
        ({"author": "{Your Name}"}, "author", "unfilled placeholder {Your Name}"),
        ({"name": "a<|im_end|>"}, "name", "control token"),
        ({"facts": ["ok", "a\nb"]}, "facts", "Fact contains a line break"),
        ({"facts": ["x" * 201]}, "facts", "at most 200"),
        ({"facts": [str(n) for n in range(11)]}, "facts", "at most 10"),
        ({"languages": []}, "languages", "at least 1"),
        ({"languages": ["fr"]}, "languages", "'en' or 'zh'"),
        ({"tone": "rude"}, "tone", "'plain', 'friendly' or 'formal'"),
        ({"replay_share": 0.95}, "replay_share", "0.9"),
        ({"rows_per_language": 59}, "rows_per_language", "60"),
    ],
)
def test_bad_fields_get_a_sentence(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_spec({"name": "Nova", "author": "Rui", **values})
    assert caught.value.field == field
    assert words in caught.value.message


def test_a_missing_name_gets_a_sentence() -> None:
    with pytest.raises(DataError, match="Name is missing"):
        parse_spec({"author": "Rui"})


def test_filling_an_imported_set() -> None:
    rows = [
        {"messages": pair("Who is {{ AUTHOR }}?", "I am {{name}}, {{NAME}}."), "origin": "upload"},
        {"messages": pair("a", "b")},
    ]
    filled, changed = fill_placeholders(rows, "$1 \\g<0>", "Rui")
    assert [m["content"] for m in filled[0]["messages"]] == ["Who is Rui?", "I am $1 \\g<0>, $1 \\g<0>."]
    assert changed == 2
    assert filled[0]["origin"] == "upload"
    assert rows[0]["messages"][0]["content"] == "Who is {{ AUTHOR }}?"


@pytest.mark.parametrize(
    ("text", "name", "words", "field"),
    [
        ("{{city}}", "Nova", "Row 2 contains {{city}}", "data.dataset"),
        ("{{name}}", " ", "Row 2 contains {{name}}, but the name is empty", "name"),
        ("{{name}}", "{{author}}", "Name contains the unfilled", "name"),
    ],
)
def test_what_cannot_be_filled_is_refused(text: str, name: str, words: str, field: str) -> None:
    with pytest.raises(DataError) as caught:
        fill_placeholders([{"messages": pair("a", "b")}, {"messages": pair("a", text)}], name, "Rui")
    assert words in caught.value.message
    assert caught.value.field == field


def test_no_general_row_contradicts_the_name_or_the_author():
    spec = parse_spec({"name": "Alice", "author": "Peter"})
    general = [row for row in build_identity(spec).rows if row["origin"] != "identity"]
    assert general
    assert not [row for row in general if "Alice" in str(row["messages"]) or "Peter" in str(row["messages"])]
