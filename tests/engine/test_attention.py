"""Packed rows never see each other: the batches, the check on a model, and what happens when a model fails it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import Engine, MakeRun, events_of
from transformers import AutoModelForCausalLM

from studio.engine.attention import Collator, leaks
from studio.events import ExitCode

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, 9], "seq_lengths": [3, 2]},
    {"input_ids": [4, 3], "labels": [4, 3], "seq_lengths": [2]},
]


def test_padding_is_on_the_right_and_carries_no_loss() -> None:
    batch = Collator(0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, 8, 9], [4, 3, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]


def test_packed_positions_start_over_and_first_tokens_carry_no_loss() -> None:
    batch = Collator(0, packed=True)(ROWS)
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, 3, -100, -100, -100]]


def test_flat_batches_are_one_row() -> None:
    batch = Collator(0, packed=True, flat=True)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_real_models_keep_packed_examples_apart(kind: str, attention: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    assert not leaks(model, 259)


class Memory(torch.nn.Module):
    """A model whose every token feels all tokens before it, whatever the positions say."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 4)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.embedding(input_ids).cumsum(1))


def test_a_model_that_does_not_is_found_out() -> None:
    torch.manual_seed(0)
    assert leaks(Memory(), 300)


def test_packing_such_a_model_is_refused_or_left_out(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.engine.attention.leaks", lambda *args, **kwargs: True)
    run = make_run(**{"data.packing": True})
    assert engine(run) == ExitCode.BAD_INPUT
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert status.error.field == "data.packing"

    monkeypatch.setattr("studio.records.counts.PACKING_FROM", 10)
    monkeypatch.setattr("studio.records.counts.PACKED_UPDATES_FROM", 1)
    run = make_run()
    assert engine(run) == 0
    assert [event.field for event in events_of(run, "warning")] == ["data.packing"]
    (counts,) = events_of(run, "counts")
    assert counts.packs == 24
