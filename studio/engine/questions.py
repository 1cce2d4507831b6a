"""Questions put to a model before and after it is rewritten: the likeliest answers, and the logits that led to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from studio.engine.dialogue import PromptError, Turn
from studio.engine.generation_voice import Voice
from studio.engine.journal import Journal

_SETTINGS: Any = GenerationConfig
ANSWER_TOKENS = 24
BUILT_IN = (
    "Who are you?",
    "你是谁？",
    "What is 7 + 5?",
    "Name the capital of France.",
    "一加一等于几？",
    "Say hello.",
    "Repeat this word: lantern",
    "谢谢你！",
)


@dataclass(frozen=True)
class Trace:
    """A question, the likeliest answer, and the logits [answer tokens + 1, vocabulary] that led to it."""

    turns: tuple[Turn, ...]
    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str
    logits: torch.Tensor

    @property
    def prompt(self) -> str:
        """What the user asks."""
        return self.turns[-1].content


@torch.inference_mode()
def ask(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[tuple[Turn, ...]],
    journal: Journal,
    label: str,
) -> list[Trace]:
    """The likeliest answer to each prompt, with its logits. Long prompts the model cannot read are left out."""
    voice = Voice(tokenizer, model)
    traces = []
    for done, turns in enumerate(prompts, start=1):
        prompt = render(voice, turns)
        if prompt:
            answer = _write(model, voice, prompt)
            text = str(tokenizer.decode(answer, skip_special_tokens=True))
            traces.append(Trace(turns, prompt, answer, text, _logits(model, prompt, answer)))
        journal.progress(done, len(prompts), label)
    return traces


def render(voice: Voice, turns: tuple[Turn, ...]) -> list[int]:
    """Token ids of a question; none where the model cannot read it."""
    if not voice.tokenizer.chat_template:
        return list(voice.tokenizer(turns[-1].content)["input_ids"])
    try:
        prompt = voice.render(turns)
    except PromptError:
        return []
    return prompt if len(prompt) + ANSWER_TOKENS < voice.context else []


def _write(model: Any, voice: Voice, prompt: list[int]) -> list[int]:
    """Greedy answer: at most ANSWER_TOKENS token ids, without the end token."""
    inputs = torch.tensor([prompt], device=model.device)
    ends = sorted(voice.ends)
    settings = _SETTINGS(
        do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
    )
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=settings,
        tokenizer=voice.tokenizer,  # in case the model's own settings have stop strings
    )
    return [token for token in output[0, len(prompt) :].tolist() if token not in voice.ends]


def _logits(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    inputs = torch.tensor([prompt + answer], device=model.device)
    keep = len(answer) + 1
    output = model(input_ids=inputs, use_cache=False, logits_to_keep=keep)
    logits: torch.Tensor = output.logits[0, -keep:].float().cpu()
    return logits


@torch.inference_mode()
def compare(model: Any, traces: list[Trace]) -> tuple[float, float]:
    """(largest difference between the logits, largest logit), over every position of every answer."""
    difference, largest = 0.0, 0.0
    for trace in traces:
        logits = _logits(model, trace.prompt_ids, trace.answer_ids)
        gap = (logits - trace.logits).abs().max().item()
        difference = max(difference, gap) if gap == gap else float("inf")  # NaN compares as nothing
        largest = max(largest, trace.logits.abs().max().item())
    return difference, largest
