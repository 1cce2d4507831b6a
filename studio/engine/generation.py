"""Answers, token by token, from one copy of the weights.

Every answer under way gets one token per turn, so that base and tuned model stream side by side; the adapter is
switched between turns, which costs about as much as a fifth of a token on the tiny built-in model and nothing that can
be seen on a real one.
"""

from __future__ import annotations

import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from studio.engine.dialogue import Busy, Piece, PromptError, Request, Sampling, Turn, UnknownModel
from studio.engine.failure import explain, model_failure
from studio.engine.stopping import Endings, endings
from studio.events import ExitCode

PREFILL = 256  # prompt tokens read per turn: a long prompt does not silence the other answers
MOST_ANSWERS = 16
UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character


class Voice:
    """How one model name reads and writes: tokenizer, chat template, and the tokens and texts that end an answer.

    `saved` are the endings an adapter brings beside those of its base model.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, saved: Endings | None = None
    ) -> None:
        self.tokenizer = tokenizer
        found = endings(tokenizer, model) | (saved or Endings())
        self.ends, self.stops = found.tokens, found.texts
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    def render(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins. Raises PromptError."""
        if not self.tokenizer.chat_template:
            raise PromptError("this model has no chat template, so it cannot hold a conversation")
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever a template raises about roles and their order
            raise PromptError(f"the model's chat template refuses this conversation ({str(error)[:160]})") from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= self.context:
            raise PromptError(
                f"the conversation is {len(ids)} tokens long and this model reads at most {self.context}; "
                "clear the chat or shorten the message"
            )
        return ids


class Sampler:
    """Chooses tokens; its own random numbers make an answer repeatable whatever else is going on."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.seen = set(prompt)
        self.random = torch.Generator().manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token id from logits of shape [vocabulary]. Raises EngineError when they are not numbers."""
        scores = logits.float().cpu()
        if not torch.isfinite(scores).any() or torch.isnan(scores).any():
            raise model_failure(
                "the model's output is not a number.", "Its weights are damaged, or need another number format."
            )
        token = self._pick(self._penalised(scores))
        self.seen.add(token)
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0 or not self.seen:
            return scores
        index = torch.tensor(sorted(self.seen))
        known = scores[index]
        return scores.index_copy(0, index, torch.where(known > 0, known / penalty, known * penalty))

    def _pick(self, scores: torch.Tensor) -> int:
        wish = self.sampling
        if wish.temperature < 1e-4:
            return int(scores.argmax())
        scores = scores / wish.temperature
        if not wish.top_k and wish.top_p >= 1:
            return int(torch.multinomial(scores.softmax(-1), 1, generator=self.random))
        values, order = scores.topk(min(wish.top_k or len(scores), len(scores)))
        chances = values.softmax(-1)
        kept = chances * (chances.cumsum(-1) - chances < wish.top_p)  # always keeps the likeliest
        return int(order[int(torch.multinomial(kept, 1, generator=self.random))])


class TextStream:
    """Tokens in, text out; never half a character, never a special token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.sent = 0

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        self.ids.append(token)
        return self._advance(self._text().rstrip(UNFINISHED))

    def finish(self) -> str:
        """What was held back."""
        return self._advance(self._text())

    def _text(self) -> str:
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _advance(self, text: str) -> str:
        fresh = text[self.sent :]
        self.sent = max(self.sent, len(text))
        return fresh


class StopStrings:
    """Cuts a stream of text before the first of some strings, also when it comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, True when a stop string was met)."""
        self.held += text
        hits = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if hits:
            return self.held[: min(hits)], True
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return ready, False

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)


class Answer:
    """One answer under way. `advance` is called by the turn thread only; `cancel` by anybody."""

    def __init__(
        self, model: str, voice: Voice, prompt: list[int], sampling: Sampling, emit: Callable[[Piece], None]
    ) -> None:
        self.model, self.voice, self.emit = model, voice, emit
        self.prompt = prompt
        self.pending = prompt
        self.cache: Any = None
        self.sampler = Sampler(sampling, prompt)
        self.text = TextStream(voice.tokenizer)
        self.stops = StopStrings([*sampling.stop, *voice.stops])
        self.room = min(sampling.max_tokens, voice.context - len(prompt))
        self.cancelled = threading.Event()
        self.dropped = 0
        self.computed = 0
        """Tokens that went through the model in the last turn."""

    def cancel(self) -> None:
        """No further token is computed."""
        self.cancelled.set()

    def advance(self, model: PreTrainedModel) -> bool:
        """Read some prompt or write one token; False when the answer is over."""
        self.computed = 0
        if self.cancelled.is_set():
            return self._end("cancelled")
        if self.cache is None:
            self.cache = DynamicCache(config=model.config)
        chunk, self.pending = self.pending[:PREFILL], self.pending[PREFILL:]
        self.computed = len(chunk)
        inputs = torch.tensor([chunk], device=model.device)
        output = model(input_ids=inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        if self.pending:
            return True
        return self._take(self.sampler.choose(output.logits[0, -1]))

    def _take(self, token: int) -> bool:
        if token in self.voice.ends:
            return self._end("stop")
        self.pending = [token]
        text, stopped = self.stops.push(self.text.push(token))
        if text:
            self.emit(Piece(text))
        if stopped:
            self.stops.held = ""
            return self._end("stop", rest=False)
        return True if len(self.text.ids) < self.room else self._end("length")

    def _end(self, reason: Any, *, rest: bool = True) -> bool:
        text = ""
        if rest:
            text, stopped = self.stops.push(self.text.finish())
            text += "" if stopped else self.stops.held
        self.emit(self._last(Piece(text, finish=reason)))
        return False

    def fail(self, sentence: str) -> None:
        """Tell the asker that the answer cannot go on."""
        self.emit(self._last(Piece(error=sentence)))

    def _last(self, piece: Piece) -> Piece:
        return replace(piece, prompt_tokens=len(self.prompt), completion_tokens=len(self.text.ids))


class SharedWeights:
    """One copy of the base weights and the adapters that are switched on and off on it.

    `adapters` maps a model name to the adapter's name inside PEFT.
    """

    def __init__(self, model: PreTrainedModel, adapters: dict[str, str]) -> None:
        self.model, self.adapters = model, adapters
        self.layers: list[Any] = []
        if adapters:
            from peft.tuners.tuners_utils import BaseTunerLayer
            from peft.utils.other import AuxiliaryTrainingWrapper

            kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
            self.layers = [module for module in model.modules() if isinstance(module, kinds)]
        self.current: str | None = None

    def select(self, name: str) -> None:
        """Make the weights those of the model called `name`."""
        if name == self.current:
            return
        adapter = self.adapters.get(name)
        for layer in self.layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter(adapter)
                layer.enable_adapters(True)
        self.current = name


class Turns:
    """The thread that owns the weights: every answer under way gets one token per turn, in fixed order."""

    def __init__(self, weights: SharedWeights, voices: dict[str, Voice], facts: dict[str, object]) -> None:
        self.weights, self.voices, self.facts = weights, voices, facts
        self._waiting: deque[Answer] = deque()
        self._busy = 0
        self._tokens = 0
        self._wake = threading.Condition()
        threading.Thread(target=self._run, name="turns", daemon=True).start()

    @property
    def models(self) -> list[str]:
        """The names that can be asked."""
        return list(self.voices)

    def describe(self) -> dict[str, object]:
        """Facts for /health: what was loaded, answers under way, tokens read and written so far."""
        return self.facts | {"answers": self._busy, "tokens": self._tokens}

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Answer:
        """Start an answer. Raises PromptError, UnknownModel or Busy."""
        if request.model not in self.voices:
            raise UnknownModel(f"there is no model {request.model!r} here; there are: {', '.join(self.voices)}")
        voice = self.voices[request.model]
        answer = Answer(request.model, voice, voice.render(request.turns), request.sampling, emit)
        with self._wake:
            if self._busy >= MOST_ANSWERS:
                raise Busy(f"{MOST_ANSWERS} answers are under way already; wait for one to end")
            self._busy += 1
            self._waiting.append(answer)
            self._wake.notify()
        return answer

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._waiting))
                answer = self._waiting.popleft()
            goes_on = self._turn(answer)
            with self._wake:
                if goes_on:
                    self._waiting.append(answer)
                else:
                    self._busy -= 1

    @torch.inference_mode()
    def _turn(self, answer: Answer) -> bool:
        try:
            self.weights.select(answer.model)
            goes_on = answer.advance(self.weights.model)
            self._tokens += answer.computed
            return goes_on
        except Exception as error:
            traceback.print_exc()
            answer.fail(_sentence(error))
            return False


def _sentence(error: Exception) -> str:
    known, code = explain(error)
    if code is ExitCode.OUT_OF_MEMORY:
        return "The model ran out of memory; shorten the conversation or load the model in fewer bits."
    return known.message
