"""What the processes of a run tell each other: a value of each to all, and that one of them failed.

Alone, a process hears only itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from studio.durable import write_atomic
from studio.engine import ranks
from studio.engine.failure import EngineError, explain
from studio.events import RANK, ExitCode, RunError

ValueT = TypeVar("ValueT")


def of_all(value: ValueT) -> list[ValueT]:
    """What each process says, in their order. Every process must ask at the same moment."""
    if ranks.world() == 1:
        return [value]
    import torch.distributed

    said: list[Any] = [None] * ranks.world()
    with ranks.meeting():
        torch.distributed.all_gather_object(said, value)
    return said


def of_first(value: ValueT) -> ValueT:
    """What the first process says. Every process must ask at the same moment."""
    if ranks.world() == 1:
        return value
    import torch.distributed

    said: list[Any] = [value]
    with ranks.meeting():
        torch.distributed.broadcast_object_list(said, src=0)
    return said[0]  # type: ignore[no-any-return]


def same_file(path: Path) -> None:
    """A file of the run as the first process has it, also on machines with a disk of their own; or none, as there.

    Every process must ask at the same moment.
    """
    if ranks.world() == 1:
        return
    told = of_first(path.read_bytes() if ranks.is_first() and path.is_file() else None)
    if ranks.is_first() or told == (path.read_bytes() if path.is_file() else None):
        return
    if told is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, told.decode("utf-8"))


def carrier() -> str:
    """Where a tensor must lie to be sent: in main memory, but where only NCCL is there, on the GPU."""
    import torch.distributed

    return "cpu" if "gloo" in str(torch.distributed.get_backend_config()) else "cuda"


def agree(failure: Exception | None) -> None:
    """Go on only if no process failed: the failure of one is raised in all of them, in its own words.

    Every process must ask at the same moment, one that failed with its error. Raises that error, or an EngineError
    that names the process.
    """
    if ranks.world() == 1:
        if failure:
            raise failure
        return
    told = None
    if failure:
        known, code = explain(failure)
        told = known.model_dump(), int(code)
    said = of_all(told)
    if failure:
        raise failure
    rank, first = next(((rank, one) for rank, one in enumerate(said) if one), (0, None))
    if first:
        known = RunError.model_validate(first[0])
        field, _, rest = known.message.partition(": ")
        who = f"rocess {rank} of {len(said)}"
        message = f"{field}: p{who}: {rest}" if known.field == field else f"P{who}: {known.message}"
        details = known.details | {RANK: rank}
        raise EngineError(known.model_copy(update={"message": message, "details": details}), ExitCode(first[1]))


def attempt(work: Callable[[], object]) -> Exception | None:
    """Do the part of the work that no other process waits for; its failure is returned, to be told by `agree`."""
    try:
        work()
    except Exception as error:
        return error
    return None
