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
    """A model in memory: what answers, and what is known of each name it can be asked by.

    `swept` is called when it is gone, to give back what the libraries keep for later.
    """

    speaker: Speaker
    facts: Mapping[str, ModelFacts]
    swept: Callable[[], None] = lambda: None


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
            if self._closed:
                raise Unavailable("the chat server is ending")
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
        while self._wait_until_idle():
            self._let_go()

    def _wait_until_idle(self) -> bool:
        """Returns when it was not used for so long; False when it was closed."""
        with self._change:
            while not self._closed:
                left = self._idle_left()
                if left is not None and left <= 0:
                    return True
                self._change.wait(left)
            return False

    def _idle_left(self) -> float | None:
        """Seconds until it may be let go; None while it is used or not there."""
        if self._loaded is None or self._using:
            return None
        return self._last_used + self._idle_s - time.monotonic()

    def _let_go(self) -> None:
        """Unless somebody began to use it; whoever does so in the middle waits, and loads it again.

        Nothing is closed under the lock that an ending answer needs.
        """
        with self._loading:
            with self._change:
                left = self._idle_left()
                if not self._closed and (left is None or left > 0):
                    return
                loaded, self._loaded = self._loaded, None
            if loaded is None:
                return
            self._told = dict(loaded.speaker.describe())
            self._tokens_before += _tokens(self._told)
            loaded.speaker.close()
            swept = loaded.swept
            del loaded
            gc.collect()
            swept()


def _tokens(told: Mapping[str, object]) -> int:
    found = told.get("tokens", 0)
    return found if isinstance(found, int) else 0
