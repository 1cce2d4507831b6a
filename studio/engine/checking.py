"""The checks during the training: a few questions as often as the samples, and at each checkpoint; and the stop at the
best one.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from studio.diagnosis import Check, enough
from studio.engine.exam import Exam
from studio.engine.pace import Pace


class CheckWhileTraining(TrainerCallback):
    """Asks every `every` steps, 0 for never.

    With `choose` the best checked step is kept, and the training ends once it is found.
    """

    def __init__(self, exam: Exam, pace: Pace, every: int, *, choose: bool = False) -> None:
        self.exam, self.pace, self.every = exam, pace, every
        self.choose = choose and exam.learning_is_checked
        self.ended = False
        self._pending: Check | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The trainer is to return to the best step; it would ask for a metric if it had been told before.

        A training that ended at this very step, before a resume, has ended.
        """
        if not self.choose:
            return
        args.load_best_model_at_end = True
        checks = self.exam.checks
        due = state.global_step > 0 and state.global_step % self.every == 0
        self.ended = due and checks[-1].step == state.global_step and enough(checks)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After the update. The last step is checked only to be chosen: the verdict follows it at once."""
        last = state.global_step >= state.max_steps
        due = self.every and (state.global_step % self.every == 0 or (last and self.choose))
        if not due or (last and not self.choose) or (control.should_training_stop and not last):
            return
        self._pending = self._check()
        if self._pending and self.choose:
            self._choose(self._pending, state, control)
        if not control.should_evaluate:
            self._tell(None)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """A check of the same step is told with the perplexity that was just measured."""
        self._tell((metrics or {}).get("eval_loss"))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint one may choose later should have been checked."""
        if self.every and state.global_step < state.max_steps and not control.should_training_stop:
            self._pending = self._check()
            self._tell(None)

    def _check(self) -> Check | None:
        with self.pace.timing("check"):
            return self.exam.check()

    def _tell(self, loss: float | None) -> None:
        check, self._pending = self._pending, None
        if check:
            self.exam.tell(check, math.exp(loss) if loss is not None and loss < math.log(1e9) else None)

    def _choose(self, check: Check, state: TrainerState, control: TrainerControl) -> None:
        """A checkpoint of the best step so far; the trainer keeps it and returns to it at the end."""
        if state.best_metric is None or check.score >= state.best_metric:
            state.best_metric, state.best_global_step = check.score, check.step
            control.should_save = True
        if enough([*self.exam.checks, check]) and state.global_step < state.max_steps:
            self.ended = control.should_training_stop = True
