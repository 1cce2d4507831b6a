"""Answers, token by token, from one copy of the weights.

Every answer under way gets one token per turn, so that base and tuned model stream side by side; the adapter is
switched between turns, which costs about as much as a fifth of a token on the tiny built-in model and nothing that can
be seen on a real one.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from studio.engine.dialogue import Busy, Piece, Request, UnknownModel
from studio.engine.failure import explain
from studio.engine.generation_answer import Answer
from studio.engine.generation_voice import Voice
from studio.events import ExitCode

MOST_ANSWERS = 16


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
        self._closed = False
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
        voice = self.voices[request.model].speaking(request.template)
        answer = Answer(request, voice, voice.read(request), emit)
        with self._wake:
            if self._busy >= MOST_ANSWERS:
                raise Busy(f"{MOST_ANSWERS} answers are under way already; wait for one to end")
            self._busy += 1
            self._waiting.append(answer)
            self._wake.notify()
        return answer

    def close(self) -> None:
        """End the answers under way before their next token, and the thread; nothing can be asked any more."""
        with self._wake:
            self._closed = True
            for answer in self._waiting:
                answer.cancel()
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._waiting) or self._closed)
                if not self._waiting:
                    return
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
