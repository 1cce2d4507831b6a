"""One answer under way: from its prompt, by a token each turn, to the piece that ends it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from studio.engine.dialogue import FinishReason, Piece, Request, TokenChance
from studio.engine.generation_pictures import placed
from studio.engine.generation_sampling import Sampler, likelihoods
from studio.engine.generation_text import StopStrings, TextStream
from studio.engine.generation_voice import Prompt, Voice

PREFILL = 256  # prompt tokens read per turn: a long prompt does not silence the other answers
REASONING = ("<think>", "</think>")  # a person must see where thinking ends, also where these are special tokens


class Answer:
    """One answer under way; everything but `cancel` is called by the turn thread only."""

    def __init__(self, request: Request, voice: Voice, prompt: Prompt, emit: Callable[[Piece], None]) -> None:
        self.model, self.voice, self.emit = request.model, voice, emit
        self.prompt, self.dropped = prompt.ids, prompt.dropped
        self.pictures = prompt.pictures
        self.pending = prompt.ids
        self.places: Any = None
        """Where the words stand behind pictures, as some models count that (see `SharedWeights.places`)."""
        self.cache: Any = None
        self.sampler = Sampler(request.sampling, prompt.ids)
        self.text = TextStream(voice.tokenizer, (*request.shown, *REASONING))
        self.stops = StopStrings([*request.sampling.stop, *voice.stops])
        self.room = min(request.sampling.max_tokens, voice.context - len(prompt.ids))
        self.cancelled = threading.Event()
        self._shown = 0
        self._chances: deque[tuple[int, TokenChance]] = deque()  # with the place in the text where the token begins

    def cancel(self) -> None:
        """No further token is computed."""
        self.cancelled.set()

    @property
    def length(self) -> int:
        """Tokens in the cache: all that were read and written but the pending ones."""
        return len(self.prompt) + len(self.text.ids) - len(self.pending)

    @property
    def longest(self) -> int:
        """Tokens its cache may come to hold."""
        return len(self.prompt) + self.room

    @property
    def reading(self) -> bool:
        """True until its first token is written."""
        return not self.text.ids

    def resume(self, read: int, cache: Any) -> None:
        """So many tokens of the prompt were read before, into this cache."""
        self.cache, self.pending = cache, self.prompt[read:]

    def read(self, model: PreTrainedModel) -> bool:
        """Read some of the prompt, and write the first token at its end; False when the answer is over."""
        if self.cache is None:
            self.cache = DynamicCache(config=model.config)
        part = len(self.pending) if self.pictures else PREFILL  # pictures and their tokens go together
        chunk, self.pending = self.pending[:part], self.pending[part:]
        inputs = {"input_ids": torch.tensor([chunk], device=model.device), **placed(self.pictures, model)}
        self.pictures = {}
        output = model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return True if self.pending else self.take(output.logits[0, -1].float().cpu())

    def take(self, logits: torch.Tensor) -> bool:
        """Write the token chosen from the model's numbers, in main memory; False when the answer is over."""
        token = self.sampler.choose(logits)
        if token in self.voice.ends:
            return self._end("stop")
        self.pending = [token]
        if self.sampler.sampling.logprobs is not None:
            self._chances.append((self.text.sent, self._chance(token, logits, self.sampler.sampling.logprobs)))
        text, stopped = self.stops.push(self.text.push(token))
        self._show(text)
        if stopped:
            return self._end("stop", rest=False)
        return True if len(self.text.ids) < self.room else self._end("length")

    def stop(self) -> None:
        """It ends here because nobody wants more of it."""
        self._end("cancelled")

    def fail(self, sentence: str) -> None:
        """Tell the asker that the answer cannot go on."""
        self.cache = None
        self.emit(self._last(Piece(error=sentence)))

    def _chance(self, token: int, logits: torch.Tensor, alternatives: int) -> TokenChance:
        logprob, top = likelihoods(logits, token, alternatives)
        return TokenChance(self._word(token), logprob, tuple((self._word(other), value) for other, value in top))

    def _word(self, token: int) -> str:
        return str(self.voice.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def _show(self, text: str) -> None:
        if text:
            self._shown += len(text)
            self.emit(Piece(text, chances=self._certain()))

    def _certain(self) -> tuple[TokenChance, ...]:
        """The tokens of which something was shown; those of a stop string never are."""
        found = []
        while self._chances and self._chances[0][0] < self._shown:
            found.append(self._chances.popleft()[1])
        return tuple(found)

    def _end(self, reason: FinishReason, *, rest: bool = True) -> bool:
        text = ""
        if rest:
            text, stopped = self.stops.push(self.text.finish())
            text += "" if stopped else self.stops.held
        self._shown += len(text)
        chances = self._certain()
        self.emit(self._last(Piece(text, finish=reason, chances=chances)))
        self.cache = None
        return False

    def _last(self, piece: Piece) -> Piece:
        return replace(piece, prompt_tokens=len(self.prompt), completion_tokens=len(self.text.ids))
