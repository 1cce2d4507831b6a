"""The lowest validation loss: a checkpoint is kept there, training ends when it no longer falls, and both are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from studio.config import RunConfig
from studio.engine.failure import EngineError
from studio.events import RunError


class SaveBest(TrainerCallback):
    """A checkpoint whenever the validation loss is lower than ever, or there would be nothing to go back to."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Called before the trainer itself compares with the best so far."""
        loss = (metrics or {}).get("eval_loss")
        if loss is not None and (state.best_metric is None or loss < state.best_metric):
            control.should_save = True


@dataclass(frozen=True)
class Ending:
    """How a training ended: after `steps` of `planned`; `best_step`: whose weights are saved, if not the last one's."""

    steps: int
    planned: int
    early: bool
    best_step: int | None = None
    best_loss: float | None = None

    @property
    def sentences(self) -> list[str]:
        """What a report or a card says of it."""
        said = []
        if self.early:
            said.append(f"Ended early after step {self.steps} of {self.planned}: the validation loss no longer fell.")
        if self.best_step is not None:
            said.append(f"Saved is step {self.best_step}, which had the lowest validation loss: {self.best_loss:.4f}.")
        return said


def follow_best(arguments: TrainingArguments, config: RunConfig) -> None:
    """Tell the trainer that the lowest validation loss is the best, and whether to return to it at the end."""
    section = config.early_stopping
    if config.train.load_best_model_at_end or section.early_stopping_patience is not None:
        arguments.metric_for_best_model, arguments.greater_is_better = "loss", False
        arguments.restore_callback_states_from_checkpoint = True
        # Set afterwards: the constructor wants saving steps that are multiples of evaluation steps, and SaveBest
        # does not need them.
        arguments.load_best_model_at_end = config.train.load_best_model_at_end


def watchers(config: RunConfig, *, validate: bool) -> list[TrainerCallback]:
    """The callbacks for what the configuration asks. Raises EngineError when no row is left to validate on."""
    section, found = config.early_stopping, list[TrainerCallback]()
    if config.train.load_best_model_at_end:
        found.append(SaveBest())
    if section.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(section.early_stopping_patience, section.early_stopping_threshold))
    if found and not validate:
        message = (
            "data.validation_share: no row is left to validate on, and the best step is the one that does so best."
        )
        hint = "Add rows, or name a data.validation_dataset."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="data.validation_share"))
    return found


def ending(trainer: Trainer) -> Ending:
    """How `trainer` ended."""
    state = trainer.state
    stoppers: Sequence[Any] = trainer.callback_handler.callbacks
    early = state.global_step < state.max_steps and any(
        isinstance(one, EarlyStoppingCallback) and one.early_stopping_patience_counter >= one.early_stopping_patience
        for one in stoppers
    )
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    if not best:
        return Ending(state.global_step, state.max_steps, early)
    return Ending(state.global_step, state.max_steps, early, state.best_global_step, state.best_metric)
