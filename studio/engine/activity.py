"""What the engine is busy with inside a phase, so that a failure can say it: a step, samples, the validation loss.

An error remembers the innermost activity it left. The engine is one process with one run, so there is one stack.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from studio.memory_room import mapped, resident

Name = Literal["load", "step", "samples", "evaluation", "verdict", "save"]
_MARK = "studio_activity"


@dataclass
class Activity:
    """One of them; `shape` is the batch it computes: rows, length (tokens of a row).

    `resident_bytes` (in main memory), `mapped_bytes` (of address space), `gpu_bytes`: what the process held when it
    began. `short`: the lack of memory that was raised inside.
    """

    name: Name
    shape: dict[str, int] = field(default_factory=dict)
    resident_bytes: int = field(default_factory=resident)
    mapped_bytes: int = field(default_factory=mapped)
    gpu_bytes: int = field(default_factory=lambda: gpu_allocated())
    short: MemoryError | None = None


_stack: list[Activity] = []
_begun: Counter[Name] = Counter()


def gpu_allocated() -> int:
    """Bytes this process holds on the GPU; 0 without one, or where it does not answer any more."""
    torch: Any = sys.modules.get("torch")
    try:
        return int(torch.cuda.memory_allocated()) if torch.cuda.is_initialized() else 0
    except Exception:  # a device after a fault answers anything with an error
        return 0


@contextlib.contextmanager
def during(name: Name, **shape: int) -> Iterator[None]:
    """Inside, the engine is busy with `name`; an error that leaves is marked with it, unless an inner one did.

    A library may catch a lack of memory and raise what it makes of it (transformers: weights that cannot be converted);
    then the lack of memory leaves instead.
    """
    activity = Activity(name, shape)
    _stack.append(activity)
    _begun[name] += 1
    try:
        yield
    except BaseException as error:
        if not hasattr(error, _MARK):
            setattr(error, _MARK, activity)
        if activity.short is not None and isinstance(error, Exception) and not _tells_of_memory(error):
            setattr(activity.short, _MARK, activity)
            raise activity.short from error
        raise
    finally:
        _stack.pop()


def _tells_of_memory(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def batch(**shape: int) -> None:
    """The batch the current activity computes now."""
    if _stack:
        _stack[-1].shape = shape


def current() -> Activity | None:
    """The innermost activity, or None; also asked by other threads."""
    return _stack[-1] if _stack else None


def begun() -> Counter[Name]:
    """How many of each were begun since the process started; also asked by other threads."""
    return _begun


def activity_of(error: BaseException) -> Activity | None:
    """The activity an error came from, or None."""
    found = getattr(error, _MARK, None)
    return found if isinstance(found, Activity) else None
