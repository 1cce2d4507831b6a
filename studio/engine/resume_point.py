"""Which checkpoint all processes of a run go on from, and that every machine has what it needs of it."""

from __future__ import annotations

import re
from pathlib import Path

from studio.checkpoints import OPTIMIZER, divided_by, divides_weights, step_of
from studio.config import RunConfig
from studio.deepspeed_settings import zero_of
from studio.engine import ranks, transport
from studio.engine.failure import EngineError
from studio.engine.optimizer_file import read_facts
from studio.engine.together import agree, attempt, of_first
from studio.events import RunError
from studio.rundir import RunDir

_SHARD = re.compile(r"zero_pp_rank_(\d+)_")
_WEIGHTS = re.compile(
    r"(adapter_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?|model\.safetensors\.index\.json"
)


def meet(run: RunDir, checkpoint: Path | None, config: RunConfig) -> Path | None:
    """The first process's checkpoint, for all; other machines have fetched what their processes read of it.

    All processes must call it together. Raises EngineError: it cannot be divided among so many.
    """
    step = of_first(step_of(checkpoint) if checkpoint else None)
    if step is None:
        return None
    folder = run.checkpoints / f"checkpoint-{step}"
    agree(attempt(lambda: _check(folder, config)) if ranks.is_first() else None)
    if ranks.world() > 1:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        here = not transport.apart(run.checkpoints)
        section = config.parallel
        whole = section.deepspeed == "none" and section.deepspeed_config is None and section.fsdp == "none"
        transport.fetch(folder, here=here, wanted=lambda name: _is_read(name, whole=whole))
    return folder


def _is_read(name: str, *, whole: bool) -> bool:
    """Whether processes of this machine read a file; what the first one hands out to all they do not.

    `whole`: each process loads all weights.
    """
    shard = _SHARD.search(name)
    if shard:
        first = ranks.rank() - ranks.local_rank()
        return first <= int(shard[1]) < first + ranks.local_world()
    return name != OPTIMIZER and (whole or not _WEIGHTS.fullmatch(name))


def _check(folder: Path, config: RunConfig) -> None:
    """Refuse DeepSpeed's own files, one for each process, for another number of them, another stage, or none."""
    count = 0 if read_facts(folder) else divided_by(folder)
    if not count:
        return
    stage, divides = zero_of(config).stage, divides_weights(folder)
    if not stage or (stage == 3) != divides:
        message = f"parallel.deepspeed: what the optimizer keeps lies in {folder.name} as DeepSpeed wrote it for "
        message += f"{'stage 3' if divides else 'stages 1 and 2'}, and nothing else can read it."
        hint = f"Set it to {'zero3' if divides else 'zero2'}, or clone the run."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.deepspeed"))
    if count != ranks.world():
        message = (
            f"parallel.num_processes: {folder.name} is divided among {count} processes, and what the optimizer "
            f"{config.train.optim} keeps cannot be divided anew; this start has {ranks.world()}."
        )
        hint = f"Set it to {count}, or clone the run."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.num_processes"))
