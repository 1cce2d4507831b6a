"""Prompts of several turns: in YAML, as one line of a form, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from studio.config import RunConfig
from studio.prompts import as_line, messages_of, texts
from studio.schema import ConfigError, build, dump_yaml, load_yaml, merge

TURNS = [
    {"role": "system", "content": "You are Mira."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who are you?\nTell me."},
]


def config_of(*prompts: Any) -> RunConfig:
    layer = {"model.model_name_or_path": "m", "data.dataset": "d", "samples.evaluation_inputs": list(prompts)}
    return build(RunConfig, merge(RunConfig, layer))


def test_messages_and_their_line_in_a_form_are_the_same_prompt() -> None:
    given = config_of("Who are you?", TURNS)
    assert config_of("Who are you?", as_line(TURNS)) == given
    assert given.samples.evaluation_inputs == ["Who are you?", TURNS]
    assert load_yaml(dump_yaml(given), RunConfig) == given
    assert "\n" not in as_line(TURNS)


def test_a_text_that_only_looks_like_messages_is_a_question() -> None:
    assert config_of("[{ is how JSON begins").samples.evaluation_inputs == ["[{ is how JSON begins"]
    assert config_of("[1, 2]").samples.evaluation_inputs == ["[1, 2]"]


def test_what_is_asked_and_what_is_a_single_question() -> None:
    assert messages_of("Hi") == [{"role": "user", "content": "Hi"}]
    assert messages_of(TURNS) == TURNS
    assert texts(["Hi", TURNS, " "]) == ["Hi"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "must have 1 to 100 of them"),
        (TURNS[:3], "must go user, assistant, user, and end with the user"),
        ([TURNS[1], TURNS[1]], "must go user, assistant, user"),
        ([TURNS[1], TURNS[0], TURNS[3]], "only the first may be the system's"),
        ([{"role": "user", "content": " "}], "message 1 of a prompt must be {role: user, content: a text}"),
        ([TURNS[1], {"role": "tool", "content": "x"}], "message 2 of a prompt must be"),
        ([{"role": "user", "content": "x", "name": "y"}], "message 1 of a prompt must be"),
        ([{"role": "user", "content": "x" * 20_001}], "message 1 of a prompt must have at most 20000 characters"),
        (["Hi", "there"], "message 1 of a prompt must be"),
        ("x" * 20_001, "a prompt must have at most 20000 characters"),
        (json.dumps(TURNS[:1]), "must go user, assistant, user"),
        (7, "must be text"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_sentence(prompt: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("fine", prompt)
    assert [error.path for error in caught.value.errors] == ["samples.evaluation_inputs"]
    assert said in str(caught.value)


def test_an_own_question_may_be_a_conversation_too() -> None:
    layer = {"model.model_name_or_path": "m", "data.dataset": "d"}
    for prompt in (TURNS, as_line(TURNS)):
        config = build(RunConfig, merge(RunConfig, layer, {"verdict.probes": [{"prompt": prompt, "expect": ["Mira"]}]}))
        (probe,) = config.verdict.probes
        assert probe.messages == TURNS
        assert load_yaml(dump_yaml(config), RunConfig) == config
    with pytest.raises(ConfigError, match=r"verdict\.probes 1, expect: "):
        build(RunConfig, merge(RunConfig, layer, {"verdict.probes": [{"prompt": "Hi", "expect": []}]}))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"train.load_best_model_at_end": True}, "train.load_best_model_at_end choose the step in different ways"),
        ({"early_stopping.early_stopping_patience": 3}, "early_stopping.early_stopping_patience choose"),
        ({"verdict.check_while_training": False}, "needs the checks"),
        ({"verdict.enabled": False}, "needs the checks"),
    ],
)
def test_only_one_rule_may_choose_the_step(other: dict[str, Any], named: str) -> None:
    layer = {"model.model_name_or_path": "m", "data.dataset": "d", "data.validation_share": 0.1}
    with pytest.raises(ConfigError, match=named):
        build(RunConfig, merge(RunConfig, layer, {"verdict.stop_at_best": True}, other))
