"""What happens beside the training: points of the curves, samples, checkpoints announced, and the stop."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from studio.config import SamplesSection
from studio.engine import ranks
from studio.engine.activity import during
from studio.engine.answers import Respondent
from studio.engine.gpu_meter import Meter
from studio.engine.journal import Journal
from studio.engine.pace import Pace
from studio.engine.ticker import counting
from studio.engine.together import of_all
from studio.events import EvalEvent, LogEvent, RankPoint, RanksEvent, SampleEvent, SavedEvent

if TYPE_CHECKING:
    from studio.engine.trainer import Trainer


class Sampler:
    """Asks the evaluation inputs and writes the answers as events; once per step at most."""

    def __init__(
        self, journal: Journal, respondent: Respondent, section: SamplesSection, pace: Pace, *, asks: bool = True
    ) -> None:
        self.journal, self.respondent, self.section, self.pace = journal, respondent, section, pace
        self.prompts = section.evaluation_inputs if asks else ()
        self.asked_at = -1

    def ask(self, reason: str) -> None:
        """Answer every evaluation input now. `reason`: start | freq | save | end."""
        prompts = self.prompts
        if not prompts or self.asked_at == self.journal.step:
            return
        self.asked_at = self.journal.step
        label = "evaluation inputs answered"
        with during("samples"), self.pace.timing("sample"), counting(self.journal, label, len(prompts)) as told:
            answers = self.respondent.answer(prompts, self.section.max_new_tokens, told)
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            self.journal.emit(SampleEvent(index=index, prompt=prompt, answer=answer, reason=reason))


class Share(NamedTuple):
    """What one process did in some steps: bytes in use, steps, seconds of them, tokens, tokens with filler, and seconds
    it waited for the others."""

    memory: int
    steps: int
    seconds: float
    tokens: float = 0.0
    places: float = 0.0
    waited: float = 0.0

    @property
    def speed(self) -> float | None:
        """Its own tokens per second."""
        return self.tokens / self.seconds if self.seconds else None

    def point(self, rank: int, host: str) -> RankPoint:
        """As the monitor shows it."""
        steps = max(self.steps, 1)
        return RankPoint(
            rank=rank,
            host=host,
            memory_bytes=self.memory,
            tokens_per_second=self.speed,
            step_seconds=self.seconds / steps,
            waited_seconds=self.waited / steps,
        )


class Watch(TrainerCallback):
    """Reports the training to the journal and obeys its stop."""

    def __init__(self, journal: Journal, sampler: Sampler, pace: Pace, meter: Meter) -> None:
        self.journal, self.sampler, self.pace, self.meter = journal, sampler, pace, meter
        self.tokens_seen = 0.0
        self.trained_tokens = 0.0
        self.trained_seconds = 0.0
        self.peak_memory = 0
        self.evaluated_at = -1
        self.stopping = False
        self.trainer: Trainer | None = None
        self.hosts: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """A resumed run goes on counting where it was."""
        self.tokens_seen = float(state.num_input_tokens_seen)
        self.pace.plan = replace(self.pace.plan, max_steps=state.max_steps)
        self.meter.start()
        self.hosts = of_all(socket.gethostname())
        if self.trainer:
            self.trainer.waits.watch(model)
        self.journal.update(force=True, step=state.global_step, max_steps=state.max_steps)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the GPU alone."""
        self.meter.stop()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.pace.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock, tell the status; a stop asked for means: save now, then stop."""
        self.pace.end_step(state.global_step)
        self.journal.update(step=state.global_step, max_steps=state.max_steps)
        self.stopping = ranks.any_of(self.journal.stop_requested())
        if self.stopping:
            control.should_save = control.should_training_stop = control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One point of the curves."""
        if not logs or "loss" not in logs:
            return
        steps, seconds, places = self.pace.read()
        shares = self._shares(steps, seconds)
        if len(shares) > 1:
            places = round(sum(share.places for share in shares))
        point = self._point(state, logs, (steps, seconds, places), max(share.memory for share in shares))
        self.journal.emit(point)
        if len(shares) > 1:
            self.journal.emit(RanksEvent(ranks=[share.point(n, host) for (n, host), share in self._named(shares)]))
        print(_line(state, logs, point), flush=True)  # noqa: T201 - engine.log is what people read

    def _shares(self, steps: int, seconds: float) -> list[Share]:
        """What each process did since the last point; all of them ask at the same step."""
        done = self.trainer.own_share() if self.trainer is not None else (0.0, 0.0, 0.0)
        own = Share(memory_in_use(), steps, seconds, *done)
        self.journal.measured(own.speed)
        return [Share(int(memory), int(steps), *rest) for memory, steps, *rest in ranks.of_all(list(map(float, own)))]

    def _named(self, shares: list[Share]) -> Iterator[tuple[tuple[int, str], Share]]:
        return zip(enumerate(self.hosts), shares, strict=True)

    def _point(
        self, state: TrainerState, logs: dict[str, float], window: tuple[int, float, float], memory: int
    ) -> LogEvent:
        steps, seconds, places = window
        tokens = float(state.num_input_tokens_seen) - self.tokens_seen
        self.tokens_seen += tokens
        self.trained_tokens += tokens
        self.trained_seconds += seconds
        self.peak_memory = max(self.peak_memory, memory)
        speed = tokens / seconds if seconds else None
        usage = self.meter.read()
        return LogEvent(
            epoch=logs.get("epoch"),
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=speed,
            step_seconds=seconds / steps if steps else None,
            memory_bytes=memory,
            eta_seconds=self.pace.left(state.global_step),
            gpu_utilization=usage.utilization,
            gpu_power_watts=usage.watts,
            mfu=self.meter.mfu(speed),
            padding=max(1 - tokens / places, 0.0) if places else None,
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """The loss on the validation rows."""
        loss = (metrics or {}).get("eval_loss")
        self.evaluated_at = state.global_step
        self.journal.emit(EvalEvent(eval_loss=loss))
        if loss is not None:
            print(f"step {state.global_step}/{state.max_steps}  validation loss {loss:.4f}", flush=True)  # noqa: T201

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is complete."""
        self.journal.emit(SavedEvent(path=f"checkpoints/checkpoint-{state.global_step}", what="checkpoint"))
        if not self.stopping and state.global_step < state.max_steps:
            self.sampler.ask("save")


class SampleWhileTraining(TrainerCallback):
    """Asks the evaluation inputs every `evaluation_freq` steps; the end has its own."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After the update, outside the clock."""
        due = state.global_step % self.sampler.section.evaluation_freq == 0
        if due and state.global_step < state.max_steps and not control.should_training_stop:
            self.sampler.ask("freq")


def memory_in_use() -> int:
    """Bytes of GPU memory held by this process, or of main memory without a GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return int(psutil.Process().memory_info().rss)


def _line(state: TrainerState, logs: dict[str, float], point: LogEvent) -> str:
    speed = f"  {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
    return f"step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.4f}{speed}"
