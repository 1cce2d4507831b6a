"""Which process of the run this is, and the few things all of them do together; alone, none of it costs anything.

Rank 0 tells the world (events, status, samples, results); the others compute and keep a `RankStatus`. torch's elastic
agent (`studio.engine.launch`) starts the ranks and tells each by its environment which one it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from studio.deepspeed_settings import zero_of

if TYPE_CHECKING:
    from studio.config import RunConfig

_waiting = [0]


def rank() -> int:
    """This process among all of the run; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """How many processes this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def machine() -> int:
    """The machine of this process among those of the run."""
    return int(os.environ.get("GROUP_RANK", "0"))


def world() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process tells the world; true where there is only one."""
    return rank() == 0


def is_first_here() -> bool:
    """Whether this is the first process of its machine, which prepares what the others find ready."""
    return local_rank() == 0


def divided(config: RunConfig) -> bool:
    """Whether each process holds only a part of the weights: then all of them must compute together, also answers."""
    return world() > 1 and (zero_of(config).stage == 3 or config.parallel.fsdp != "none")


def answers(config: RunConfig) -> bool:
    """Whether this process asks the model questions: the first does, and the others where the weights are divided."""
    return is_first() or divided(config)


def waiting() -> bool:
    """Whether this process waits for the others in one of the functions below; also asked by other threads."""
    return _waiting[0] > 0


def meetings() -> int:
    """How many messages to the others this process has begun, in all groups; also asked by other threads."""
    torch: Any = sys.modules.get("torch")
    try:
        groups = list(torch.distributed.distributed_c10d._world.pg_map) if torch.distributed.is_initialized() else []
        return sum(int(group._get_sequence_number_for_group()) for group in groups)
    except Exception:  # while torch is imported, or the group is left
        return 0


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """What is done inside waits for the others; the status of this process says so (`waiting`)."""
    _waiting[0] += 1
    try:
        yield
    finally:
        _waiting[0] -= 1


def join(timeout_s: int) -> None:
    """Make the processes of the run a group: gloo carries what lies in main memory, NCCL what lies on GPUs.

    `timeout_s`: so long a meeting waits for a process that does not come before it fails (`parallel.ddp_timeout`).
    """
    if world() == 1:
        return
    import torch
    import torch.distributed

    settings: dict[str, Any] = {"backend": "gloo"}
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
        settings = {"backend": "cuda:nccl,cpu:gloo", "device_id": device}
    torch.distributed.init_process_group(timeout=timedelta(seconds=timeout_s), **settings)


def leave() -> None:
    """Leave the group; one that is left standing can abort the process after everything is done."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def any_of(flag: bool) -> bool:
    """Whether `flag` is true in any process; every process must ask at the same moment."""
    return bool(maximum([float(flag)])[0])


def maximum(values: list[float]) -> list[float]:
    """The largest of each number over all processes; every process must ask at the same moment with as many."""
    if world() == 1:
        return values
    import torch
    import torch.distributed

    told = torch.tensor(values, dtype=torch.float64)
    with meeting():
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return told.tolist()


def from_first(values: list[float]) -> list[float]:
    """The numbers of the first process, for all; every process must ask at the same moment with as many."""
    if world() == 1:
        return values
    import torch
    import torch.distributed

    told = torch.tensor(values, dtype=torch.float64)
    with meeting():
        torch.distributed.broadcast(told, 0)
    return told.tolist()


def of_all(values: list[float]) -> list[list[float]]:
    """The numbers of every process, in their order; every process must ask at the same moment with as many."""
    if world() == 1:
        return [values]
    import torch
    import torch.distributed

    own = torch.tensor(values, dtype=torch.float64)
    told = [torch.empty_like(own) for _ in range(world())]
    with meeting():
        torch.distributed.all_gather(told, own)
    return [one.tolist() for one in told]
