"""Which process of the run this is, and the few things all of them do together; alone, none of it costs anything.

Rank 0 tells the world (events, status, samples, results); the others compute and keep a `RankStatus`.
"""

from __future__ import annotations

import os


def rank() -> int:
    """This process among all of the run; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process tells the world; true where there is only one."""
    return rank() == 0


def any_of(flag: bool) -> bool:
    """Whether `flag` is true in any process; every process must ask at the same moment."""
    if world() == 1:
        return flag
    import torch
    import torch.distributed

    told = torch.tensor([int(flag)], device=_device())
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item())


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        import torch.distributed

        torch.distributed.barrier()


def _device() -> str:
    """Where a message to the others must lie: NCCL only carries what is on a GPU."""
    import torch.distributed

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
