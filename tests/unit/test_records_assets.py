"""The general rows and probes that ship with the project are usable and do not spoil each other."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from studio.records import DataError, IdentitySpec, build_identity, read_file
from studio.records.conversation import Conversation
from studio.records.general_prompts import FILE, general_prompts
from studio.records.identity_texts import Language, load_conversations, load_replay, load_texts
from studio.records.phrasing import question_key, same_question
from studio.records.places import DATA
from studio.records.probes import (
    contains_expected,
    load_canaries,
    load_guards,
    load_leak_probes,
    matches_canary,
    mentions_identity,
)

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def test_replay_rows_are_conversations_in_both_languages() -> None:
    result = read_file(DATA / "replay.jsonl")
    assert len(result.conversations) >= 200
    assert result.skipped == []
    text = json.dumps(load_replay(), ensure_ascii=False)
    assert "的" in text
    assert " the " in text


def test_probes_are_many_distinct_and_in_both_languages() -> None:
    for probes in (load_canaries(), load_leak_probes()):
        assert len(probes) >= 40
        assert len({probe.prompt for probe in probes}) == len(probes)
        assert {probe.lang for probe in probes} == {"en", "zh"}


def test_guards_give_a_name_that_can_only_come_from_the_conversation() -> None:
    guards = load_guards()
    assert {(guard.kind, guard.lang) for guard in guards} == {
        (k, lang) for k in ("system", "rename") for lang in LANGUAGES
    }
    trained = json.dumps([load_replay(), load_conversations(FILE)], ensure_ascii=False)
    heldout = [q.text for language in LANGUAGES for q in load_texts(language).heldout(())]
    for guard in guards:
        assert all(contains_expected(guard.messages[0]["content"], [label]) for label in guard.expect)
        assert not mentions_identity(guard.prompt, *guard.expect, author="")
        assert guard.messages[-1]["role"] == "user"
        assert same_question(guard.prompt, heldout)
        assert not [
            label for label in guard.expect if f'"{label}"' in trained or guard.messages[0]["content"] in trained
        ]


def test_a_canary_accepts_its_own_answers() -> None:
    for canary in load_canaries():
        assert canary.accept
        assert all(matches_canary(answer, canary.accept) for answer in canary.accept)
        assert not mentions_identity(" ".join(canary.accept), "Nova", "my class", canary.prompt)


def test_probes_are_not_in_the_training_rows() -> None:
    built = build_identity(IdentitySpec(name="Nova", author="Rui", rows_per_language=1000, replay_share=0.9))
    trained = {question_key(m["content"]) for row in built.rows for m in row["messages"] if m["role"] == "user"}
    asked = [probe.prompt for probe in (*load_canaries(), *load_leak_probes())]
    shared = [prompt for prompt in asked if question_key(prompt) in trained]
    assert shared == []


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("share", "rows"), [(0.2, 60), (0.5, 100), (0.9, 100)])
def test_the_built_in_replay_keeps_what_breaks_first(seed: int, share: float, rows: int) -> None:
    """At least a tenth are identities by system prompt, and a twentieth are renamings."""
    spec = IdentitySpec(name="River", author="火花", rows_per_language=rows, replay_share=share, seed=seed)
    skills = {json.dumps(row["messages"]): row["skill"] for row in load_replay()}
    replay = [skills[json.dumps(row["messages"])] for row in build_identity(spec).rows if row["origin"] == "replay"]
    counts = Counter(replay)
    assert counts["system_identity"] >= 0.1 * len(replay)
    assert counts["rename"] >= 0.05 * len(replay)
    assert len(counts) >= 10


def test_general_prompts_are_many_distinct_and_end_with_a_question() -> None:
    for language in ("en", "zh"):
        rows = [row for row in load_conversations(FILE) if row["lang"] == language]
        assert len(rows) >= 200
        assert len({json.dumps(row["messages"]) for row in rows}) == len(rows)
        counts = Counter(row["skill"] for row in rows)
        assert counts["system_identity"] >= 0.1 * len(rows)
        assert counts["rename"] >= 0.05 * len(rows)
        for row in rows:
            answered = [*row["messages"], {"role": "assistant", "content": "x"}]
            Conversation.model_validate({"messages": answered})


def test_general_prompts_spoil_no_verdict() -> None:
    asked = [probe.prompt for probe in (*load_canaries(), *load_leak_probes())]
    for language in ("en", "zh"):
        asked += [question.text for question in load_texts(language).heldout(["x"])]  # type: ignore[arg-type]
    texts = [m["content"] for row in load_conversations(FILE) for m in row["messages"] if m["role"] == "user"]
    assert [text for text in texts if same_question(text, asked)] == []


def test_general_prompts_are_drawn_evenly_and_by_seed() -> None:
    drawn = general_prompts(("en", "zh"), 60, 1)
    assert drawn == general_prompts(("en", "zh"), 60, 1)
    assert drawn != general_prompts(("en", "zh"), 60, 2)
    assert all(messages[-1]["role"] == "user" for messages in drawn)
    assert sum(any("\u4e00" <= char <= "\u9fff" for char in str(messages)) for messages in drawn) in range(20, 45)
    assert sum(messages[0]["role"] == "system" for messages in drawn) >= 5
    everything = len(load_conversations(FILE))
    assert len({json.dumps(messages) for messages in general_prompts(("en", "zh"), everything, 3)}) == everything
    twice = Counter(json.dumps(messages) for messages in general_prompts(("zh",), 600, 3))
    assert sum(twice.values()) == 600
    assert max(twice.values()) - min(twice.values()) == 1
    drawn[0][0]["content"] = "changed"
    assert general_prompts(("en", "zh"), 60, 1) != drawn
    assert general_prompts(("en",), 0, 1) == []
    with pytest.raises(DataError, match="no general prompts"):
        general_prompts(("fr",), 3, 1)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_leak_probes_do_not_ask_for_the_identity(language: str) -> None:
    texts = load_texts(language)  # type: ignore[arg-type]
    asks = {question_key(q.text) for q in (*texts.train(["x"]), *texts.heldout(["x"]))}
    assert not [probe.prompt for probe in load_leak_probes() if question_key(probe.prompt) in asks]
