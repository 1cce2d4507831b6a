"""The general rows and probes that ship with the project are usable and do not spoil each other."""

from __future__ import annotations

import json

import pytest

from studio.records import IdentitySpec, build_identity, read_file
from studio.records.identity_texts import load_replay, load_texts
from studio.records.phrasing import question_key
from studio.records.places import DATA
from studio.records.probes import load_canaries, load_leak_probes, matches_canary, mentions_identity


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


@pytest.mark.parametrize("language", ["en", "zh"])
def test_leak_probes_do_not_ask_for_the_identity(language: str) -> None:
    texts = load_texts(language)  # type: ignore[arg-type]
    asks = {question_key(q.text) for q in (*texts.train(["x"]), *texts.heldout(["x"]))}
    assert not [probe.prompt for probe in load_leak_probes() if question_key(probe.prompt) in asks]
