"""Two processes that share each conversation train as one does: the same losses, gradients, answers and weights.

Compared to 1e-5: numbers are added up in another order, in 32 bits. Plain gradient descent without clipping is used,
for Adam would hide gradients that are twice too large.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults import Forked
from forked_ranks import said, together
from safetensors.torch import load_file
from tiny import MakeRun, events_of, losses

from studio.engine.sequences import SharedCollator, seen
from studio.events import ExitCode
from studio.records.batches import Row, Shape

SHARED: dict[str, Any] = {"parallel.num_processes": 2, "parallel.sequence_parallel_size": 2}
DESCENT: dict[str, Any] = {
    "train.optim": "sgd",
    "train.learning_rate": 0.3,
    "train.max_grad_norm": 0,
    "train.lr_scheduler_type": "constant",
}
# 24 rows of several lengths in batches of 5, two to an update: the last update of an epoch has fewer, the second
# epoch another order.
UNEVEN = {"train.per_device_train_batch_size": 5, "train.gradient_accumulation_steps": 2, "train.max_steps": 5}
PACKED = {"data.packing": True, "data.max_length": 150, "train.per_device_train_batch_size": 1, "train.max_steps": 4}


@pytest.mark.parametrize(
    ("method", "stage", "changes"),
    [("full", "zero3", UNEVEN), ("full", "zero2", PACKED), ("lora", "zero1", {"train.max_steps": 3})],
    ids=["uneven", "packed", "lora"],
)
def test_two_processes_train_as_one(method: str, stage: str, changes: dict[str, Any], make_run: MakeRun) -> None:
    changes = DESCENT | changes | {"samples.evaluation_inputs": ["Who are you?", "And what is your own name?"]}
    plain = make_run(method, **changes)
    assert Forked(plain).wait() == ExitCode.FINISHED, said(plain)
    run = make_run(method, **changes, **SHARED, **{"parallel.deepspeed": stage})
    assert together(run) == [0, 0], said(run)

    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    norms = [[event.grad_norm for event in events_of(one, "log")] for one in (run, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    answers = [[(event.step, event.answer) for event in events_of(one, "sample")] for one in (run, plain)]
    assert answers[0] == answers[1]
    result = "model/model" if method == "full" else "adapter/adapter_model"
    expected, found = (load_file(one.path / f"{result}.safetensors") for one in (plain, run))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


ROWS: list[Row] = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9], "seq_lengths": [5]},
    {"input_ids": [3, 4], "labels": [-100, 4], "seq_lengths": [2]},
]


def test_a_row_is_cut_so_that_no_part_needs_the_next_one() -> None:
    first, second = (SharedCollator(Shape(0), part, 2)(ROWS) for part in range(2))
    assert first["input_ids"].tolist() == [[5, 6, 7], [3, 4, 0]]
    assert first["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert first["shift_labels"].tolist() == [[-100, 7, 8], [4, -100, -100]]
    assert second["input_ids"].tolist() == [[8, 9, 0], [0, 0, 0]]
    assert second["position_ids"].tolist() == [[3, 4, 5], [3, 4, 5]]
    assert second["shift_labels"].tolist() == [[9, -100, -100], [-100, -100, -100]]
    assert first.keys() == second.keys() == {"input_ids", "position_ids", "labels", "shift_labels"}


def test_packed_rows_keep_their_positions_and_their_masks() -> None:
    packed: Row = {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]}
    parts = [SharedCollator(Shape(0, packed=True), part, 2)([packed]) for part in range(2)]
    positions = torch.cat([part["position_ids"] for part in parts], dim=1)
    assert positions.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert torch.cat([part["labels"] for part in parts], dim=1).tolist() == [[2, -100, 4, 5, -100, -100]]
    looks = seen(positions)[0]
    assert [row.nonzero().flatten().tolist() for row in looks] == [[0], [0, 1], [2], [2, 3], [2, 3, 4], [5]]
    near = seen(torch.arange(4)[None], window=2)[0]
    assert [row.nonzero().flatten().tolist() for row in near] == [[0], [0, 1], [1, 2], [2, 3]]
