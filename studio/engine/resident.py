"""Keeps a model in memory while it is asked, lets go of it when nobody has asked for long, and loads it again."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from studio.engine.dialogue import ModelFacts, Piece, Request, Running, Speaker, Turn, Unavailable, UnknownModel
from studio.engine.failure import explain


@dataclass(frozen=True)
class Loaded:
    """A model in memory: what answers, and what is known of each name it can be asked by."""

    speaker: Speaker
    facts: Mapping[str, ModelFacts]


class Resident:
    """A backend that is loaded now, and again whenever it is asked after it was let go.

    `load` takes its time and may raise anything. `idle_s` seconds after the last answer the weights are let go (0:
    never). `with_system`: a conversation without a system message gets the one its model was trained with.
    """

    def __init__(self, load: Callable[[], Loaded], *, idle_s: float = 0.0, with_system: bool = False) -> None:
        self._load, self._idle_s, self._with_system = load, idle_s, with_system
        self._loaded: Loaded | None = load()
        self._facts = dict(self._loaded.facts)
        self._told = dict(self._loaded.speaker.describe())
        self._tokens_before = 0
        self._using = 0
        self._last_used = time.monotonic()
        self._closed = False
        self._change = threading.Condition()
        self._loading = threading.Lock()
        if idle_s > 0:
            threading.Thread(target=self._watch, name="idle", daemon=True).start()

    @property
    def models(self) -> Sequence[str]:
        """The names that can be asked."""
        return list(self._facts)

    def facts(self, model: str) -> ModelFacts:
        """What is known of one model. Raises UnknownModel."""
        if model not in self._facts:
            raise UnknownModel(f"there is no model {model!r} here; there are: {', '.join(self._facts)}")
        return self._facts[model]

    def describe(self) -> dict[str, object]:
        """Facts for /health; never waits for a model that is being loaded."""
        loaded = self._loaded
        if loaded is None:
            return self._told | {
                "answers": self._using,
                "tokens": self._tokens_before,
                "weight_bytes": 0,
                "loaded": False,
            }
        told = loaded.speaker.describe()
        return told | {"tokens": self._tokens_before + _tokens(told), "loaded": True}

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Running:
        """Start an answer, after loading the model again if it was let go.

        Raises PromptError, UnknownModel, Busy, or Unavailable when it cannot be loaded.
        """
        asked = self._prepared(request)

        def told(piece: Piece) -> None:
            emit(piece)
            if piece.last:
                self._leave()

        with self._change:
            self._using += 1
        try:
            return self._awake().begin(asked, told)
        except BaseException:
            self._leave()
            raise

    def close(self) -> None:
        """Let go of everything for good."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            self._let_go()

    def _prepared(self, request: Request) -> Request:
        """With the system prompt of its model where it has none; an empty one asks for none at all."""
        system = self.facts(request.model).system
        if any(turn.role == "system" for turn in request.turns):
            kept = tuple(turn for turn in request.turns if turn.role != "system" or turn.content.strip())
            return replace(request, turns=kept)
        if not (self._with_system and system and request.turns):
            return request
        return replace(request, turns=(Turn("system", system), *request.turns))

    def _awake(self) -> Speaker:
        with self._loading:  # whoever asks while it is being loaded waits for that one load
            if self._loaded is None:
                try:
                    self._loaded = self._load()
                except Exception as error:
                    traceback.print_exc()
                    known = explain(error)[0]
                    sentence = f"the model was let go while nobody asked, and cannot be loaded again: {known.message}"
                    raise Unavailable(f"{sentence} {known.hint}".strip()) from error
            return self._loaded.speaker

    def _leave(self) -> None:
        with self._change:
            self._using -= 1
            self._last_used = time.monotonic()
            self._change.notify_all()

    def _watch(self) -> None:
        with self._change:
            while not self._closed:
                idle = self._loaded is not None and not self._using
                left = self._last_used + self._idle_s - time.monotonic() if idle else None
                if left is None or left > 0:
                    self._change.wait(left)
                else:
                    self._let_go()

    def _let_go(self) -> None:
        """Only while nobody uses it: whoever begins to is counted under the same lock."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        self._told = dict(loaded.speaker.describe())
        self._tokens_before += _tokens(self._told)
        loaded.speaker.close()
        del loaded
        gc.collect()


def _tokens(told: Mapping[str, object]) -> int:
    found = told.get("tokens", 0)
    return found if isinstance(found, int) else 0
