"""What a configuration will train on, asked again and again by forms; a large dataset is counted by another process."""

import hashlib
import json
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

from studio import runner
from studio.config import RunConfig
from studio.estimate import Plan
from studio.estimate import plan as plan_of
from studio.records import DataError
from studio.records.sources import NotCounted
from studio.workspace import Workspace

# A question must come twice, so far apart, before a process is started: every letter typed is another configuration.
SETTLED_S = 0.8
# A process nobody has asked about for so long makes place for another one.
FORGOTTEN_S = 5.0
# A failure stands for so long; then a question starts another try.
RETRY_S = 20.0


@dataclass(frozen=True)
class Waiting:
    """A large dataset is being counted: `done` of `total` bytes or rows; zeros while that is not known."""

    done: int = 0
    total: int = 0


class CountingFailed(DataError):
    """The counting process ended with an error; the message is what it said."""


@dataclass
class _Job:
    """The process at work, what it counts, and when somebody last asked."""

    key: str
    process: subprocess.Popen[bytes]
    asked: float


@dataclass
class Counting:
    """Plans of configurations over one workspace; at most one process counts for it at a time."""

    workspace: Workspace
    _job: _Job | None = None
    _asked: dict[str, tuple[float, float]] = field(default_factory=dict)
    _failed: tuple[str, float, str] = ("", 0.0, "")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, config: RunConfig) -> Plan | Waiting | None:
        """As `estimate.plan`, but a large dataset is counted by a process of its own meanwhile.

        Raises DataError, CountingFailed, ModelError, OSError or StartRefused.
        """
        try:
            return plan_of(config, self.workspace)
        except NotCounted as state:
            with self._lock:
                self._see_to(config)
            return Waiting(state.done, state.total)

    def _see_to(self, config: RunConfig) -> None:
        """Start the process, leave it at work, or say why it ended."""
        key, now = _key(config), time.monotonic()
        settled = self._since(key, now) >= SETTLED_S
        self._collect(now)
        if self._failed[0] == key and now - self._failed[1] < RETRY_S:
            raise CountingFailed(self._failed[2])
        if self._job is None:
            if settled:
                self._job = _Job(key, runner.start_counting(self.workspace, config), now)
        elif self._job.key == key:
            self._job.asked = now
        elif now - self._job.asked > FORGOTTEN_S:
            self._job.process.send_signal(signal.SIGINT)

    def _since(self, key: str, now: float) -> float:
        """For how many seconds this has been asked again and again."""
        self._asked = {k: times for k, times in self._asked.items() if now - times[1] < FORGOTTEN_S}
        first, _ = self._asked.get(key, (now, now))
        self._asked[key] = (first, now)
        return now - first

    def _collect(self, now: float) -> None:
        """Remember why the process ended, if it has; one that we interrupted has not failed."""
        if self._job is None or self._job.process.poll() is None:
            return
        if self._job.process.returncode not in (0, 130, -signal.SIGINT):
            self._failed = (self._job.key, now, _reason(self.workspace))
        self._job = None


def _key(config: RunConfig) -> str:
    """The same for configurations that need the same token tables (see `records.sources.Recipe.key`)."""
    data = config.data
    sources = [[s.dataset, s.subset, s.split, s.mapping, s.system, s.max_samples] for s in data.all_sources]
    parts = [config.model.model_name_or_path, config.model.chat_template, sources, data.strict, data.validation_dataset]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _reason(workspace: Workspace) -> str:
    try:
        lines = runner.counting_log(workspace).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.removeprefix("error: ").strip() for line in lines if line.startswith("error: ")]
    return said[-1] if said else "The dataset could not be counted. Start the training: its log says why."
