"""Answers as the turn thread writes them: prompts, chances, shortening, and what sharing a pass must not change."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import EMBER, byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.engine.dialogue import Piece, PromptError, Request, Sampling, ToolCall, Turn
from studio.engine.generation import Turns
from studio.engine.generation_sampling import Sampler
from studio.engine.generation_voice import Voice
from studio.engine.generation_weights import SharedWeights

GREEDY = Sampling(temperature=0, max_tokens=24)
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def model() -> Any:
    """The built-in model."""
    return AutoModelForCausalLM.from_pretrained(EMBER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def voice(model: Any) -> Voice:
    """How the built-in model is spoken to."""
    return Voice(AutoTokenizer.from_pretrained(EMBER), model)


@pytest.fixture(scope="module")
def turns(model: Any, voice: Voice) -> Turns:
    """The built-in model, alone."""
    return Turns(SharedWeights(model, {}), {"base": voice}, {})


class Listener:
    """Takes the pieces of one answer."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.over = threading.Event()

    def __call__(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if piece.last:
            self.over.set()

    @property
    def text(self) -> str:
        """All of it; fails when the answer does not end or ends in an error."""
        assert self.over.wait(100)
        assert self.pieces[-1].error is None, self.pieces[-1].error
        return "".join(piece.text for piece in self.pieces)


def ask(turns: Turns, *requests: Request) -> list[Listener]:
    """All of them at once."""
    listeners = [Listener() for _ in requests]
    for request, listener in zip(requests, listeners, strict=True):
        turns.begin(request, listener)
    for listener in listeners:
        assert listener.over.wait(100)
    return listeners


def question(text: str, **changes: Any) -> Request:
    return replace(Request("base", (Turn("user", text),), sampling=GREEDY), **changes)


def talk(rounds: int, last: str = "And now?") -> tuple[Turn, ...]:
    """A system prompt, rounds of about 60 tokens and a question."""
    rows = [Turn("system", "Be brief.")]
    for number in range(rounds):
        rows += [Turn("user", f"Question {number}. " + "word " * 25), Turn("assistant", "word " * 25)]
    return (*rows, Turn("user", last))


def test_plain_text_is_gone_on_with(turns: Turns, model: Any, voice: Voice) -> None:
    inputs: Any = voice.tokenizer("The colour of the sky is", return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    expected = voice.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    request = Request("base", prompt="The colour of the sky is", sampling=replace(GREEDY, max_tokens=12))
    assert ask(turns, request)[0].text == expected


def test_tools_and_calls_stand_in_the_prompt(voice: Voice) -> None:
    chatml = voice.speaking("chatml")
    call = ToolCall("c1", "add", '{"a": 2, "b": 3}')
    rows = (
        Turn("user", "2 + 3?"),
        Turn("assistant", "", tool_calls=(call,)),
        Turn("tool", "5", tool_call_id="c1"),
    )
    text = voice.tokenizer.decode(chatml.render(rows, tools=(ADD,)))
    assert '"name": "add"' in text
    assert '{"name": "add", "arguments": {"a": 2, "b": 3}}' in text
    assert "<tool_response>\n5\n</tool_response>" in text


def test_a_template_without_tools_refuses_them(voice: Voice) -> None:
    with pytest.raises(PromptError, match="cannot write tools"):
        voice.speaking("vicuna").render((Turn("user", "x"),), tools=(ADD,))


def test_a_named_template_brings_its_own_ending(voice: Voice) -> None:
    other = voice.speaking("internlm_chat")
    assert other is voice.speaking("internlm_chat")
    assert voice.tokenizer.decode(other.render((Turn("user", "Hi"),))).endswith("<|User|>:Hi<eoh>\n<|Bot|>:")
    assert "<eoa>" in other.stops
    assert "<eoa>" not in voice.stops


@pytest.mark.parametrize("template", ["nobody", "{{ 1 }}"])
def test_unknown_templates_are_one_sentence(voice: Voice, template: str) -> None:
    with pytest.raises(PromptError, match="no chat template .*; there are: .*chatml"):
        voice.speaking(template)


def test_a_broken_template_is_one_sentence(model: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if %}"
    with pytest.raises(PromptError, match="refuses this conversation"):
        Voice(tokenizer, model).render((Turn("user", "x"),))


def test_a_long_conversation_loses_its_oldest_rounds(voice: Voice) -> None:
    rows = talk(30)
    with pytest.raises(PromptError, match="reads at most 1024"):
        voice.read(Request("base", rows))
    prompt = voice.read(Request("base", rows, truncate=True))
    left = (rows[0], *rows[1 + prompt.dropped :])
    assert prompt.ids == voice.render(left)
    assert left[1].role == "user"
    assert len(prompt.ids) + 256 <= 1024 < len(voice.render((rows[0], *rows[prompt.dropped - 1 :]))) + 256
    assert voice.read(Request("base", talk(2), truncate=True)).dropped == 0


def test_dropped_messages_are_told(turns: Turns) -> None:
    listener = Listener()
    running = turns.begin(Request("base", talk(30), sampling=replace(GREEDY, max_tokens=1), truncate=True), listener)
    assert listener.over.wait(100)
    assert running.dropped > 10
    assert running.dropped % 2 == 0


def test_one_message_that_is_too_long_is_refused(voice: Voice) -> None:
    with pytest.raises(PromptError, match="clear the chat or shorten"):
        voice.read(Request("base", talk(3, "word " * 3000), truncate=True))
    with pytest.raises(PromptError, match="the prompt is .* tokens long"):
        voice.read(Request("base", prompt="word " * 3000))


def test_chances_are_those_of_the_model(turns: Turns, model: Any, voice: Voice) -> None:
    request = question("Who are you?", sampling=replace(GREEDY, max_tokens=8, logprobs=3, repetition_penalty=1.3))
    (heard,) = ask(turns, request)
    chances = [chance for piece in heard.pieces for chance in piece.chances]
    assert "".join(chance.text for chance in chances) == heard.text
    ids = voice.render(request.turns)
    answer = voice.tokenizer(heard.text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 :].log_softmax(-1)
    assert len(answer) == len(chances)
    for row, token, chance in zip(logits, answer, chances, strict=False):
        assert chance.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [value for _, value in chance.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_tokens_of_a_stop_string_are_not_told(turns: Turns) -> None:
    sampling = replace(GREEDY, max_tokens=12, logprobs=0)
    (whole,) = ask(turns, question("Who are you?", sampling=sampling))
    stop = whole.text[6:12]
    (heard,) = ask(turns, question("Who are you?", sampling=replace(sampling, stop=(stop,))))
    assert heard.text == whole.text[: whole.text.index(stop)]
    told = "".join(chance.text for piece in heard.pieces for chance in piece.chances)
    assert told.startswith(heard.text)
    assert stop not in told


def picks(sampling: Sampling, logits: Sequence[float], count: int = 200) -> set[int]:
    return {Sampler(replace(sampling, seed=seed), []).choose(torch.tensor(logits)) for seed in range(count)}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert picks(Sampling(temperature=1, min_p=0.5), logits) == {0, 1}
    assert picks(Sampling(temperature=1, min_p=0.2), logits) == {0, 1, 2}
    assert picks(Sampling(temperature=1, min_p=1.0), logits) == {0}
    assert picks(Sampling(temperature=1, min_p=0.2, top_k=2), logits) == {0, 1}
    assert picks(Sampling(temperature=1), logits) == {0, 1, 2, 3}
