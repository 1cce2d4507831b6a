"""TRL's SFTTrainer over examples that are already tokens and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig

from studio import checkpoints
from studio.config import RunConfig
from studio.engine import fsdp, ranks, zero
from studio.engine.activity import batch, during
from studio.engine.answers import undisturbed
from studio.engine.attention import Collator
from studio.engine.best import follow_best, no_better, with_patience_as_asked
from studio.engine.epoch_order import EpochOrder, dataset_of
from studio.engine.model import Loaded
from studio.engine.pace import Pace, Plan
from studio.engine.saving import without_generation_settings
from studio.engine.sequences import Sequences, parallelism, sequences_of
from studio.engine.soundness import Guard
from studio.engine.spread_trainer import SpreadTrainer
from studio.engine.together import agree, attempt
from studio.engine.waits import Waits
from studio.optimizers import read_settings, usual_settings
from studio.records.batches import Rows, training_rows, validation_rows
from studio.records.counts import Prepared, numbers_of, order_of, places, updates
from studio.records.order import Indices
from studio.rundir import RunDir

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Trainer(SpreadTrainer):
    """SFTTrainer in our own order of rows, and without the model card it writes at each checkpoint."""

    validation_collator: Collator
    checkpoints_kept: int | None = None
    complete: Callable[[Path], None] | None = None  # adds to a checkpoint what it takes to use it as it is
    row_sizes: Indices
    shares: int = 1  # processes with rows of their own
    sequences: Sequences | None = None
    waits: Waits
    own_tokens: Any = 0
    own_places: int = 0
    pace: Pace
    guard: Guard | None
    _at: tuple[int, int] = (-1, 0)  # update, and its batch that is computed

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ours is written with the adapter."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule, with its usual settings where transformers insists on some."""
        given: Any = self.args.lr_scheduler_kwargs or {}
        self.args.lr_scheduler_kwargs = usual_settings(self.args.lr_scheduler_type, given, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        per_round = args.per_device_train_batch_size * self.shares
        rounds = args.gradient_accumulation_steps
        return EpochOrder(self.row_sizes, args.seed, per_round * rounds, per_round if self.shares > 1 else 1)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The rows of the training, dealt to the processes."""
        loader = super().get_train_dataloader()
        return self.sequences.deal(loader) if self.sequences else loader

    def get_sp_size(self) -> int:
        """For the library to count batches with: those a process gets are dealt to its group already."""
        return 1

    def _prepare_for_training(self, *args: Any) -> Any:
        if self.sequences is None:
            return super()._prepare_for_training(*args)
        self.sequences.begin(self)
        found = super()._prepare_for_training(*args)
        self.sequences.take_over(self)
        return found

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Validation rows are never packed, whatever the training rows are."""
        collator, self.data_collator = self.data_collator, self.validation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss on the validation rows; the training does not feel it."""
        model: Any = self.model
        with undisturbed(model), during("evaluation"), self.pace.timing("evaluate"):
            return super().evaluate(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        """Forward and backward over one batch, whose size a failure can name. Raises EngineError at no number."""
        rows, length = inputs["input_ids"].shape
        done, which = self.state.global_step, self._at[1] + 1
        self._at = (done, which if done == self._at[0] else 0)
        self.pace.places += rows * length * ranks.world()
        self.own_places += rows * length
        with during("step", rows=rows, length=length), self.waits.batch():
            loss = super().training_step(model, inputs, *args)  # type: ignore[no-untyped-call]
        if self.guard:
            value, process = self._worst(loss)
            self.guard.check("loss", value, *self._at, process)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        scaled = self.accelerator.scaler is not None  # it leaves such a step out by itself
        if norm is not None and self.guard and not scaled:
            self.guard.check("gradient", self._worst(norm)[0], self.state.global_step)
        return norm

    def _worst(self, value: Any) -> tuple[float, int]:
        """The value of all processes, and whose it is if it is no number in one of them: then all of them stop."""
        values = [own for (own,) in ranks.of_all([float(value)])]
        bad = next((number for number, one in enumerate(values) if not math.isfinite(one)), 0)
        return sum(values), bad * self.shares // len(values)

    def own_share(self) -> tuple[float, float, float]:
        """What this process did since it was asked last: tokens, tokens with filler, seconds it waited."""
        tokens, places = float(self.own_tokens), float(self.own_places)
        self.own_tokens, self.own_places = 0, 0
        return tokens, places, self.waits.read()

    def _track_num_input_tokens(self, inputs: Any) -> None:
        mask = inputs.get("attention_mask")
        self.own_tokens = self.own_tokens + (inputs["input_ids"].numel() if mask is None else mask.sum())
        super()._track_num_input_tokens(inputs)  # type: ignore[no-untyped-call]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a checkpoint to go on from may have been moved since it was written."""
        if resume_from_checkpoint and ranks.is_first():
            checkpoints.settle(Path(resume_from_checkpoint))
        fsdp.begin(self.model)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A training that was over already and is resumed: the library would train on, by an update or to the end."""
        if self.state.global_step >= self.state.max_steps or no_better(self):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_callback_state(self) -> None:
        with_patience_as_asked(self, super()._load_callback_state)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with during("save"), self.pace.timing("save"):
            with without_generation_settings(self.model):
                super()._save_checkpoint(model, trial)
            agree(attempt(self._finish_checkpoint) if self.args.should_save else None)

    def _finish_checkpoint(self) -> None:
        """The disk has all of the new checkpoint before an older one is deleted."""
        folder, best = Path(str(self.args.output_dir)), self.state.best_model_checkpoint
        written = folder / f"checkpoint-{self.state.global_step}"
        if self.complete:
            self.complete(written)
        checkpoints.seal(written)
        checkpoints.rotate(folder, self.checkpoints_kept, Path(best) if best else None)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss on one batch of validation rows, whose size a failure can name."""
        rows, length = inputs["input_ids"].shape
        batch(rows=rows, length=length)
        return super().prediction_step(model, inputs, *args, **kwargs)


class ConfirmZero(TrainerCallback):
    """Makes sure that DeepSpeed is at work where it was asked for: the trainer can leave it out in silence."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """The first moment the optimizer is known."""
        given: Any = self.trainer.args.deepspeed
        zero.confirm(optimizer, self.trainer.model_wrapped, given["zero_optimization"]["stage"])


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, rows for the evaluation loss, and how they become batches."""

    train: Rows
    validation: Rows
    collator: Collator
    shares: int = 1


def training_data(prepared: Prepared, pad_token_id: int, *, flat: bool, shares: int = 1) -> TrainingData:
    """The rows of a run; `flat` for attention that wants packed rows as one; `shares`: processes that divide them."""
    collator = Collator(pad_token_id, packed=prepared.packing, flat=flat)
    return TrainingData(training_rows(prepared), validation_rows(prepared), collator, shares)


def plan_of(config: RunConfig, data: TrainingData) -> Plan:
    """What a training over `data` is going to do, as far as it takes time."""
    numbers, train = numbers_of(config), config.train
    sizes, batch_size = data.train.sizes, train.per_device_train_batch_size
    updates_per_epoch = -(-len(sizes) // config.effective_batch_size)
    validation = data.validation.sizes
    every = train.eval_steps or config.samples.evaluation_freq
    return Plan(
        max_steps=updates(len(sizes), numbers),
        places=float(places(sizes[order_of(sizes, numbers)], batch_size).sum()) / updates_per_epoch,
        validation_places=int(places(validation, batch_size).sum()) if len(validation) else 0,
        evaluate_every=every if len(validation) else 0,
        sample_every=config.samples.evaluation_freq,
        save_every=train.save_steps,
        forward_share=1 / 3 if config.method == "full" else 1 / 2,
    )


def training_arguments(config: RunConfig, output: Path, loaded: Loaded, *, validate: bool) -> SFTConfig:
    """The `train` section as it stands, and what follows from the machine and from our own data preparation."""
    on_cpu = loaded.precision.device == "cpu"
    section = config.train.model_dump()
    section["eval_steps"] = config.train.eval_steps or config.samples.evaluation_freq
    section["lr_scheduler_kwargs"] = read_settings(config.train.lr_scheduler_kwargs or "")
    section["fsdp"] = config.parallel.fsdp != "none"  # a yes or no by now, which the library calls a text
    del section["load_best_model_at_end"], section["report_to"]
    arguments = SFTConfig(
        **section,
        output_dir=str(output),
        eval_strategy="steps" if validate else "no",
        per_device_eval_batch_size=config.train.per_device_train_batch_size,
        prediction_loss_only=True,
        use_cpu=on_cpu,
        bf16=loaded.precision.dtype is torch.bfloat16,
        fp16=loaded.precision.dtype is torch.float16,
        save_strategy="steps",
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=not on_cpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,  # rows are made by a transform: their columns are not the dataset's
        max_length=None,
        deepspeed=zero.settings(config, RunDir(output.parent)),
        fsdp_config=fsdp.settings(config),
        accelerator_config=fsdp.accumulation(config),
        parallelism_config=parallelism(config, loaded.model),
        ddp_timeout=config.parallel.ddp_timeout,
        report_to=[],  # `trackers` hands them on, so that one that fails does not end the run
        run_name=output.parent.name,
        disable_tqdm=True,
    )
    if validate:
        follow_best(arguments, config)
    return arguments


def build_trainer(
    arguments: SFTConfig,
    loaded: Loaded,
    data: TrainingData,
    callbacks: Sequence[TrainerCallback],
    pace: Pace | None = None,
    guard: Guard | None = None,
) -> Trainer:
    """The trainer; its `model` is `loaded.model`. `pace` times what it does, `guard` looks at its numbers."""
    # TRL rounds a 4-bit model's adapter to bfloat16: too coarse for small updates, and a loss for one that goes on.
    whole = [weight for weight in loaded.model.parameters() if not hasattr(weight, "ds_id")]
    trained = [(weight, weight.data.float()) for weight in whole if weight.requires_grad]
    if arguments.fsdp:
        fsdp.admit(loaded.precision.device)
    sequences = sequences_of(arguments.parallelism_config)
    trainer = Trainer(
        model=loaded.model,
        args=arguments,
        train_dataset=dataset_of(data.train, filler=data.shares > 1),
        eval_dataset=dataset_of(data.validation) if len(data.validation) else None,
        processing_class=loaded.tokenizer,
        data_collator=sequences.collator(data.collator) if sequences else data.collator,
        callbacks=list(callbacks),
    )
    trainer.row_sizes, trainer.shares, trainer.waits = data.train.sizes, data.shares, Waits()
    trainer.sequences = sequences
    trainer.pace, trainer.guard = pace or Pace(), guard
    # The library's own rotation goes by the clock, deletes bit by bit, and takes a stopped run's last checkpoint.
    trainer.checkpoints_kept, arguments.save_total_limit = arguments.save_total_limit, None
    trainer.validation_collator = Collator(data.collator.shape.pad_token_id)
    trainer.remove_callback(PrinterCallback)
    if arguments.deepspeed:
        trainer.add_callback(ConfirmZero(trainer))
    for weight, numbers in trained:
        weight.data = numbers
    if arguments.fsdp:
        fsdp.divide(trainer.accelerator, trainer.model, loaded.precision)
    return trainer
