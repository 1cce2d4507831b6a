"""The number of updates the form promises is the one transformers' Trainer computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from studio.records.counts import Numbers, updates

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("packs", [1, 10, 392])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("accumulation", "epochs"), [(1, 1.0), (4, 3.0), (7, 2.5), (16, 0.3)])
def test_updates_equal_the_trainers(tmp_path: Path, packs: int, batch: int, accumulation: int, epochs: float) -> None:
    for max_steps in (-1, 5):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            max_steps=max_steps,
            use_cpu=True,
            report_to=[],
        )
        trainer = Trainer(model=torch.nn.Linear(1, 1), args=arguments, train_dataset=[{"x": 0}] * packs)
        values = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())
        assert updates(packs, Numbers(16, None, batch, accumulation, epochs, max_steps)) == values[-1]
