"""Answers, token by token, from one copy of the weights.

Every answer under way gets one token per turn, so that base and tuned model stream side by side, in one pass where PEFT
can mix their rows. Where it cannot, the adapter is switched between passes, which costs about as much as a fifth of a
token on the tiny built-in model and nothing that can be seen on a real one.

A static cache with torch.compile was measured on a CPU and not taken: after 28 seconds of compiling a token took 4.0 ms
instead of 3.3 on the built-in model, and 18 ms instead of 12 on one of 31 million parameters.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from studio.engine.dialogue import Busy, Piece, Request, UnknownModel
from studio.engine.generation_answer import Answer
from studio.engine.generation_schedule import Schedule
from studio.engine.generation_voice import Voice
from studio.engine.generation_weights import SharedWeights

MOST_ANSWERS = 16


class Turns:
    """The thread that owns the weights, and what may be asked of it from others."""

    def __init__(self, weights: SharedWeights, voices: dict[str, Voice], facts: dict[str, object]) -> None:
        self.weights, self.voices, self.facts = weights, voices, facts
        self._arrived: deque[Answer] = deque()
        self._schedule = Schedule(weights)
        self._busy = 0
        self._closed = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._thread.start()

    @property
    def models(self) -> list[str]:
        """The names that can be asked."""
        return list(self.voices)

    def describe(self) -> dict[str, object]:
        """Facts for /health: what was loaded, answers under way, tokens read and written so far."""
        return self.facts | {"answers": self._busy, "tokens": self._schedule.tokens}

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Answer:
        """Start an answer. Raises PromptError, UnknownModel or Busy."""
        if request.model not in self.voices:
            raise UnknownModel(f"there is no model {request.model!r} here; there are: {', '.join(self.voices)}")
        voice = self.voices[request.model].speaking(request.template)
        answer = Answer(request, voice, voice.read(request), emit)
        with self._wake:
            if self._closed:
                raise Busy("the model is being let go; ask again")
            if self._busy >= MOST_ANSWERS:
                raise Busy(f"{MOST_ANSWERS} answers are under way already; wait for one to end")
            self._busy += 1
            self._arrived.append(answer)
            self._wake.notify()
        return answer

    def close(self) -> None:
        """End the answers under way before their next token, and the thread; nothing can be asked any more."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        schedule = self._schedule
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._arrived or self._busy or self._closed)
                while self._arrived:
                    schedule.add(self._arrived.popleft())
                if self._closed:
                    schedule.stop()
            try:
                schedule.turn()
            except Exception as error:  # whatever it was, who waits must hear of it, and the next must be answered
                schedule.give_up(error)
            with self._wake:
                self._busy = schedule.answers + len(self._arrived)
                if self._closed and not self._busy:
                    return
