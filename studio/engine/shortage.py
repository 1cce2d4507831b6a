"""A lack of memory told to a person and to programs: where it happened, what was asked for, what there was.

Imports nothing heavy. The facts go into `RunError.details` under the names of `studio.shortage.Shortage`.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from studio.engine.activity import Activity, activity_of, gpu_allocated
from studio.events import PhaseName, RunError
from studio.memory_room import Bound, Room, mapped, resident, tightest

_TEXT = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|cannot allocate memory|unable to allocate|not enough "
    r"memory|std::bad_alloc|bad allocation|failed to map segment|os error 12\b|paging file is too small|"
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = (
    re.compile(r"tried to allocate (?P<n>[\d.]+) ?(?P<unit>bytes|[KMGT]i?B)", re.IGNORECASE),
    re.compile(r"unable to mmap (?P<n>\d+) (?P<unit>bytes)"),
    re.compile(r"unable to allocate (?P<n>[\d.]+) ?(?P<unit>bytes|[KMGT]i?B)", re.IGNORECASE),
)
_ALLOWED = re.compile(r"(?P<n>[\d.]+) ?(?P<unit>[KMGT]i?B) allowed;")
"""A process may be held to a part of the card."""
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class MemoryShort(MemoryError):
    """Noticed before the system had to kill the process: `room` is the bound that was nearly reached.

    `used` is what the run held at that moment, by the same measure: by the time it is told, much of it was given back.
    """

    def __init__(self, room: Room, used: int | None = None) -> None:
        super().__init__(f"only {room.free >> 20} MB of memory were left")
        self.room = room
        self.used = _USED[room.bound]() if used is None else used


@dataclass(frozen=True)
class Place:
    """Where in a run: its phase, optimizer updates done, and what the engine was busy with."""

    phase: PhaseName | None = None
    step: int = 0
    activity: Activity | None = None


NOWHERE = Place()
"""Outside a run."""


def is_memory(error: BaseException) -> bool:
    """True for a lack of memory, whoever says it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    known = isinstance(error, RuntimeError | ImportError | OSError) or type(error).__name__ == "SafetensorError"
    return known and bool(_TEXT.search(str(error)))


def out_of_memory(chain: Iterable[BaseException], place: Place) -> RunError:
    """What to tell about errors of which one is a lack of memory."""
    errors = list(chain)
    activity = next((found for error in errors if (found := activity_of(error))), place.activity)
    texts = " ".join(str(error) for error in errors)
    gpu = "CUDA" in texts or "CUBLAS" in texts or "CUDNN" in texts
    noticed = next((error for error in errors if isinstance(error, MemoryShort)), None)
    room = (_gpu_room(texts) if gpu else None) or (noticed.room if noticed else tightest())
    bound: Bound = "gpu" if gpu else room.bound
    details: dict[str, Any] = {
        "phase": place.phase,
        "activity": activity.name if activity else _usual_activity(place.phase),
        "step": place.step,
        "device": "cuda" if gpu else "cpu",
        "bound": bound,
        "requested_bytes": _asked_for(texts),
        "available_bytes": room.free,
        "limit_bytes": room.limit,
        "used_bytes": noticed.used if noticed and bound == noticed.room.bound else _USED[bound](),
        "held_bytes": getattr(activity, _HELD[bound]) if activity else None,
        "noticed": noticed is not None,
        **(activity.shape if activity else {}),
    }
    return _told(details)


def _usual_activity(phase: PhaseName | None) -> str | None:
    """What a phase mostly does, where nothing says it more exactly."""
    return "step" if phase == "train" else phase


def _asked_for(texts: str) -> int | None:
    return next((found for pattern in _ASKED if (found := _size_in(pattern, texts))), None)


def _size_in(pattern: re.Pattern[str], texts: str) -> int | None:
    """Bytes that a message names, or None."""
    found = pattern.search(texts)
    return round(float(found["n"]) * _UNITS[found["unit"][0].lower()]) if found else None


def _gpu_room(texts: str) -> Room | None:
    """What the GPU, or the part of it that is allowed, has left; None where it does not answer any more."""
    torch: Any = sys.modules.get("torch")
    try:
        free, total = torch.cuda.mem_get_info()
        # What this process holds and does not use is free for its next request of that size.
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        room = Room("gpu", int(total), int(free + idle))
    except Exception:  # a device after a fault answers anything with an error
        return None
    allowed = _size_in(_ALLOWED, texts)
    return Room("gpu", allowed, max(0, min(room.free, allowed - gpu_allocated()))) if allowed else room


_USED: dict[Bound, Callable[[], int]] = {
    "gpu": gpu_allocated,
    "address_space": mapped,
    "control_group": resident,
    "machine": resident,
}
_HELD: dict[Bound, str] = {
    "gpu": "gpu_bytes",
    "address_space": "mapped_bytes",
    "control_group": "resident_bytes",
    "machine": "resident_bytes",
}
_BATCH = "train.per_device_train_batch_size"
_WHAT = {
    "load": ("model.model_name_or_path", "loading the model"),
    "tokenise": ("data.dataset", "preparing the data"),
    "step": (_BATCH, "training step {next}"),
    "samples": ("samples.evaluation_inputs", "answering the evaluation inputs at step {step}"),
    "evaluation": (_BATCH, "the loss on the validation rows at step {step}"),
    "verdict": ("verdict.enabled", "answering the questions of the verdict"),
    "save": ("train.save_steps", "saving at step {step}"),
}
_HINTS = {
    "load": "Choose qlora or a smaller model, or close other programs.",
    "tokenise": "Close other programs, or use a smaller dataset.",
    "samples": "Ask fewer or shorter answers, or none; then resume the run.",
    "verdict": "Turn the verdict off, or close other programs; then resume the run.",
    "save": "Close other programs, then resume the run.",
}
_USUAL_HINT = (
    "Halve the batch size (and double gradient accumulation), shorten the maximum length, turn on gradient "
    "checkpointing, or choose qlora."
)


def _told(details: dict[str, Any]) -> RunError:
    sized = "length" in details
    activity = str(details["activity"])
    field, what = _WHAT.get(activity, (_BATCH, "the training"))
    if activity == "step" and not sized:
        what = "the training"  # between two batches, or before the first
    what = what.format(step=details["step"], next=details["step"] + 1)
    memory = "GPU memory" if details["device"] == "cuda" else "memory"
    if sized:
        rows = details["rows"]
        what += f" ({rows} {'row' if rows == 1 else 'rows'} of {details['length']} tokens)"
    asked, free, limit = details["requested_bytes"], details["available_bytes"], details["limit_bytes"]
    wanted = f"{_size(asked)} more were asked for, and " if asked else ""
    left = f"{wanted}{_size(free)} of {_size(limit)} were left"
    if asked and free >= asked:  # by now; or not in one piece
        left = f"{_size(asked)} more were not to be had of {_size(limit)}"
    message = f"{field}: {what} needs more {memory} than there is: {left}."
    return RunError(
        kind="memory", message=message, hint=_HINTS.get(activity, _USUAL_HINT), field=field, details=details
    )


def _size(amount: int) -> str:
    return f"{amount / 2**30:.1f} GB" if amount >= 2**30 else f"{amount / 2**20:.0f} MB"
