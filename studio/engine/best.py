"""Which step is the best: by the validation loss or by the checks during the training.

A checkpoint is kept there where that is asked for, training ends when it gets no better, and both are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from studio.best_step import Best
from studio.checkpoints import complete_checkpoints, step_of
from studio.config import RunConfig
from studio.diagnosis import best_of
from studio.engine.checking import CheckWhileTraining
from studio.engine.exam import Exam
from studio.engine.failure import EngineError
from studio.events import RunError
from studio.rundir import RunDir, write_atomic

CLEARLY = 0.02
"""By how much of its score, or of its loss, a step must be better than the last one to be chosen before it."""


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
    """How a training ended: after `steps` of `planned`; `best_step`: whose weights are saved, if not the last one's.

    `by`: what `early` and `best_step` go by; `best_loss` is set for the validation loss.
    """

    steps: int
    planned: int
    early: bool
    best_step: int | None = None
    best_loss: float | None = None
    by: Literal["loss", "checks"] = "loss"

    @property
    def sentences(self) -> list[str]:
        """What a report or a card says of it."""
        said = []
        if self.early:
            why = "the validation loss no longer fell" if self.by == "loss" else "the checks got no better"
            said.append(f"Ended early after step {self.steps} of {self.planned}: {why}.")
        if self.best_step is not None and self.best_loss is not None:
            said.append(f"Saved is step {self.best_step}, which had the lowest validation loss: {self.best_loss:.4f}.")
        elif self.best_step is not None:
            said.append(f"Saved is step {self.best_step}, which did best in the checks.")
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


def no_better(trainer: Trainer) -> bool:
    """Whether the training has ended because it got no better: now, or where the checkpoint was written."""
    stoppers: Sequence[Any] = trainer.callback_handler.callbacks
    impatient = [one for one in stoppers if isinstance(one, EarlyStoppingCallback)]
    return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in impatient) or any(
        one.ended for one in stoppers if isinstance(one, CheckWhileTraining)
    )


def with_patience_as_asked(trainer: Trainer, restore: Callable[[], None]) -> None:
    """Have the callbacks' states restored: what was counted is the checkpoint's, the patience the configuration's."""
    stoppers: Sequence[Any] = trainer.callback_handler.callbacks
    asked = [one.state()["args"] for one in stoppers if isinstance(one, EarlyStoppingCallback)]
    restore()
    stoppers = trainer.callback_handler.callbacks
    for one, settings in zip([one for one in stoppers if isinstance(one, EarlyStoppingCallback)], asked, strict=False):
        vars(one).update(settings)


def ending(trainer: Trainer) -> Ending:
    """How `trainer` ended."""
    state = trainer.state
    stoppers: Sequence[Any] = trainer.callback_handler.callbacks
    checked = [one for one in stoppers if isinstance(one, CheckWhileTraining) and one.choose]
    by: Literal["loss", "checks"] = "checks" if checked else "loss"
    early = state.global_step < state.max_steps and no_better(trainer)
    if not (trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None):
        return Ending(state.global_step, state.max_steps, early, by=by)
    loss = None if checked else state.best_metric
    return Ending(state.global_step, state.max_steps, early, state.best_global_step, loss, by)


def name_best(run: RunDir, ending: Ending, exam: Exam, losses: Mapping[int, float], *, whole: bool) -> Best:
    """Write best.json: the saved result, unless a kept checkpoint did clearly better. Raises OSError.

    `losses`: validation loss by step, looked at where no check tells what was learned; `whole`: every weight was
    trained.
    """
    saved = Best(step=ending.best_step or ending.steps, path="model" if whole else "adapter", why="")
    if ending.best_step is not None:
        best = saved.model_copy(update={"why": ending.sentences[-1]})
    else:
        kept = {step_of(path): path for path in complete_checkpoints(run.checkpoints)}
        kept.pop(ending.steps, None)
        best = _better_check(kept, exam) or _lower_loss(kept, exam, losses, ending.steps) or saved
        best = best if best.why else saved.model_copy(update={"why": f"No kept step before {saved.step} did better."})
    write_atomic(run.best_file, best.model_dump_json(indent=1))
    return best


def _better_check(kept: Mapping[int, Path], exam: Exam) -> Best | None:
    """The kept checkpoint whose check was better than that of the result."""
    if not exam.learning_is_checked or exam.final is None:
        return None
    best = best_of([check for check in exam.checks if check.step in kept])
    if best is None or best.score <= exam.final.score + CLEARLY:
        return None
    return Best(
        step=best.step,
        path=f"checkpoints/{kept[best.step].name}",
        why=f"Step {best.step} did better in the checks than the last step.",
    )


def _lower_loss(kept: Mapping[int, Path], exam: Exam, losses: Mapping[int, float], last: int) -> Best | None:
    """The kept checkpoint whose validation loss was lower than that of the result."""
    known = {step: losses[step] for step in kept if step in losses}
    if exam.learning_is_checked or not known or last not in losses:
        return None
    step = min(known, key=lambda one: known[one])
    if known[step] >= losses[last] * (1 - CLEARLY):
        return None
    return Best(
        step=step, path=f"checkpoints/{kept[step].name}", why=f"Step {step} had a lower validation loss than the last."
    )
