"""The configuration of a training, with the rules between its fields, and those of every other kind of run.

The hyper-parameters themselves are declared in `studio.sections`, the other kinds in `studio.outputs`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from studio.optimizers import unknown_setting
from studio.outputs import AnswersConfig, ConvertConfig, ExportConfig, MergeConfig, OutputConfig
from studio.parallel_plan import conflict
from studio.parallel_section import ParallelSection
from studio.schema import Section, Ui
from studio.sections import (
    ADAPTER_METHODS,
    CHANGES_BASE,
    DataSection,
    EarlyStoppingSection,
    ExtraSource,
    LoraSection,
    Method,
    ModelSection,
    QuantizationSection,
    SamplesSection,
    SourceSection,
    TrainSection,
    VerdictSection,
)

__all__ = [
    "ADAPTER_METHODS",
    "CHANGES_BASE",
    "KINDS",
    "AnswersConfig",
    "AnyConfig",
    "ConvertConfig",
    "DataSection",
    "EarlyStoppingSection",
    "ExportConfig",
    "ExtraSource",
    "LoraSection",
    "MergeConfig",
    "Method",
    "ModelSection",
    "OutputConfig",
    "ParallelSection",
    "QuantizationSection",
    "RunConfig",
    "SamplesSection",
    "SourceSection",
    "TrainSection",
    "VerdictSection",
]


class RunConfig(Section):
    """One training run, complete."""

    kind: Annotated[Literal["train"], Ui(label="Kind", advanced=True)] = "train"
    """What this configuration describes."""
    schema_version: Annotated[Literal[1], Ui(label="Format version", advanced=True)] = 1
    """Version of this file format."""
    name: Annotated[str, Field(max_length=120), Ui(label="Run name", aliases=("work_dir",))] = ""
    """A name to find the run again. Empty: built from model, method and dataset."""
    method: Annotated[Method, Ui(label="Method")] = "qlora"
    """qlora: 4-bit base + small adapter, least memory. lora: 16-bit base + adapter. full: every weight, most memory."""
    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    data: DataSection
    train: TrainSection = TrainSection()
    parallel: ParallelSection = ParallelSection()
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()
    samples: SamplesSection = SamplesSection()
    verdict: VerdictSection = VerdictSection()

    @model_validator(mode="after")
    def check_targets_named(self) -> RunConfig:
        """An adapter needs at least one layer to sit beside."""
        if not self.lora.target_modules:
            raise ValueError("lora.target_modules must name at least one layer, or all-linear")
        return self

    @model_validator(mode="after")
    def check_start_fits_method(self) -> RunConfig:
        """A start that moves base weights needs them unpacked; and only plain LoRA can be converted back."""
        start = self.lora.init_lora_weights
        if start not in CHANGES_BASE or self.method == "full":
            return self
        if self.method == "qlora":
            raise ValueError(
                f"lora.init_lora_weights: {start} changes the base weights and needs them in 16 bits; "
                "choose the method lora, or default"
            )
        if self.lora.use_dora or self.lora.modules_to_save:
            other = "lora.use_dora" if self.lora.use_dora else "lora.modules_to_save"
            raise ValueError(f"lora.init_lora_weights: {start} cannot be combined with {other}; choose default")
        return self

    @model_validator(mode="after")
    def check_best_needs_validation(self) -> RunConfig:
        """Best and no better are said of the validation loss."""
        wanted = {
            "train.load_best_model_at_end": self.train.load_best_model_at_end,
            "early_stopping.early_stopping_patience": self.early_stopping.early_stopping_patience is not None,
        }
        for path, needed in wanted.items():
            if needed and not self.data.validation_share and not self.data.validation_dataset:
                raise ValueError(
                    f"{path} needs validation rows; set data.validation_share to 0.1, or name a data.validation_dataset"
                )
        return self

    @model_validator(mode="after")
    def check_parallel_fits(self) -> RunConfig:
        """Processes, machines and what they divide go together, and with the method."""
        problem = conflict(self)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def check_one_best(self) -> RunConfig:
        """What is saved is chosen by the checks or by the validation loss, not by both; and checks must be made."""
        if not self.verdict.stop_at_best:
            return self
        if not (self.verdict.enabled and self.verdict.check_while_training):
            raise ValueError("verdict.stop_at_best needs the checks; switch verdict.check_while_training on")
        if self.train.load_best_model_at_end or self.early_stopping.early_stopping_patience is not None:
            other = "train.load_best_model_at_end"
            other = other if self.train.load_best_model_at_end else "early_stopping.early_stopping_patience"
            raise ValueError(f"verdict.stop_at_best and {other} choose the step in different ways; switch one off")
        return self

    @model_validator(mode="after")
    def check_schedule_knows_settings(self) -> RunConfig:
        """Settings belong to one schedule; another one would refuse them only after everything is loaded."""
        problem = unknown_setting(self.train.lr_scheduler_type, self.train.lr_scheduler_kwargs)
        if problem:
            raise ValueError(f"train.lr_scheduler_kwargs: {problem}")
        return self

    @model_validator(mode="after")
    def check_adapter_is_trained(self) -> RunConfig:
        """Training every weight would leave an adapter lying beside them."""
        if self.model.adapter and self.method == "full":
            raise ValueError(
                "model.adapter: an adapter is continued with the method lora or qlora; choose one of them, or merge "
                "the adapter and train the merged model"
            )
        return self

    @property
    def data_parallel_size(self) -> int:
        """How many batches are computed at the same time: processes, divided by those that share a batch."""
        return self.parallel.num_processes // self.parallel.sequence_parallel_size

    @property
    def rows_per_process(self) -> int:
        """Conversations per optimizer update that one process computes."""
        return self.train.per_device_train_batch_size * self.train.gradient_accumulation_steps

    @property
    def effective_batch_size(self) -> int:
        """Conversations per optimizer update, of all processes together."""
        return self.rows_per_process * self.data_parallel_size


AnyConfig = RunConfig | MergeConfig | ConvertConfig | ExportConfig | AnswersConfig
KINDS: dict[str, type[OutputConfig]] = {
    "merge": MergeConfig,
    "convert": ConvertConfig,
    "export": ExportConfig,
    "answer": AnswersConfig,
}
"""The configuration of each kind of run that is no training."""
