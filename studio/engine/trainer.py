"""TRL's SFTTrainer over examples that are already tokens and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from studio.config import RunConfig
from studio.engine.attention import Collator
from studio.engine.model import Loaded

if TYPE_CHECKING:
    from datasets import Dataset


class Trainer(SFTTrainer):
    """SFTTrainer without the model card it writes at each checkpoint; ours is written with the adapter."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


def training_arguments(config: RunConfig, output: Path, loaded: Loaded) -> SFTConfig:
    """The `train` section as it stands, and what follows from the machine and from our own data preparation."""
    on_cpu = loaded.precision.device == "cpu"
    return SFTConfig(
        **config.train.model_dump(),
        output_dir=str(output),
        use_cpu=on_cpu,
        bf16=loaded.precision.dtype is torch.bfloat16,
        fp16=loaded.precision.dtype is torch.float16,
        save_strategy="steps",
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=not on_cpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        report_to=[],
        disable_tqdm=True,
    )


def build_trainer(
    arguments: SFTConfig, loaded: Loaded, rows: Dataset, collator: Collator, callbacks: Sequence[TrainerCallback]
) -> Trainer:
    """The trainer; its `model` is `loaded.model`."""
    trainer = Trainer(
        model=loaded.model,
        args=arguments,
        train_dataset=rows,
        processing_class=loaded.tokenizer,
        data_collator=collator,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:  # TRL makes a 4-bit model's adapter bfloat16: too coarse for small updates
            parameter.data = parameter.data.float()
    return trainer
