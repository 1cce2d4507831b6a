"""The closed set of typed messages an engine may write, and the states a run can be in.

Every event is one line of JSON in `events.jsonl`; NaN and infinity are written as null. Readers skip types they do
not know, so a newer engine can be watched by an older studio.
"""

from __future__ import annotations

import math
import time
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator


class RunState(StrEnum):
    """What a run is doing; `lost` is computed by readers, never written."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"

    @property
    def live(self) -> bool:
        """True while a child process is (or is about to be) at work."""
        return self in (RunState.STARTING, RunState.RUNNING, RunState.STOPPING)

    @property
    def resumable(self) -> bool:
        """True when the run ended before its last step."""
        return self in (RunState.STOPPED, RunState.FAILED, RunState.LOST)


class ExitCode(IntEnum):
    """Exit codes of the engine and of the command line."""

    FINISHED = 0
    INTERNAL = 1
    STOPPED = 3
    BAD_INPUT = 4
    OUT_OF_MEMORY = 5


ErrorKind = Literal["config", "model", "data", "memory", "disk", "internal"]
PhaseName = Literal[
    "load", "tokenise", "train", "save", "verdict", "merge", "proof", "convert", "export", "upload", "answer"
]


LOST, RANK = "lost", "rank"
"""Keys of a `RunError`'s details: that its process only missed another one; which process of several is to blame."""


class RunError(BaseModel):
    """Why a run failed, for a person: kind, one sentence, what to do, and the field to blame if there is one.

    `details` are facts for programs, by kind; those of a lack of memory: `studio.shortage.Shortage`.
    """

    kind: ErrorKind
    message: str
    hint: str = ""
    field: str = ""
    details: dict[str, Any] = {}

    @property
    def lost(self) -> bool:
        """Whether a process says only that another one is gone or does not answer."""
        return bool(self.details.get(LOST))

    @property
    def rank(self) -> int | None:
        """Which process of several is to blame; None when none is known, or all of them have the same input."""
        told = self.details.get(RANK)
        return told if isinstance(told, int) else None


class Event(BaseModel):
    """Base of all events: `t` unix seconds, `step` optimizer updates done so far."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="null")

    type: str
    t: float = Field(default_factory=time.time)
    step: int = 0

    @model_validator(mode="before")
    @classmethod
    def nan_is_null(cls, data: Any) -> Any:
        """Numbers that JSON cannot hold become None."""
        if not isinstance(data, dict):
            return data
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


class StartedEvent(Event):
    """The engine is at work. `resumed_from`: step of the checkpoint it continues from, None for a fresh start."""

    type: Literal["started"] = "started"
    max_steps: int = 0
    resumed_from: int | None = None


class PhaseEvent(Event):
    """A new phase begins."""

    type: Literal["phase"] = "phase"
    name: PhaseName
    detail: str = ""


class ProgressEvent(Event):
    """How far a phase without steps is: `done` of `total` things called `label`."""

    type: Literal["progress"] = "progress"
    done: int
    total: int
    label: str = ""


class CountsEvent(Event):
    """What became of the data, from rows to optimizer updates; the numbers of `studio.records.counts.Counts`."""

    type: Literal["counts"] = "counts"
    rows_read: int
    rows_skipped: int = 0
    conversations: int
    tokens: int
    trained_tokens: int
    truncated: int = 0
    packs: int
    updates: int
    distinct: int = 0
    padding: float = 0.0
    validation: int = 0
    self_replay: int = 0
    packed: bool = False
    skipped: list[str] = []


class LogEvent(Event):
    """One point of the curves. `tokens_per_second` counts all tokens; `memory_bytes` is GPU or process memory;
    `gpu_utilization`, `mfu` (share of the card's peak arithmetic) and `padding` are shares from 0 to 1."""

    type: Literal["log"] = "log"
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    memory_bytes: int | None = None
    eta_seconds: float | None = None
    gpu_utilization: float | None = None
    gpu_power_watts: float | None = None
    mfu: float | None = None
    padding: float | None = None


class RankPoint(BaseModel):
    """What one process reached since the last point: bytes, its own tokens per second, seconds of a step, and how many
    of them it waited for the others."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="null")

    rank: int
    host: str = ""
    memory_bytes: int | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    waited_seconds: float | None = None


class RanksEvent(Event):
    """The processes of a run beside each other, as often as a `LogEvent`; only where there are several."""

    type: Literal["ranks"] = "ranks"
    ranks: list[RankPoint]


class EvalEvent(Event):
    """Loss on held-back conversations."""

    type: Literal["eval"] = "eval"
    eval_loss: float | None = None


class SampleEvent(Event):
    """The answer to evaluation input number `index`, a text or messages, at this step."""

    type: Literal["sample"] = "sample"
    index: int
    prompt: str | list[dict[str, str]]
    answer: str
    reason: Literal["start", "freq", "save", "end"]


class VerdictEvent(Event):
    """A check of some of the verdict's questions during the training: shares from 0 to 1, None for what is not asked.

    `perplexity` is that of the validation rows.
    """

    type: Literal["verdict"] = "verdict"
    learned: float | None = None
    leaked: float | None = None
    retained: float | None = None
    perplexity: float | None = None


class SavedEvent(Event):
    """Something was written completely; `path` is relative to the run directory (an export: its folder)."""

    type: Literal["saved"] = "saved"
    path: str
    what: Literal["checkpoint", "adapter", "model", "merged", "export", "answers"]


class WarningEvent(Event):
    """Something a person should know that does not stop the run."""

    type: Literal["warning"] = "warning"
    message: str
    field: str = ""


class FinishedEvent(Event):
    """Last line of a run."""

    type: Literal["finished"] = "finished"
    state: RunState
    exit_code: int


AnyEvent = (
    StartedEvent
    | PhaseEvent
    | ProgressEvent
    | CountsEvent
    | LogEvent
    | RanksEvent
    | EvalEvent
    | SampleEvent
    | VerdictEvent
    | SavedEvent
    | WarningEvent
    | FinishedEvent
)
_ADAPTER: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="type")])


def parse_event(line: bytes | str) -> AnyEvent | None:
    """One line of `events.jsonl` -> event, or None for a torn, foreign or unknown line."""
    try:
        return _ADAPTER.validate_json(line)
    except (ValidationError, ValueError):
        return None


class Status(BaseModel):
    """`status.json`: the latest state in one small file. `updated_at` unix seconds; `attempt`: that of launch.json."""

    model_config = ConfigDict(extra="ignore")

    state: RunState
    phase: PhaseName | None = None
    step: int = 0
    max_steps: int = 0
    updated_at: float = Field(default_factory=time.time)
    exit_code: int | None = None
    error: RunError | None = None
    attempt: int | None = None


class RankStatus(BaseModel):
    """`ranks/rankN.json`: what one process of a run with several is doing; that process writes it about once a second.

    `batch`: batches begun since the start; `moves` grows with everything it does, `meetings` each time it met others;
    `busy` names what it is in the middle of (`step`, `samples`, `save`, …)
    and is None while it waits for the others. `error`: why it failed.
    """

    model_config = ConfigDict(extra="ignore")

    rank: int
    local_rank: int = 0
    world_size: int = 1
    machine: int = 0
    host: str = ""
    pid: int = 0
    attempt: int | None = None
    state: RunState = RunState.RUNNING
    phase: PhaseName | None = None
    step: int = 0
    batch: int = 0
    busy: str | None = None
    moves: int = 0
    meetings: int = 0
    memory_bytes: int | None = None
    tokens_per_second: float | None = None
    updated_at: float = Field(default_factory=time.time)
    exit_code: int | None = None
    error: RunError | None = None


class Launch(BaseModel):
    """`launch.json`: the process that works on the run (`studio.processes.record`), and which start of it this is."""

    model_config = ConfigDict(extra="ignore")

    argv: list[str]
    pid: int
    create_time: float
    host: str
    start_ticks: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    started_at: float = Field(default_factory=time.time)
    attempt: int = 1
    versions: dict[str, str] = {}
    git_commit: str | None = None
    gpus: list[int] = []
    gpu_count: int = 1
    machine: dict[str, Any] = {}
