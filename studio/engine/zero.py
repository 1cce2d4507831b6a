"""DeepSpeed's ZeRO beneath the trainer, in one process: which settings it gets, and that it is really at work.

Several of DeepSpeed's ways to fail are silent (the trainer then runs without it), so the training checks (`Confirm`).
Nothing here compiles: the C++ operators DeepSpeed would build at the first start are not needed for the training.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
from typing import TYPE_CHECKING, Any

from studio.events import RunError
from studio.presets import ROOT

if TYPE_CHECKING:
    from studio.config import RunConfig

PRESETS = ROOT / "presets" / "deepspeed"


def wanted(config: RunConfig) -> bool:
    """Whether the run trains under ZeRO."""
    return config.parallel.deepspeed != "none"


def prepare_process() -> None:
    """Make this process a group of one. Call it before anything imports deepspeed."""
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (group | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # Shared memory for inference on one machine: needs a compiler, and no training ever uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    atexit.register(_leave_group)


def _leave_group() -> None:
    """A process group that is left standing can abort the process after everything is done."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def settings(config: RunConfig) -> dict[str, Any] | None:
    """What `TrainingArguments.deepspeed` gets: the JSON of the chosen stage, None without ZeRO."""
    if not wanted(config):
        return None
    found = json.loads((PRESETS / f"{config.parallel.deepspeed}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def confirm(optimizer: object) -> None:
    """Raise EngineError unless the optimizer of the first step is DeepSpeed's."""
    from studio.engine.failure import EngineError

    if type(optimizer).__name__ != "DeepSpeedOptimizerWrapper":
        message = "parallel.deepspeed: the trainer did not take DeepSpeed up."
        hint = "Set it to none; the training is the same in one process."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.deepspeed"))
