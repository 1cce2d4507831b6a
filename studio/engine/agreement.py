"""All processes of a run decide the same: what the first one found at a step is what every one of them does.

Only rank 0 asks the model questions where each process has all of the weights, so only it knows whether a step was the
best, or the last. A process that went on alone would wait for the others for ever.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from studio.engine import ranks
from studio.engine.checking import CheckWhileTraining

_FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


class Agreement(TrainerCallback):
    """Called behind all others: gives every process the first one's decisions."""

    def __init__(self, checking: CheckWhileTraining) -> None:
        self.checking = checking

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Whether the training returns to its best step, and whether it has ended before a resume."""
        chosen, self.checking.ended, back = map(
            bool,
            ranks.from_first(
                [float(self.checking.choose), float(self.checking.ended), float(args.load_best_model_at_end)]
            ),
        )
        self.checking.choose, args.load_best_model_at_end = chosen, back

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After the update, and after what the first process asked behind it."""
        self._agree(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The validation loss may end the training."""
        self._agree(state, control)

    def _agree(self, state: TrainerState, control: TrainerControl) -> None:
        metric = math.nan if state.best_metric is None else state.best_metric
        step = math.nan if state.best_global_step is None else float(state.best_global_step)
        own = [float(getattr(control, flag)) for flag in _FLAGS]
        *flags, ended, metric, step = ranks.from_first([*own, float(self.checking.ended), metric, step])
        for flag, value in zip(_FLAGS, flags, strict=True):
            setattr(control, flag, bool(value))
        self.checking.ended = bool(ended)
        state.best_metric = None if math.isnan(metric) else metric
        state.best_global_step = None if math.isnan(step) else int(step)
