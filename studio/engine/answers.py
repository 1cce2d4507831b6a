"""Asks the model questions in batches, greedily, without leaving a trace in the training."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from studio.engine import fsdp, zero3
from studio.engine.activity import batch
from studio.engine.model import Precision
from studio.engine.stopping import Endings, cut, endings
from studio.records.chat_tokenizer import ChatTokenizer

Progress = Callable[[int, int], None]
Prompt = str | Sequence[Mapping[str, Any]]
BATCHES = ((100_000_000, 64), (2_000_000_000, 16))  # (parameters up to, prompts at once)
LARGE_BATCH = 4


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; random states and training mode are afterwards as they were before."""
    training = model.training
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), torch.no_grad(), zero3.usable(model):
        model.eval()
        try:
            yield
        finally:
            fsdp.rest(model)
            model.train(training)
            random.setstate(python)
            np.random.set_state(numpy)


@dataclass(frozen=True)
class Respondent:
    """A model that answers: with the run's chat template and its system prompt, if it has one."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    chat: ChatTokenizer
    precision: Precision
    system: str | None = None

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, progress: Progress | None = None) -> list[str]:
        """One answer per prompt (a question, or messages that end with one), in order, of at most that many tokens.

        Raises DataError when the chat template refuses a prompt.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))  # alike lengths: little padding
        answers = [""] * len(prompts)
        size = self._batch_size()
        with undisturbed(self.model), self.precision.autocast():
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                for index, text in zip(
                    chosen, self._generate([encoded[i] for i in chosen], max_new_tokens), strict=True
                ):
                    answers[index] = text
                if progress:
                    progress(start + len(chosen), len(order))
        return answers

    def _encode(self, prompt: Prompt) -> list[int]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return self.chat.encode_text(self.chat.template.render(messages, add_generation_prompt=True).text)

    def _batch_size(self) -> int:
        parameters = zero3.count(self.model)
        return next((size for limit, size in BATCHES if parameters <= limit), LARGE_BATCH)

    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        width = max(map(len, prompts))
        batch(rows=len(prompts), length=width + max_new_tokens)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ends = endings(self.tokenizer, self.model, self.chat.stop_words)
        device = next(self.model.parameters()).device
        output: Any = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=self._settings(max_new_tokens, pad, ends),
            tokenizer=self.tokenizer,  # for the stop strings
        )
        texts = self.tokenizer.batch_decode(output[:, width:].tolist(), skip_special_tokens=True)
        return [cut(text, ends.texts).strip() for text in texts]

    def _settings(self, max_new_tokens: int, pad: int, ends: Endings) -> GenerationConfig:
        """Greedy, whatever the model's own generation settings say; its ends are kept."""
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            use_cache=True,  # the trainer has switched it off in the model's own settings
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(ends.tokens) or None,
            stop_strings=list(ends.texts) or None,
            pad_token_id=pad,
        )
