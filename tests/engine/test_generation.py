"""Answers as the turn thread writes them: prompts, chances, shortening, and what sharing a pass must not change."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers.models
import torch
from adapters import save_adapter
from peft import PeftModel
from tiny import EMBER, byte_tokenizer
from tokenizers import Tokenizer, decoders, normalizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from studio.engine.dialogue import Busy, Piece, PromptError, Request, Sampling, ToolCall, Turn
from studio.engine.generation import Turns
from studio.engine.generation_answer import PREFILL, Answer
from studio.engine.generation_sampling import Sampler
from studio.engine.generation_schedule import Schedule
from studio.engine.generation_text import WINDOW, TextStream
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
    with pytest.raises(PromptError, match="is no valid template .line 1"):
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


# ---- sharing a pass --------------------------------------------------------------------------------------------------

QUESTIONS = ("Who are you?", "Hi", "What is the capital of France, and what is it known for?", "你是谁？", "2 + 3?")


class Together:
    """Answers of one schedule, taken turn by turn without a thread."""

    def __init__(self, weights: SharedWeights, voice: Voice) -> None:
        self.schedule, self.voice = Schedule(weights), voice
        self.heard: list[Listener] = []

    def add(self, request: Request) -> Answer:
        """One more, from the next turn on."""
        self.heard.append(Listener())
        answer = Answer(request, self.voice, self.voice.read(request), self.heard[-1])
        self.schedule.add(answer)
        return answer

    def finish(self) -> list[Listener]:
        """Everything to its end."""
        while self.schedule.answers:
            self.schedule.turn()
        return self.heard


def alone(weights: SharedWeights, voice: Voice, requests: Sequence[Request]) -> list[Listener]:
    """Each for itself."""
    heard = []
    for request in requests:
        single = Together(weights, voice)
        single.add(request)
        heard += single.finish()
    return heard


def together(weights: SharedWeights, voice: Voice, requests: Sequence[Request]) -> list[Listener]:
    """All at once; each begins two turns after the one before, so that rows of many lengths come and go."""
    shared = Together(weights, voice)
    for request in requests:
        shared.add(request)
        shared.schedule.turn()
        shared.schedule.turn()
    return shared.finish()


def tokens_of(heard: Listener) -> list[tuple[str, float]]:
    return [(chance.text, chance.logprob) for piece in heard.pieces for chance in piece.chances]


def passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every pass through the model from now on."""
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def counted(input_ids: torch.Tensor, **rest: Any) -> Any:
        seen.append((input_ids.shape[0], input_ids.shape[1]))
        return forward(input_ids=input_ids, **rest)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", counted)
    return seen


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_answers_at_once_are_those_given_alone(model: Any, voice: Voice, temperature: float) -> None:
    weights = SharedWeights(model, {})
    requests = [
        question(text, sampling=Sampling(temperature, seed=n, max_tokens=12 + 9 * n, logprobs=0))
        for n, text in enumerate(QUESTIONS)
    ]
    for one, many in zip(alone(weights, voice, requests), together(weights, voice, requests), strict=True):
        assert many.text == one.text
        assert [text for text, _ in tokens_of(many)] == [text for text, _ in tokens_of(one)]
        values = [value for _, value in tokens_of(one)]
        assert [value for _, value in tokens_of(many)] == pytest.approx(values, abs=1e-4)  # the tolerance, in float32


def tiny(kind: str, tokenizer: Any, longest: int = 256) -> Any:
    """A random model whose likeliest token stands out."""
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": longest,
        "eos_token_id": None,
        "initializer_range": 0.3,
    }
    torch.manual_seed(3)
    if kind == "sliding":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        config: Any = Gemma3TextConfig(
            **common, head_dim=16, num_hidden_layers=3, sliding_window=24, layer_types=layers, query_pre_attn_scalar=16
        )
        return Gemma3ForCausalLM(config).eval()
    if kind == "plain":
        return LlamaForCausalLM(LlamaConfig(**common, num_hidden_layers=2)).eval()
    return Lfm2ForCausalLM(Lfm2Config(**common, num_hidden_layers=2, layer_types=["conv", "full_attention"])).eval()


@pytest.mark.parametrize(("kind", "rows"), [("sliding", 5), ("convolution", 1)])
def test_other_kinds_of_layers(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sliding window forgets by columns; what has no columns is never padded."""
    tokenizer = byte_tokenizer()
    model = tiny(kind, tokenizer)
    seen = passes(model, monkeypatch)
    weights, voice = SharedWeights(model, {}), Voice(tokenizer, model)
    requests = [
        question(text, sampling=replace(GREEDY, max_tokens=40 - 5 * n, logprobs=0)) for n, text in enumerate(QUESTIONS)
    ]
    one, many = alone(weights, voice, requests), together(weights, voice, requests)
    assert max(count for count, _ in seen) == rows
    for single, shared in zip(one, many, strict=True):
        assert shared.text == single.text
        values = [value for _, value in tokens_of(single)]
        assert [value for _, value in tokens_of(shared)] == pytest.approx(values, abs=1e-4)


def test_four_answers_take_the_passes_of_one(model: Any, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = passes(model, monkeypatch)
    shared = Together(SharedWeights(model, {}), voice)
    for text in QUESTIONS[:4]:
        shared.add(question(text, sampling=Sampling(temperature=2.0, seed=1, max_tokens=20)))
    seen.clear()
    shared.finish()
    assert sum(count for count, _ in seen) > 2 * 20
    assert len(seen) < 4 + 20 + 2


def test_a_long_prompt_is_read_in_parts_while_others_write(voice: Voice, model: Any) -> None:
    shared = Together(SharedWeights(model, {}), voice)
    shared.add(question("Hi", sampling=Sampling(temperature=2.0, seed=4, max_tokens=40)))
    shared.schedule.turn()
    late = shared.add(question("word " * 600))
    written = len(shared.heard[0].pieces)
    while late.reading:
        shared.schedule.turn()
    assert len(late.prompt) > 2 * PREFILL
    assert len(shared.heard[0].pieces) >= written + 2
    assert shared.finish()[1].text == alone(SharedWeights(model, {}), voice, [question("word " * 600)])[0].text


@pytest.mark.parametrize("kind", ["plain", "sliding"])
def test_the_next_question_reads_only_what_is_new(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is answered as if all of it had been read, to the last bit."""
    tokenizer = byte_tokenizer()
    model = tiny(kind, tokenizer, longest=2048)
    weights, voice = SharedWeights(model, {}), Voice(tokenizer, model)
    first = question("word " * 130, sampling=replace(GREEDY, logprobs=0))
    second = replace(first, turns=(*first.turns, Turn("assistant", "I see."), Turn("user", "And now?")))
    expected = alone(weights, voice, [second])[0]
    shared = Together(weights, voice)
    shared.add(first)
    shared.finish()
    seen = passes(model, monkeypatch)
    shared.add(second)
    assert tokens_of(shared.finish()[1]) == tokens_of(expected)
    assert sum(tokens for _, tokens in seen) < len(voice.read(second).ids) - 2 * PREFILL + 30
    seen.clear()
    shared.add(replace(first, turns=(Turn("user", "wird " * 130),)))  # another conversation
    shared.finish()
    assert sum(tokens for _, tokens in seen) > 600
    assert 0 < shared.schedule.kept.size <= 2 * shared.schedule.memory.needed(2 * PREFILL)
    shared.schedule.memory.limit = 0
    shared.add(question("Hi"))
    shared.schedule.turn()
    assert shared.schedule.kept.size == 0  # answers come first


def test_a_cancelled_answer_ends_before_its_next_token(model: Any, voice: Voice) -> None:
    wild = Sampling(temperature=2.0, seed=5, max_tokens=40)
    requests = [question(text, sampling=wild) for text in QUESTIONS[:3]]
    expected = alone(SharedWeights(model, {}), voice, requests)
    shared = Together(SharedWeights(model, {}), voice)
    answers = [shared.add(request) for request in requests]
    for _ in range(8):
        shared.schedule.turn()
    written = len(answers[1].text.ids)
    answers[1].cancel()
    shared.schedule.turn()
    assert shared.heard[1].pieces[-1].finish == "cancelled"
    assert shared.heard[1].pieces[-1].completion_tokens == written
    shared.finish()
    assert [shared.heard[n].text for n in (0, 2)] == [expected[n].text for n in (0, 2)]


def test_an_answer_waits_for_memory(model: Any, voice: Voice) -> None:
    shared = Together(SharedWeights(model, {}), voice)
    room = shared.schedule.memory
    first, second = (shared.add(question(text)) for text in QUESTIONS[:2])
    room.limit = room.needed(first.longest) + 1
    shared.schedule.turn()
    assert not first.reading
    assert second.cache is None
    cancelled = shared.add(question("never asked"))
    cancelled.cancel()
    heard = shared.finish()
    assert [one.text for one in heard[:2]] == [
        one.text for one in alone(SharedWeights(model, {}), voice, [question(text) for text in QUESTIONS[:2]])
    ]
    assert heard[2].pieces[-1].finish == "cancelled"
    config = model.config
    assert room.needed(10) == 10 * 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def test_a_failed_row_leaves_the_others(model: Any, voice: Voice) -> None:
    shared = Together(SharedWeights(model, {}), voice)
    answers = [shared.add(question(text, sampling=replace(GREEDY, max_tokens=10))) for text in QUESTIONS[:3]]
    shared.schedule.turn()

    def broken(_: torch.Tensor) -> int:
        raise RuntimeError("of this row only")

    answers[1].sampler.choose = broken  # type: ignore[method-assign]
    heard = shared.finish()
    assert heard[1].pieces[-1].error
    assert heard[0].text
    assert heard[2].text


def test_a_failed_pass_is_a_sentence_and_the_next_answer_is_given(
    model: Any, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Together(SharedWeights(model, {}), voice)
    for text in QUESTIONS[:2]:
        shared.add(question(text, sampling=replace(GREEDY, max_tokens=10)))
    shared.schedule.turn()
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
        shared.schedule.turn()
    assert [one.pieces[-1].error for one in shared.heard] == [
        "The model ran out of memory; shorten the conversation or load the model in fewer bits."
    ] * 2
    assert shared.schedule.answers == 0
    shared.add(question("Hi"))
    assert shared.finish()[2].text


def test_a_fault_nobody_foresaw_ends_the_answers_and_not_the_thread(
    model: Any, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns(SharedWeights(model, {}), {"base": voice}, {})
    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "_admit", lambda _: (_ for _ in ()).throw(RuntimeError("nobody foresaw it")))
        (first,) = ask(turns, question("Hi"))
    assert first.pieces[-1].error
    (second,) = ask(turns, question("Hi"))
    assert second.text
    turns.close()


@pytest.mark.parametrize(("kind", "rows"), [({}, 6), ({"use_dora": True}, 3)])
def test_base_and_tuned_at_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], rows: int
) -> None:
    """Plain LoRA goes through the layers beside its base and another adapter; DoRA needs a pass of its own."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    voice = Voice(byte_tokenizer(), loaded)
    weak, strong = (save_adapter(tiny_llama, tmp_path / str(s), strength=s, **kind) for s in (1.0, 4.0))
    tuned: Any = PeftModel.from_pretrained(loaded, str(weak), adapter_name="a").eval()
    tuned.load_adapter(str(strong), adapter_name="b")
    weights = SharedWeights(tuned, {"weak": "a", "strong": "b"})
    sampling = replace(GREEDY, logprobs=0)
    names = ("base", "weak", "strong") if rows == 6 else ("base", "strong")
    requests = [question(text, model=name, sampling=sampling) for text in QUESTIONS[:6] for name in names][:6]
    one = alone(weights, voice, requests)
    seen = passes(loaded, monkeypatch)
    many = together(weights, voice, requests)
    assert max(count for count, _ in seen) == rows
    assert [heard.text for heard in many] == [heard.text for heard in one]
    for single, shared in zip(one, many, strict=True):
        values = [value for _, value in tokens_of(single)]
        assert [value for _, value in tokens_of(shared)] == pytest.approx(values, abs=1e-4)
    assert len({heard.text for heard in one[: len(names)]}) == len(names)


def test_nothing_can_be_asked_of_what_is_closed(model: Any, voice: Voice) -> None:
    turns = Turns(SharedWeights(model, {}), {"base": voice}, {})
    listener = Listener()
    turns.begin(question("Who are you?", sampling=Sampling(temperature=2.0, seed=1, max_tokens=500)), listener)
    turns.close()
    assert listener.over.wait(100)
    assert listener.pieces[-1].finish == "cancelled"
    with pytest.raises(Busy):
        turns.begin(question("Hi"), Listener())


# ---- text ------------------------------------------------------------------------------------------------------------

LONG_TEXT = "Ünïcode 丹炉 👨‍👩‍👧 and  double  spaces,\n\n  indented lines… (brackets) don't 12345.678 " * 12


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words begin with a mark that becomes a space, but for the first one; unknown characters are bytes."""
    pieces = [f"<0x{number:02X}>" for number in range(256)]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "\u2581", *pieces, *map(chr, range(33, 127))])}
    backend = Tokenizer(tokenizers.models.BPE(vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("kind", ["ember", "bytes", "sentencepiece"])
def test_text_in_pieces_is_the_whole_text(kind: str, voice: Voice) -> None:
    tokenizer: Any = {"ember": voice.tokenizer, "bytes": byte_tokenizer(), "sentencepiece": sentencepiece_like()}[kind]
    ids = tokenizer(LONG_TEXT, add_special_tokens=False)["input_ids"]
    decoded: list[int] = []
    stream = TextStream(tokenizer)
    whole = stream._text
    stream._text = lambda part: decoded.append(len(part)) or whole(part)  # type: ignore[method-assign,func-returns-value]
    assert "".join([*map(stream.push, ids), stream.finish()]) == LONG_TEXT
    assert stream.sent == len(LONG_TEXT)
    assert len(ids) > 4 * WINDOW
    assert max(decoded) <= WINDOW + 24  # one family of emoji is up to 25 bytes


@pytest.mark.parametrize("seed", range(3))
def test_wild_tokens_read_as_they_would_together(voice: Voice, seed: int) -> None:
    ids = torch.randint(0, 3072, (400,), generator=torch.Generator().manual_seed(seed)).tolist()
    stream = TextStream(voice.tokenizer)
    told = "".join([*map(stream.push, ids), stream.finish()])
    assert told == voice.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_top_p_of_a_large_vocabulary_is_that_of_all_of_it() -> None:
    """A steep and a flat distribution: the few looked at first are enough, or all are looked at."""
    for steepness, top_p in ((6.0, 0.5), (0.1, 0.9)):
        logits = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * steepness
        chances, order = logits.softmax(-1).sort(descending=True)
        allowed = set(order[: int((chances.cumsum(-1) - chances < top_p).sum())].tolist())
        sampler = Sampler(Sampling(temperature=1, top_p=top_p, seed=1), [])
        seen = {sampler.choose(logits) for _ in range(200)}
        assert seen <= allowed
        assert len(seen) > min(len(allowed), 180) * 0.6
