"""A lack of memory that ended a run: what the engine told of it, or what its last words were."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.events import RunState
from studio.memory_room import Bound
from studio.rundir import RunDir

Activity = Literal[
    "load", "tokenise", "step", "samples", "evaluation", "verdict", "save", "merge", "proof", "convert", "export",
    "upload", "answer",
]  # fmt: skip
LOG_TAIL = 16 * 1024
_LAST_WORDS = re.compile(
    r"std::bad_alloc|memory allocation of (?P<bytes>\d+) bytes failed|cannot allocate memory|out of memory|"
    r"libgomp: Thread creation failed",
    re.IGNORECASE,
)


class Shortage(BaseModel):
    """`RunError.details` of a lack of memory. Bytes; `step`: optimizer updates done; rows and length of the batch.

    `used_bytes` is what the run itself held, `held_bytes` what it had held before the step (or whatever it was).
    `noticed`: the engine ended before the system did it. `sharers`: processes of the run that take from this memory.
    `bound`: who set the limit. Of an address space, all sizes are of what was mapped, which is far more than what is
    really used.
    """

    model_config = ConfigDict(extra="ignore")

    phase: str | None = None
    activity: Activity | None = None
    step: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    bound: Bound = "machine"
    requested_bytes: int | None = None
    available_bytes: int = 0
    limit_bytes: int = 0
    used_bytes: int = 0
    held_bytes: int | None = None
    noticed: bool = False
    sharers: int = 1
    rows: int | None = None
    length: int | None = None

    @property
    def shared(self) -> bool:
        """Whether it would be more for each if fewer processes of the run took from it."""
        return self.sharers > 1 and self.device == "cpu" and self.bound in ("control_group", "machine")

    @property
    def usable_bytes(self) -> int:
        """What the run could have had: what it held and what was left, unless that was too little to go on with."""
        return self.used_bytes + (0 if self.noticed else self.available_bytes // self.sharers)

    @property
    def needed_bytes(self) -> int:
        """What it wanted at least."""
        return max(self.used_bytes + (self.requested_bytes or 0), self.usable_bytes)

    @property
    def others_bytes(self) -> int:
        """What other programs hold of the same memory; 0 where the limit is the run's own."""
        return max(0, self.limit_bytes - self.used_bytes - self.available_bytes)


def shortage_of(run: RunDir) -> Shortage | None:
    """The lack of memory that ended the run, or None: as the engine told it, or in its last words before it died."""
    status, state = run.read_status(), run.state()
    if status is None:
        return None
    if state is RunState.FAILED and status.error is not None and status.error.kind == "memory":
        try:
            return Shortage.model_validate(status.error.details)
        except ValidationError:
            return Shortage(phase=status.phase, step=status.step)
    found = _LAST_WORDS.search(_tail(run)) if state is RunState.LOST else None
    if found is None:
        return None
    asked = int(found["bytes"]) if found["bytes"] else None
    activity = "step" if status.phase == "train" else status.phase
    return Shortage(phase=status.phase, activity=activity, step=status.step, requested_bytes=asked)


def _tail(run: RunDir) -> str:
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, run.log_file.stat().st_size - LOG_TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
