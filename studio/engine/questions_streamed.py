"""The questions of a proof for a model that reads its weights from files at every pass: few passes, all rows at once.

Rows of different lengths are filled up behind their end, where no earlier token looks, so nothing depends on the
filling; there is no cache, because reading the weights is what takes the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from studio.engine.dialogue import Turn
from studio.engine.generation_voice import Voice
from studio.engine.journal import Journal
from studio.engine.questions import Trace, render

STREAMED_PROMPTS = 4
STREAMED_TOKENS = 4
Row = tuple[list[int], list[int]]
"""Token ids of a question and of what has been answered."""


class Reader:
    """A streamed model that answers: it and its tokenizer, on `device`."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, device: str) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.voice = Voice(tokenizer, model)

    def ask(self, prompts: list[tuple[Turn, ...]], journal: Journal, label: str) -> list[Trace]:
        """The beginning of the likeliest answer to the first few prompts, with the logits that led to it."""
        turns = [turns for turns in prompts if render(self.voice, turns)][:STREAMED_PROMPTS]
        rows: list[Row] = [(ids, []) for ids in self.prompts(turns)]
        logits = self.read(rows) if rows else []
        ended: set[int] = set()
        for step in range(1, STREAMED_TOKENS + 1):
            journal.progress(step, STREAMED_TOKENS + 1, label)
            for number, (_, answer) in enumerate(rows):
                token = int(logits[number][-1].argmax())
                if token in self.voice.ends:
                    ended.add(number)
                elif number not in ended:
                    answer.append(token)
            if len(ended) == len(rows):
                break
            logits = self.read(rows)
        journal.progress(STREAMED_TOKENS + 1, STREAMED_TOKENS + 1, label)
        return [
            Trace(asked, row[0], row[1], str(self.tokenizer.decode(row[1], skip_special_tokens=True)), found)
            for asked, row, found in zip(turns, rows, logits, strict=True)
        ]

    def prompts(self, turns: Sequence[tuple[Turn, ...]]) -> list[list[int]]:
        """Questions as token ids."""
        return [render(self.voice, asked) for asked in turns]

    def answers(self, traces: list[Trace]) -> tuple[list[list[int]], list[torch.Tensor]]:
        """What the model would answer at every place of the answers given, and its logits there."""
        logits = self.read([(trace.prompt_ids, trace.answer_ids) for trace in traces])
        answers = []
        for found in logits:
            tokens = [int(token) for token in found[:-1].argmax(-1)] if len(found) > 1 else []
            answers.append([token for token in tokens if token not in self.voice.ends])
        return answers, logits

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Logits [answer tokens + 1, vocabulary] of each row, in one pass."""
        lines = [question + answer for question, answer in rows]
        longest, first = max(map(len, lines)), min(len(question) for question, _ in rows) - 1
        ids = torch.tensor([line + line[-1:] * (longest - len(line)) for line in lines], device=self.device)
        mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in lines], device=self.device)
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=longest - first)
        kept = output.logits[:, first - longest :].float().cpu()
        return [
            kept[number, len(question) - 1 - first : len(question) + len(answer) - first]
            for number, (question, answer) in enumerate(rows)
        ]
