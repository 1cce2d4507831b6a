"""DeepSpeed's ZeRO beneath the trainer: which settings it gets, and that it is really at work.

Several of DeepSpeed's ways to fail are silent (the trainer then runs without it), so the training checks (`confirm`).
Nothing here compiles: the C++ operators DeepSpeed would build at the first start are not needed for the training.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from studio.deepspeed_settings import AUTO, completed, loading_part, read_own, zero_of
from studio.engine import ranks
from studio.engine.failure import EngineError
from studio.events import RunError
from studio.presets import ROOT
from studio.schema import ConfigError, FieldError

if TYPE_CHECKING:
    from studio.config import RunConfig
    from studio.rundir import RunDir

PRESETS = ROOT / "presets" / "deepspeed"
_alive: list[object] = []  # transformers looks DeepSpeed's settings up by a weak reference


def wanted(config: RunConfig) -> bool:
    """Whether the run trains with DeepSpeed."""
    return config.parallel.deepspeed != "none" or config.parallel.deepspeed_config is not None


def divides_weights(config: RunConfig) -> bool:
    """Whether each process holds only a part of the parameters."""
    return zero_of(config).stage == 3


def prepare_process() -> None:
    """Let this process find its group; alone, it is a group of one. Call it before anything imports deepspeed."""
    import torch

    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update(group | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
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


def settings(config: RunConfig, run: RunDir) -> dict[str, Any] | None:
    """What `TrainingArguments.deepspeed` gets: the chosen stage's JSON or the run's own, None without DeepSpeed.

    Raises ConfigError, field parallel.deepspeed_config: the run's copy cannot be read.
    """
    if not wanted(config):
        return None
    if config.parallel.deepspeed_config is None:
        found = json.loads((PRESETS / f"{config.parallel.deepspeed}.json").read_text(encoding="utf-8"))
        assert isinstance(found, dict)
        return found
    try:
        own = completed(read_own(run.deepspeed_file))
        _check(own["zero_optimization"])
    except ValueError as error:
        raise ConfigError([FieldError("parallel.deepspeed_config", str(error))]) from None
    return own


def _check(section: dict[str, Any]) -> None:
    """Raise ValueError, a sentence, for values of the stage's settings that DeepSpeed would stumble over later."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**{name: value for name, value in section.items() if value != AUTO})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = f"zero_optimization.{name} in the file cannot be used ({first['msg'][:120]})"
        raise ValueError(f"{reason}; correct it, or leave it out") from None


class Place(Protocol):
    """Where weights are computed and in which numbers; a `Precision` of `studio.engine.model` is one."""

    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102


def join(config: RunConfig, run: RunDir, precision: Place) -> None:
    """Meet the other processes, and have parameters divided as they are loaded where the stage asks for it.

    Call it before the model is loaded: a layer is then never whole in more than one moment.
    """
    found = settings(config, run)
    if found is None:
        return
    import deepspeed
    import torch
    import torch.distributed

    backend = "nccl" if precision.device == "cuda" else "gloo"
    waits = timedelta(seconds=config.parallel.ddp_timeout)
    if ranks.world() == 1 and not torch.distributed.is_initialized():  # alone, nobody needs a port to reach it
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=waits, verbose=False)
    if divides_weights(config):
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(precision.dtype)
        make: Any = HfDeepSpeedConfig
        _alive[:] = [make(loading_part(found, kind))]


def confirm(optimizer: object, engine: Any, stage: int) -> None:
    """Raise EngineError unless DeepSpeed's engine steps the weights at `stage`, among all processes of the run."""
    import torch.distributed

    found, among = None, 0
    if type(optimizer).__name__ == "DeepSpeedOptimizerWrapper" and type(engine).__name__ == "DeepSpeedEngine":
        found, among = int(engine.zero_optimization_stage()), torch.distributed.get_world_size()
    if (found, among) == (stage, ranks.world()):
        return
    took = "did not take DeepSpeed up" if found is None else f"runs stage {found} in {among} processes"
    message = f"parallel.deepspeed: the trainer {took}; asked for was stage {stage} in {ranks.world()}."
    hint = "Set it to none; then every process holds everything."
    raise EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.deepspeed"))
