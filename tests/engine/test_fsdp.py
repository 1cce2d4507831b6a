"""FSDP2 in two processes: the losses, the answers and the result of one process that has everything.

Losses are compared to 1e-5 and weights to 1e-5: numbers are added up in another order, in 32 bits. In 16 bits, where
norms are computed with rounded weights too, to 1e-3.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults import Forked
from forked_ranks import said, together
from safetensors.torch import load_file
from tiny import MakeRun, events_of, losses

from studio.checkpoints import last_checkpoint
from studio.engine import fsdp
from studio.engine.failure import EngineError
from studio.events import ExitCode
from studio.rundir import RunDir

DIVIDED: dict[str, Any] = {
    "parallel.num_processes": 2,
    "parallel.fsdp": "fsdp2",
    "train.per_device_train_batch_size": 2,
}
WHOLE = {"lora.modules_to_save": ["lm_head"]}
CASES: list[tuple[str, dict[str, Any], float]] = [
    ("full", {"train.gradient_accumulation_steps": 2, "train.gradient_checkpointing": True}, 1e-5),
    ("lora", WHOLE, 1e-5),
    ("lora", {"model.dtype": "bfloat16", "verdict.enabled": True}, 1e-3),
]


def weights_of(run: RunDir) -> dict[str, torch.Tensor]:
    (file,) = [*run.path.glob("model/*.safetensors"), *run.path.glob("adapter/*.safetensors")]
    return load_file(file)


def told(run: RunDir) -> list[Any]:
    verdicts = [(event.step, event.learned, event.leaked) for event in events_of(run, "verdict")]
    return [(event.step, event.answer) for event in events_of(run, "sample")] + verdicts


@pytest.mark.parametrize(("method", "changes", "tolerance"), CASES, ids=["full", "lora and head", "16 bits"])
def test_two_processes_train_and_answer_as_one(
    method: str, changes: dict[str, Any], tolerance: float, make_run: MakeRun
) -> None:
    asked = {"train.max_steps": 4, "train.save_steps": 2, "samples.evaluation_inputs": ["Who are you?"]} | changes
    plain = make_run(method, **asked)
    assert Forked(plain).wait() == ExitCode.FINISHED, said(plain)
    run = make_run(method, **asked, **DIVIDED)
    assert together(run) == [0, 0], said(run)

    assert losses(run) == pytest.approx(losses(plain), rel=tolerance)
    norms = [[event.grad_norm for event in events_of(one, "log")] for one in (run, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance)
    expected, found = weights_of(plain), weights_of(run)
    assert {name: value.dtype for name, value in found.items()} == {name: one.dtype for name, one in expected.items()}
    if tolerance == 1e-5:
        assert told(run) == told(plain)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)
    else:
        assert len(told(run)) == len(told(plain))
    last = last_checkpoint(run.checkpoints)
    assert last is not None
    kept = load_file(next(last.glob("[am]*.safetensors")))
    assert all(torch.equal(kept[name], value) for name, value in found.items())


def test_a_model_that_is_not_divided_ends_the_run() -> None:
    with pytest.raises(EngineError, match=r"^parallel\.fsdp: the trainer did not take FSDP2 up"):
        fsdp.confirm(torch.nn.Linear(2, 2))
