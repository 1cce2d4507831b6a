"""Whose turn it is: prompts are read in parts, and answers are written in as few passes as can be."""

from __future__ import annotations

import contextlib
import traceback
from collections import deque
from collections.abc import Sequence

import torch

from studio.engine.failure import explain
from studio.engine.generation_answer import PREFILL, Answer
from studio.engine.generation_batch import Batch
from studio.engine.generation_prefix import Beginnings
from studio.engine.generation_weights import CacheRoom, SharedWeights
from studio.events import ExitCode

KEPT_SHARE = 4  # beginnings of conversations may take a quarter of the memory of caches, while nobody needs it


class Schedule:
    """The answers under way. Of one thread only.

    An answer waits until there is memory for its cache, then its prompt is read, then it shares the passes of a batch.
    """

    def __init__(self, weights: SharedWeights) -> None:
        self.weights = weights
        self.tokens = 0
        """Tokens that went through the model."""
        self.memory = CacheRoom(weights.model)
        self.kept = Beginnings(self.memory.limit // KEPT_SHARE)
        self._shareable = weights.shareable
        self._waiting: deque[Answer] = deque()
        self._reading: list[Answer] = []
        self._batches: list[Batch] = []
        self._held: dict[Answer, int] = {}

    @property
    def answers(self) -> int:
        """How many are under way."""
        return len(self._waiting) + len(self._held)

    def add(self, answer: Answer) -> None:
        """One more, which begins when there is room."""
        self._waiting.append(answer)

    def stop(self) -> None:
        """No answer gets another token."""
        for answer in (*self._waiting, *self._held):
            answer.cancel()

    @torch.inference_mode()
    def turn(self) -> None:
        """A part of the oldest prompts is read, and every answer that is being written gets one token."""
        self._admit()
        left = PREFILL
        while self._reading and left > 0:
            left -= self._read(self._reading[0])
        for batch in sorted(self._batches, key=lambda batch: batch.models[0]):  # an adapter is switched once a turn
            self._write(batch)

    def _admit(self) -> None:
        for answer in [answer for answer in self._waiting if answer.cancelled.is_set()]:
            self._waiting.remove(answer)
            answer.stop()
        while self._waiting:
            needed = self.memory.needed(self._waiting[0].longest)
            # One that needs more than there is may try when it is alone.
            if self._held and sum(self._held.values()) + needed > self.memory.limit:
                return
            answer = self._waiting.popleft()
            self._held[answer] = needed
            self.kept.shrink(self.memory.limit - sum(self._held.values()))
            self._reading.append(answer)

    def _read(self, answer: Answer) -> int:
        """A part of one prompt; how many tokens that were."""
        before = len(answer.pending)
        try:
            goes_on = not self._stopped(answer) and self._understand(answer)
        except Exception as error:
            self._fail([answer], error)
            goes_on = False
        if not goes_on or not answer.reading:
            self._reading.remove(answer)
        if not goes_on:
            self._over(answer)
        elif not answer.reading:
            self._seat(answer)
        return min(before, PREFILL)

    def _understand(self, answer: Answer) -> bool:
        self.weights.select(answer.model)
        self.weights.places = answer.places
        again = self._shareable and not answer.pictures  # what counts places apart cannot be gone on with
        if again and answer.cache is None:
            self._resume(answer)
        before = answer.length
        goes_on = answer.read(self.weights.model)
        self.tokens += answer.length - before if goes_on else len(answer.prompt) - before
        answer.places = self.weights.places
        if again and answer.reading and 0 < len(answer.pending) <= PREFILL:
            self.kept.keep(answer.model, answer.prompt[: answer.length], answer.cache)
        return goes_on

    def _resume(self, answer: Answer) -> None:
        beginning = self.kept.find(answer.model, answer.prompt)
        if beginning:
            answer.resume(len(beginning.ids), beginning.cache(self.weights.model))

    def _seat(self, answer: Answer) -> None:
        batch = next((batch for batch in self._batches if self._may_share(batch, answer)), None)
        if batch is None:
            self._batches.append(Batch(answer))
            return
        try:
            batch.join(answer)
        except Exception as error:  # no memory: the rows are no longer whole
            self._drop(batch, [*batch.rows, answer], error)

    def _may_share(self, batch: Batch, answer: Answer) -> bool:
        same = self.weights.mixable or batch.models[0] == answer.model
        return same and self._shareable and batch.admits(answer)

    def _write(self, batch: Batch) -> None:
        """One token of every row; rows that are over leave."""
        try:
            batch.keep([number for number, row in enumerate(batch.rows) if not self._stopped(row)])
            if batch.rows:
                self.weights.places = batch.rows[0].places
                self.tokens += len(batch.rows)
                with self.weights.rows_of(batch.models):
                    logits = batch.step(self.weights.model)
                batch.keep([number for number, row in enumerate(batch.rows) if self._take(row, logits[number])])
        except Exception as error:
            self._drop(batch, batch.rows, error)
        if not batch.rows and batch in self._batches:
            self._batches.remove(batch)

    def _take(self, row: Answer, logits: torch.Tensor) -> bool:
        try:
            goes_on = row.take(logits)
        except Exception as error:
            self._fail([row], error)
            goes_on = False
        if not goes_on:
            self._over(row)
        return goes_on

    def _stopped(self, answer: Answer) -> bool:
        if not answer.cancelled.is_set():
            return False
        answer.stop()
        self._over(answer)
        return True

    def _drop(self, batch: Batch, rows: Sequence[Answer], error: Exception) -> None:
        self._fail([row for row in rows if row in self._held], error)
        for row in rows:
            self._over(row)
        self._batches.remove(batch)

    def _over(self, answer: Answer) -> None:
        self._held.pop(answer, None)

    def give_up(self, error: Exception) -> None:
        """Every answer under way ends with what happened; the schedule is empty afterwards."""
        self._fail([*self._waiting, *self._held], error)
        self._waiting.clear()
        self._held.clear()
        self._reading, self._batches = [], []

    def _fail(self, answers: Sequence[Answer], error: Exception) -> None:
        traceback.print_exception(error)
        for answer in answers:
            with contextlib.suppress(Exception):  # the asker may be gone
                answer.fail(_sentence(error))


def _sentence(error: Exception) -> str:
    known, code = explain(error)
    if code is ExitCode.OUT_OF_MEMORY:
        return "The model ran out of memory; shorten the conversation or load the model in fewer bits."
    return known.message
