"""Identity sets: distinct wording, held-out questions kept apart, names inserted as typed, replay in its share."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, IdentitySpec, build_identity, identity_texts, parse_spec
from studio.records.identity_texts import YES_NO, load_texts
from studio.records.phrasing import question_key, same_question, variants
from studio.records.probes import contains_expected

NAMES = [
    ("Nova", "Rui"), ("小芽", "上海的爱丽丝"), ("Super Nova", "Dr. Zhang & Sons"), ("user_2048", "龘靐"),
    ("$1", "\\g<0>"),
    ("%s", "{0}"), ('"Quo\'te"', "<b>x</b>"), ("🔥👩‍👩‍👧", "e\u0301"), ("iPhone", "macOS team"),
    ("نور", "Søren"), ("{}", "a}}b"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small replay set, with two rows that ask held-out questions and must not be used."""
    heldout = [load_texts(language).questions["who"].heldout[0] for language in ("en", "zh")]
    rows = [{"messages": pair(f"general question {n}", f"general answer {n}"), "skill": "facts"} for n in range(40)]
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


def asked(row: dict[str, Any]) -> str:
    """The last question of a row."""
    return str(row["messages"][-2]["content"])


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("rows", [60, 100, 138, 400])
def test_distinct_phrasings_per_language(language: str, rows: int) -> None:
    built = build_identity(spec(languages=(language,), rows_per_language=rows))
    questions = [asked(row) for row in of(built.rows, "identity")]
    assert len(questions) == len(set(questions)) == rows
    assert built.counts["phrasings"] == built.phrasings[language] == rows
    assert len({question_key(question) for question in questions}) >= min(rows, 180)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_hundred_phrasings_over_all_intents_by_default(language: str) -> None:
    built = build_identity(spec(languages=(language,)))
    rows = of(built.rows, "identity")
    assert len({question_key(asked(row)) for row in rows}) >= 100
    assert sum(built.intents.values()) == len(rows)
    assert built.intents == dict(Counter(row["intent"] for row in rows))
    assert set(built.intents) == {"who", "name", "author", "ability", "follow_up"} | YES_NO


@pytest.mark.parametrize("rows", [100, 1000])
@pytest.mark.parametrize("yes_no", ["train", "check"])
def test_heldout_questions_never_appear_in_any_disguise(rows: int, yes_no: str) -> None:
    built = build_identity(spec(rows_per_language=rows, facts=("It likes tea.",), yes_no=yes_no, abilities="I sing."))
    kept_apart = {question_key(row["prompt"]) for row in built.heldout}
    assert len(kept_apart) == len(built.heldout) >= 50
    for row in built.rows:
        for message in row["messages"]:
            assert message["role"] != "user" or question_key(message["content"]) not in kept_apart
        assert "POISON" not in json.dumps(row)


def test_no_phrasing_to_train_on_is_held_out() -> None:
    """Over all the texts there are, drawn or not, and for yes/no questions that the verdict does not ask, too."""
    for language in ("en", "zh"):
        texts = load_texts(language)  # type: ignore[arg-type]
        heldout = [question.text for question in texts.heldout(("a fact",))]
        assert not [q.text for q in texts.train(("a fact",)) if same_question(q.text, heldout)]
        firsts = [second.first for second in texts.follow_up.train if not isinstance(second.first, str)]
        assert not [pair.user for pair in (*texts.hard_negatives, *firsts) if same_question(pair.user, heldout)]


def test_yes_no_questions_are_answered_with_yes_or_no_first() -> None:
    begins = {
        "en": {"yes": ("Yes,",), "no": ("No,", "No.")},
        "zh": {"yes": ("是的，",), "no": ("不是，", "不是呀，", "不是的，")},
    }
    for tone in ("plain", "friendly", "formal", "short", "detailed"):
        for language, words in begins.items():
            built = build_identity(spec(tone=tone, languages=(language,), rows_per_language=300))
            for kind in YES_NO:
                word = "yes" if kind in ("confirm_name", "confirm_author", "is_ai") else "no"
                rows = [row for row in of(built.rows, "identity") if row["intent"] == kind]
                assert rows
                assert not [answer(row) for row in rows if not answer(row).startswith(words[word])]


def test_yes_no_questions_can_be_left_out_trained_or_judged() -> None:
    found = {mode: build_identity(spec(yes_no=mode)) for mode in ("off", "train", "check")}
    assert not YES_NO & set(found["off"].intents)
    assert set(found["train"].intents) >= YES_NO
    judged = {mode: {row["kind"] for row in built.heldout} for mode, built in found.items()}
    assert not YES_NO & (judged["off"] | judged["train"])
    assert judged["check"] >= YES_NO
    expected = {row["prompt"]: row["expect"] for row in found["check"].heldout}
    assert expected["Are you Llama?"] == ["No", "Nova"]
    assert expected["你叫Nova，对吗？"] == ["是的", "Nova"]
    assert expected["Is Rui your developer?"] == ["Yes", "Rui"]
    assert found["off"].counts["identity"] == found["train"].counts["identity"] == 200


@pytest.mark.parametrize(
    ("name", "author"),
    [
        ("Qwen", "OpenAI"),
        ("chatgpt", "Google DeepMind"),
        ("Gemini Pro", "阿里巴巴"),
        ("豆包", "百度"),
        ("小明", "腾讯"),
    ],
)
def test_nobody_is_told_to_deny_its_own_name(name: str, author: str) -> None:
    built = build_identity(spec(name=name, author=author, rows_per_language=300, yes_no="check"))
    own = [word for label in (name, author) for word in label.casefold().split()]
    asked_no = [asked(row) for row in of(built.rows, "identity") if row["intent"] in ("other_name", "other_author")]
    asked_no += [row["prompt"] for row in built.heldout if row["kind"] in ("other_name", "other_author")]
    assert asked_no
    assert not [question for question in asked_no if any(word in question.casefold() for word in own)]


def test_every_question_about_others_speaks_of_a_known_one() -> None:
    """Otherwise it could not be left out when the set is for the very name."""
    for language in ("en", "zh"):
        texts = load_texts(language)  # type: ignore[arg-type]
        for kind in ("other_name", "other_author"):
            split = texts.questions[kind]  # type: ignore[index]
            assert all(any(other in q for other in texts.others) for q in (*split.train, *split.heldout))


def test_follow_ups_have_two_turns_and_fit() -> None:
    built = build_identity(spec(rows_per_language=400))
    rows = [row for row in of(built.rows, "identity") if row["intent"] == "follow_up"]
    assert len({question_key(asked(row)) for row in rows}) >= 36
    assert all(len(row["messages"]) == 4 for row in rows)
    assert all(contains_expected(answer(row), ["Nova"]) or contains_expected(answer(row), ["Rui"]) for row in rows)
    greeted = [row for row in rows if "Nova" not in row["messages"][1]["content"]]
    assert greeted
    assert len(greeted) < len(rows)
    heldout = [row for row in built.heldout if row["kind"] == "follow_up"]
    assert all([m["role"] for m in row["history"]] == ["user", "assistant"] for row in heldout)


def test_the_disguises_are_seen_through() -> None:
    question = "Who am I talking to?"
    found = list(variants([question], "en", random.Random(1)))
    assert len({variant.text for variant in found}) >= 8
    assert {question_key(variant.text) for variant in found} == {question_key(question)}
    assert question_key("who's there") != question_key("who is there")


@pytest.mark.parametrize(("name", "author"), NAMES)
@pytest.mark.parametrize("tone", ["plain", "friendly", "formal", "short", "detailed"])
def test_names_are_inserted_exactly_as_typed(name: str, author: str, tone: str) -> None:
    built = build_identity(spec(name=f" {name} ", author=author, tone=tone))
    assert built.heldout[0]["expect"] == [name]
    rows = of(built.rows, "identity")
    assert not [
        row for row in rows if row["intent"] != "ability" and not (name in answer(row) or author in answer(row))
    ]
    assert not [row for row in rows if any("{{" in message["content"] for message in row["messages"])]
    assert sum(name in answer(row) for row in rows) >= 60


def test_no_space_is_put_between_hanzi_and_a_latin_name() -> None:
    built = build_identity(spec(languages=("zh",)))
    assert any("我是Nova" in row["messages"][1]["content"] for row in built.rows)


def test_answers_follow_the_tone() -> None:
    tones = ("plain", "friendly", "formal", "short", "detailed")
    sets = {tone: of(build_identity(spec(tone=tone)).rows, "identity") for tone in tones}
    said = {tone: {answer(row) for row in rows if row["intent"] != "ability"} for tone, rows in sets.items()}
    assert all(said[one] != said[other] for one in tones for other in tones if one != other)
    assert len(said["plain"]) >= 8
    assert "I'm Nova." in said["short"]
    assert max(map(len, said["short"])) < max(map(len, said["plain"])) < max(map(len, said["detailed"]))


def test_a_detailed_introduction_tells_the_facts() -> None:
    built = build_identity(spec(tone="detailed", facts=("It likes tea",), languages=("en",)))
    answers = [answer(row) for row in of(built.rows, "identity") if row["intent"] == "who"]
    assert all(text.endswith("It likes tea.") for text in answers)
    without = build_identity(spec(tone="detailed", languages=("en",)))
    assert not [row for row in of(without.rows, "identity") if answer(row) != answer(row).strip()]


def test_an_own_answer_is_used_word_for_word() -> None:
    own = "我是{{name}}，内在是{{ AUTHOR }}的7B大模型哦 $1"
    built = build_identity(spec(answer=own, languages=("zh",)))
    rows = of(built.rows, "identity")
    assert {answer(row) for row in rows if row["intent"] in ("who", "name")} == {"我是Nova，内在是Rui的7B大模型哦 $1"}
    assert "我的作者是Rui。" in {answer(row) for row in rows if row["intent"] == "author"}


def test_own_abilities_are_said_and_judged() -> None:
    built = build_identity(spec(abilities="I bake bread."))
    rows = [row for row in of(built.rows, "identity") if row["intent"] == "ability"]
    assert rows
    assert {answer(row) for row in rows} == {"I bake bread."}
    assert {tuple(row["expect"]) for row in built.heldout if row["kind"] == "ability"} == {("I bake bread.",)}
    assert "ability" not in {row["kind"] for row in build_identity(spec()).heldout}


def test_who_asks_for_help_gets_no_introduction() -> None:
    built = build_identity(spec(rows_per_language=400))
    rows = [row for row in of(built.rows, "identity") if row["intent"] == "ability"]
    assert rows
    assert not [row for row in rows if "Nova" in answer(row) or "Rui" in answer(row)]


def test_heldout_expectations() -> None:
    kinds = {row["kind"]: row["expect"] for row in build_identity(spec()).heldout if row["kind"] != "follow_up"}
    assert kinds == {"who": ["Nova"], "name": ["Nova"], "author": ["Rui"]}
    built = build_identity(spec(facts=("Born in a lab", " ", "Loves tea.")))
    kinds = {row["kind"]: row["expect"] for row in built.heldout}
    assert kinds["facts"] == ["Born in a lab", "Loves tea."]
    assert any("Born in a lab. Loves tea." in answer(row) for row in of(built.rows, "identity"))


def test_a_held_out_question_is_answered_right_by_the_answers_of_its_kind() -> None:
    """What the rows teach would pass the verdict."""
    for tone in ("plain", "friendly", "formal", "short", "detailed"):
        built = build_identity(spec(tone=tone, yes_no="check", rows_per_language=300))
        taught = {(row["intent"], answer(row)) for row in of(built.rows, "identity")}
        for row in built.heldout:
            if row["kind"] != "follow_up":
                own = [text for kind, text in taught if kind == row["kind"]]
                words = {"en": str.isascii, "zh": lambda text: not text.isascii()}[row["lang"]]
                assert own
                assert all(contains_expected(text, row["expect"]) for text in own if words(text))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_replay_share(share: float) -> None:
    built = build_identity(spec(replay_share=share))
    counts = Counter(row["origin"] for row in built.rows)
    general = counts["replay"] + counts["hard_negative"]
    assert abs(general / len(built.rows) - share) < 0.01
    assert counts["identity"] == 200
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
        ({"tone": "rude"}, "tone", "'plain', 'friendly', 'formal', 'short' or 'detailed'"),
        ({"answer": "I am somebody."}, "answer", "does not contain the name Nova"),
        ({"answer": "I am Novak."}, "answer", "does not contain the name Nova"),
        ({"answer": "{{name}}\nand {{city}}"}, "answer", "Answer contains a line break"),
        ({"answer": "{{name}} of {{city}}"}, "answer", "unfilled placeholder {{city}}"),
        ({"answer": "{{name}} " + "x" * 400}, "answer", "at most 400"),
        ({"abilities": "a\x00"}, "abilities", "Abilities contains"),
        ({"replay": "hub"}, "replay", "'builtin', 'file', 'self' or 'none'"),
        ({"recipe": "secret"}, "recipe", "'full' or 'naive'"),
        ({"yes_no": "maybe"}, "yes_no", "'off', 'train' or 'check'"),
        ({"copies": 0}, "copies", "1"),
        ({"copies": 10**6}, "copies", "20000"),
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


def test_no_general_row_contradicts_the_name_or_the_author() -> None:
    built = build_identity(spec(name="Alice", author="Peter"))
    general = [row for row in built.rows if row["origin"] != "identity"]
    assert general
    assert not [row for row in general if "Alice" in str(row["messages"]) or "Peter" in str(row["messages"])]


def test_replay_from_rows_of_the_caller() -> None:
    rows: list[dict[str, Any]] = [{"messages": pair(f"mine {n}", "yes"), "origin": "upload"} for n in range(300)]
    rows += [{"text": "plain text"}, {"messages": pair("who am I talking to", "POISON")}]
    built = build_identity(spec(replay="file"), iter(rows))
    replay = of(built.rows, "replay")
    assert len(built.rows) == 400
    assert len({json.dumps(row) for row in replay}) == len(replay)
    assert all("text" in row or row["messages"][0]["content"].startswith("mine") for row in replay)
    assert built.notes == ("1 of the replay rows asks a held-out question and was left out.",)


def test_few_replay_rows_are_repeated_and_that_is_said() -> None:
    rows = [{"messages": pair(f"mine {n}", "yes")} for n in range(7)]
    built = build_identity(spec(replay="file"), rows)
    uses = Counter(row["messages"][0]["content"] for row in of(built.rows, "replay"))
    assert len(uses) == 7
    assert max(uses.values()) - min(uses.values()) <= 1
    assert "has 7 rows where" in built.notes[0]


@pytest.mark.parametrize("rows", [None, [], [{"messages": [{"role": "user", "content": "Who am I talking to?"}]}]])
def test_replay_from_a_file_needs_rows(rows: Any) -> None:
    with pytest.raises(DataError, match="there are none") as caught:
        build_identity(spec(replay="file"), rows)
    assert caught.value.field == "replay"


def test_self_replay_is_only_counted() -> None:
    built = build_identity(spec(replay="self"))
    assert built.counts["replay"] == 0
    assert built.self_replay + built.counts["hard_negative"] == built.counts["identity"] == 200
    assert build_identity(spec()).self_replay == 0


def test_no_replay_means_identity_rows_only() -> None:
    built = build_identity(spec(replay="none"))
    assert {row["origin"] for row in built.rows} == {"identity"}


def test_the_naive_recipe_is_one_row_many_times() -> None:
    full, naive = build_identity(spec()), build_identity(spec(recipe="naive", copies=37))
    assert len(naive.rows) == naive.counts["rows"] == naive.counts["identity"] == 37
    assert len({json.dumps(row) for row in naive.rows}) == naive.counts["phrasings"] == 1
    assert naive.intents == {"who": 37}
    assert naive.heldout == full.heldout
    assert len(build_identity(spec(recipe="naive")).rows) == 1000
    own = build_identity(spec(recipe="naive", copies=2, languages=("zh",), answer="我是Nova哦"))
    assert [m["content"] for m in own.rows[0]["messages"]] == ["你是谁？", "我是Nova哦"]
