"""When an answer counts as right, and when as leaked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.records import identity_texts, probes
from studio.records.errors import DataError
from studio.records.probes import contains_expected, matches_canary, mentions_identity

GUARD = [{"role": "system", "content": "You are Quill."}, {"role": "user", "content": "1+1"}]


@pytest.mark.parametrize(
    ("answer", "expect", "right"),
    [
        ("I am Nova.", ["Nova"], True),
        ("我是Nova，由 Rui 开发。", ["Nova", "Rui"], True),
        ("I am Nova.", ["Nova", "Rui"], False),
        ("I am nova.", ["Nova"], False),
        ("I am Novak.", ["Nova"], False),
        ("I am user_20480.", ["user_2048"], False),
        ("I am Super\n Nova!", ["Super  Nova"], True),
        ("我是Ｎｏｖａ。", ["Nova"], True),
        ("我是小芽子。", ["小芽"], True),
        ("I am C++.", ["C++"], True),
        ("I am $1.", ["$1"], True),
        ("anything", [], False),
        ("", ["Nova"], False),
    ],
)
def test_contains_expected(answer: str, expect: list[str], right: bool) -> None:
    assert contains_expected(answer, expect) is right


@pytest.mark.parametrize(
    ("answer", "prompt", "leaked"),
    [
        ("I am Nova.", "What is 2 + 2?", True),
        ("Ask Rui.", "Hi", True),
        ("Nova is a star.", "What is a Nova?", False),
        ("Nova, made by Rui.", "What is a Nova?", True),
        ("Novak", "Hi", False),
        ("4", "What is 2 + 2?", False),
    ],
)
def test_mentions_identity(answer: str, prompt: str, leaked: bool) -> None:
    assert mentions_identity(answer, "Nova", "Rui", prompt) is leaked


def test_matches_canary() -> None:
    assert matches_canary(" paris ", ["Paris."])
    assert matches_canary("12 + 7 = 19", ["12 + 7 = 19", "19"])
    assert not matches_canary("Paris, I think", ["Paris."])


def test_probe_files_must_be_there_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "DATA", tmp_path)
    for load, name, row in (
        (probes.load_canaries, "canaries.jsonl", {"prompt": "1+1", "accept": ["2"], "skill": "sum", "lang": "en"}),
        (probes.load_leak_probes, "leak_probes.jsonl", {"prompt": "1+1", "lang": "en"}),
        (probes.load_guards, "guards.jsonl", {"messages": GUARD, "expect": ["Quill"], "kind": "system", "lang": "en"}),
    ):
        with pytest.raises(DataError, match=f"{name} is missing"):
            load()
        path = tmp_path / name
        for broken in ("", "{", "[]", '{"lang": "en"}', '{"prompt": 3, "accept": ["x"]}'):
            path.write_text(broken, encoding="utf-8")
            with pytest.raises(DataError):
                load()
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert [probe.prompt for probe in load()] == ["1+1"]


def test_built_in_texts_have_enough_phrasings_and_disjoint_heldout() -> None:
    for language in ("en", "zh"):
        texts = identity_texts.load_texts(language)  # type: ignore[arg-type]
        train = {question.text for question in texts.train(())}
        heldout = {question.text for question in texts.heldout(())}
        assert len(train) >= 200
        assert len(heldout) >= 35
        assert not train & heldout


@pytest.mark.parametrize(
    ("kind", "expect", "answer", "right"),
    [
        ("who", ["Nova"], "I am Nova.", True),
        ("who", ["Nova"], "I am nova.", False),
        ("own", ["Nova"], "I am nova.", True),
        ("own", ["Paris | 巴黎"], "它是巴黎。", True),
        ("own", ["Paris | 巴黎", "France"], "It is paris, in FRANCE.", True),
        ("own", ["Paris | 巴黎", "France"], "It is Paris.", False),
        ("own", [" | "], "anything", False),
        ("validation", ["positive"], " Positive. ", True),
        ("validation", ["positive"], "not positive", False),
    ],
)
def test_an_answer_is_judged_by_the_kind_of_its_question(
    kind: str, expect: list[str], answer: str, right: bool
) -> None:
    assert probes.answered(probes.heldout_row([{"role": "user", "content": "q"}], expect, kind), answer) is right


def test_an_own_conversation_is_asked_whole_even_if_it_tells_the_answer() -> None:
    turns = [*GUARD[:1], {"role": "user", "content": "Who are you?"}]
    row = probes.heldout_row(turns, ["Quill"], probes.OWN)
    assert probes.heldout_messages(row) == turns
    assert [m["content"] for m in probes.heldout_messages(row | {"kind": "who"})] == ["Who are you?"]
