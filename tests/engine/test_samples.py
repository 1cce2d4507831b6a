"""Samples: when they are taken, that they are right, and that the training does not feel them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Engine, MakeRun, events_of, losses

from studio.config import RunConfig
from studio.engine.answers import Respondent, undisturbed
from studio.engine.data import chat_tokenizer
from studio.engine.model import load
from studio.presets import resolve_model
from studio.schema import build

PROMPTS = ["Who are you?", "你是谁？", "A much longer question, so that the others need padding: who are you?"]


def respondent(folder: Path, method: str = "lora", system: str | None = None) -> Respondent:
    config = build(
        RunConfig,
        {"method": method, "model": {"model_name_or_path": str(folder)}, "data": {"dataset": "unused"}},
    )
    ref = resolve_model(str(folder))
    loaded = load(config, ref)
    chat = chat_tokenizer(ref, loaded.tokenizer, None)
    return Respondent(loaded.model, loaded.tokenizer, chat, loaded.precision, system)


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_the_training_does_not_feel_its_samples(make_run: MakeRun, engine: Engine, method: str) -> None:
    changes: dict[str, Any] = {"lora.lora_dropout": 0.3, "train.save_steps": 3, "train.neftune_noise_alpha": 5.0}
    silent = make_run(method, **changes)
    asked = make_run(method, **changes, **{"samples.evaluation_inputs": PROMPTS, "samples.evaluation_freq": 1})
    for run in (silent, asked):
        assert engine(run) == 0
    assert events_of(silent, "sample") == []
    assert len(events_of(asked, "sample")) == len(PROMPTS) * 7
    assert losses(asked) == losses(silent)
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    assert (asked.path / name).read_bytes() == (silent.path / name).read_bytes()


def test_samples_come_at_the_start_the_given_steps_saves_and_the_end(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**{"samples.evaluation_inputs": PROMPTS[:2], "samples.evaluation_freq": 4, "train.save_steps": 3})
    assert engine(run) == 0
    taken = [(event.step, event.reason, event.index, event.prompt) for event in events_of(run, "sample")]
    plan = [(0, "start"), (3, "save"), (4, "freq"), (6, "end")]
    assert taken == [(step, reason, i, PROMPTS[i]) for step, reason in plan for i in (0, 1)]


def test_one_sample_a_step_is_enough(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**{"samples.evaluation_inputs": ["Hi"], "samples.evaluation_freq": 3, "train.save_steps": 3})
    assert engine(run) == 0
    assert [(event.step, event.reason) for event in events_of(run, "sample")] == [
        (0, "start"),
        (3, "freq"),
        (6, "end"),
    ]


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
def test_a_batch_answers_as_each_prompt_alone(kind: str, request: pytest.FixtureRequest) -> None:
    model = respondent(request.getfixturevalue(kind))
    together = model.answer(PROMPTS, 12)
    assert together == [model.answer([prompt], 12)[0] for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_the_prompt_is_written_by_the_chat_template_with_the_systems_word(tiny_llama: Path) -> None:
    asked = respondent(tiny_llama, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你是谁？"}]
    expected = asked.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert asked._encode("你是谁？") == list(expected["input_ids"])


def test_asking_leaves_no_trace(tiny_llama: Path) -> None:
    model = respondent(tiny_llama)
    model.model.train()
    model.model.config.use_cache = False

    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    before = state()
    model.answer(PROMPTS, 4)
    assert state() == before
    assert model.model.training
    assert model.model.config.use_cache is False


def test_random_numbers_drawn_while_asking_are_given_back(tiny_llama: Path) -> None:
    module = torch.nn.Linear(1, 1)
    expected = None
    for disturb in (False, True):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        if disturb:
            with undisturbed(module):
                torch.rand(3)
                random.random()
                np.random.rand()
        drawn = (torch.rand(1).item(), random.random(), np.random.rand())
        expected = expected or drawn
        assert drawn == expected


def test_a_conversation_is_asked_whole_and_told_as_messages(
    make_run: MakeRun, engine: Engine, tiny_llama: Path
) -> None:
    turns = [
        {"role": "system", "content": "You are Mira."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
    ]
    run = make_run(**{"samples.evaluation_inputs": ["Who are you?", turns], "samples.evaluation_freq": 50})
    assert engine(run) == 0
    asked = events_of(run, "sample")
    assert [(event.step, event.index, event.prompt) for event in asked] == [
        (0, 0, "Who are you?"),
        (0, 1, turns),
        (6, 0, "Who are you?"),
        (6, 1, turns),
    ]
    base = respondent(tiny_llama)
    rendered = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    assert base._encode(turns) == list(rendered["input_ids"])
    assert base.answer([turns], 8) == [asked[1].answer]
    assert respondent(tiny_llama, system="Be brief.")._encode(turns) == base._encode(turns)  # its own system prompt
