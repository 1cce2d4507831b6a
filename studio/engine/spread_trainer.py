"""Checkpoints of several processes: whole or not there at all, and good for any number of processes under any stage.

Each holds the whole adapter or model where one process would have left it. What ZeRO or FSDP2 divide goes into one
file by the names of the weights (`optimizer_file`); only an optimizer in 8 bits, whose numbers cannot be divided anew,
leaves DeepSpeed's own files, one for each process. Files written on other machines are brought to the first one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from transformers import set_seed
from transformers.trainer import SCHEDULER_NAME
from trl.trainer.sft_trainer import SFTTrainer

from studio.checkpoints import processes_of, step_of
from studio.engine import fsdp, optimizer_file, ranks, transport, zero3
from studio.engine.divided import Divided, divided, swaps
from studio.engine.optimizer_file import Facts, Get
from studio.engine.plain_checkpoint import is_plain, open_plain
from studio.engine.together import agree, attempt, carrier, of_first

_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class SpreadTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints do not depend on how many processes there are."""

    _failure: Exception | None = None
    _order: Sequence[str] = ()
    _apart: bool | None = None  # this process sees another disk than the first one

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; on other machines than the first nothing of a checkpoint stays."""
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._tidy()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save = super()._save_checkpoint
        if ranks.world() == 1:
            save(model, trial)  # type: ignore[no-untyped-call]
            return
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        here = not self._is_apart()
        self._tidy()
        self._failure = None
        failure = attempt(lambda: save(model, trial))  # type: ignore[no-untyped-call]
        agree(failure or self._failure)
        transport.collect(folder, here=here)
        self.state.best_model_checkpoint = of_first(self.state.best_model_checkpoint)

    def _is_apart(self) -> bool:
        if self._apart is None:
            folder = Path(str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            self._apart = transport.apart(folder)
        return self._apart

    def _tidy(self) -> None:
        if self._apart and ranks.is_first_here():
            for path in Path(str(self.args.output_dir)).glob("checkpoint-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _own_part(self, work: Callable[[], object]) -> None:
        """Work no other process waits for; a failure is told when all are done with theirs."""
        if ranks.world() == 1:
            work()
        else:
            self._failure = attempt(work) or self._failure

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole adapter or model, in the usual place, written by the first process."""
        peft = hasattr(self.model, "peft_config")
        if self.is_fsdp_enabled:
            self._save(output_dir, self._whole_weights(peft))
        elif self.is_deepspeed_enabled and self._stage() < 3 and not ranks.is_first():
            pass  # every process has all weights, and the library would copy them in each
        elif self.is_deepspeed_enabled and peft and self._stage() < 3:
            self._save(output_dir)  # the library would first copy all of the base model
        else:
            super().save_model(output_dir, _internal_call)

    def _whole_weights(self, peft: bool) -> dict[str, torch.Tensor]:
        """What FSDP2 divides, in the first process: of a model with an adapter what is trained, else everything."""
        first, model = ranks.is_first(), self._any_model()
        if peft:
            return fsdp.trained_weights(model, keep=first)
        return zero3.whole_weights(model, torch.float32, keep=first)

    def _any_model(self) -> Any:
        return self.model

    def _stage(self) -> int:
        engine: Any = self.model_wrapped
        return int(engine.zero_optimization_stage())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save = super()._save
        self._own_part(lambda: save(output_dir, state_dict))

    def _save_rng_state(self, output_dir: str) -> None:
        save = super()._save_rng_state
        self._own_part(lambda: save(output_dir))

    def _save_scaler(self, output_dir: str) -> None:
        save = super()._save_scaler
        self._own_part(lambda: save(output_dir))

    def _view(self) -> Divided:
        return divided(self.model_wrapped if self.is_deepspeed_enabled else self.model, self.optimizer)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save = super()._save_optimizer_and_scheduler
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self._own_part(lambda: save(output_dir))
            return
        view = self._view()
        keys = None if swaps(self.model_wrapped) else view.keys()
        if keys is None:
            save(output_dir)
            self._own_part(lambda: _remove_scripts(Path(output_dir)))
            return
        optimizer_file.write(Path(output_dir), view, self._facts(view, keys))
        if self.args.should_save and not _is_of_deepspeed(self.lr_scheduler):
            schedule: Any = self.lr_scheduler
            state = schedule.state_dict()
            self._own_part(lambda: torch.save(state, Path(output_dir) / SCHEDULER_NAME))

    def _facts(self, view: Divided, keys: list[str]) -> Facts:
        facts = Facts(
            processes=ranks.world(),
            keys=keys,
            scalars=view.scalars(),
            groups=optimizer_file.group_settings(view.optimizer.param_groups),
        )
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            facts.counters = {name: int(getattr(engine, name)) for name in _COUNTERS}
            facts.scale = _numbers(getattr(engine.optimizer, "loss_scaler", None))
            if _is_of_deepspeed(self.lr_scheduler):
                facts.schedule = dict(engine.lr_scheduler.state_dict())
        return facts

    def _init_training_state(self, *args: Any) -> Any:
        found = super()._init_training_state(*args)
        self.state.best_model_checkpoint = of_first(self.state.best_model_checkpoint)
        return found

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer; the order of its weights is kept, for DeepSpeed will put others in their place."""
        made = super().create_optimizer(model)
        names = {id(weight): name for name, weight in Divided(self._any_model(), None).weights.items()}
        self._order = [names[id(weight)] for group in made.param_groups for weight in group["params"]]
        return made

    def _prepare_for_training(self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepare: Any = super()._prepare_for_training
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is None:
            return prepare(max_steps, train_dataloader, None)
        facts = optimizer_file.read_facts(checkpoint)
        divides = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if facts is None and not (divides and is_plain(checkpoint)):
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        found = prepare(max_steps, train_dataloader, None)
        if facts is None:
            facts = self._divide(checkpoint)
        else:
            optimizer_file.read(checkpoint, self._view(), facts)
        self._go_on(checkpoint, facts)
        return found

    def _divide(self, checkpoint: Path) -> Facts:
        """Go on from a checkpoint of a run that divided nothing."""
        view, opened = self._view(), list[tuple[Facts, Get]]()
        shapes = {name: view.shape(name) for name in view.weights}
        read = attempt(lambda: opened.append(open_plain(checkpoint, self._order, shapes))) if ranks.is_first() else None
        agree(read)
        facts = of_first(opened[0][0] if opened else None)
        assert facts is not None
        optimizer_file.spread(view, facts, opened[0][1] if opened else None)
        return facts

    def _go_on(self, checkpoint: Path, facts: Facts) -> None:
        """The rest of a checkpoint, once weights and optimizer are what they were."""
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            vars(engine).update(facts.counters)
            vars(getattr(engine.optimizer, "loss_scaler", self)).update(facts.scale)
            if facts.schedule and engine.lr_scheduler is not None:
                engine.lr_scheduler.load_state_dict(facts.schedule)
        if (checkpoint / SCHEDULER_NAME).is_file():
            saved = torch.load(checkpoint / SCHEDULER_NAME, weights_only=True)
            schedule, optimizer = cast("Any", self.lr_scheduler), cast("Any", self.optimizer)
            schedule.load_state_dict(_for_groups(saved, len(optimizer.param_groups)))
        self._load_scaler(str(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The random numbers go on; with another number of processes new ones begin, other in each process."""
        if checkpoint and processes_of(Path(checkpoint)) != ranks.world():
            set_seed((self.args.seed * 1_000_003 + step_of(Path(checkpoint)) * 8_209 + ranks.rank()) % 2**32)
        else:
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        facts = of_first(optimizer_file.read_facts(folder))
        load = super()._load_best_model
        if facts is not None:
            optimizer_file.read(folder, self._view(), facts, only_weights=True)
        elif ranks.world() == 1 or self.is_deepspeed_enabled:
            load()
        else:
            agree(attempt(load) if ranks.is_first() else None)
            for weight in Divided(self._any_model(), None).weights.values():
                sent = weight.data.to(carrier())
                torch.distributed.broadcast(sent, src=0)
                weight.data.copy_(sent)


def _remove_scripts(folder: Path) -> None:
    """DeepSpeed leaves programs that put weights together; they are whole already."""
    if ranks.is_first():
        for name in ("zero_to_fp32.py", "zero_to_torch.py"):
            (folder / name).unlink(missing_ok=True)


def _for_groups(schedule: dict[str, Any], count: int) -> dict[str, Any]:
    """The state of a schedule for `count` groups of weights: DeepSpeed leaves those without weights out."""
    return {
        key: value[:1] * count if isinstance(value, list) and len(value) != count else value
        for key, value in schedule.items()
    }


def _is_of_deepspeed(scheduler: Any) -> bool:
    """Whether the run's own settings have DeepSpeed make the learning rate."""
    return type(scheduler).__name__ == "DeepSpeedSchedulerWrapper"


def _numbers(scaler: Any) -> dict[str, float]:
    """The state of a loss scale that changes; nothing for one that does not."""
    if not getattr(scaler, "dynamic", False):
        return {}
    return {name: value for name, value in vars(scaler).items() if type(value) in (int, float)}
