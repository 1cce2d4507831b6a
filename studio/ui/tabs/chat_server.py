"""The chat servers of this studio: a child process per base model, started on demand, shared by all pages."""

import threading
from dataclasses import dataclass, field

from studio import chat_server
from studio.best_step import best_weights
from studio.config import RunConfig
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.workspace import Workspace

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Side:
    """Where one of the two models answers: a server and the model's name there."""

    server: chat_server.ChatServer
    model: str


@dataclass
class Loaded:
    """The servers of one run. An adapter shares its base model's server; a fully trained model needs its own."""

    run_id: str
    sides: dict[str, Side]

    def servers(self) -> list[chat_server.ChatServer]:
        """Each server once."""
        return list({id(side.server): side.server for side in self.sides.values()}.values())

    def health(self) -> dict[str, object]:
        """The worst of the servers' states: failed, released, dead, loading, ready."""
        found = [server.health() for server in self.servers()]
        order = ("failed", "released", "dead", "loading", "ready")
        known = [answer if answer.get("state") in order else answer | {"state": "loading"} for answer in found]
        return min(known, key=lambda answer: order.index(str(answer["state"])))


def chattable(run: RunDir) -> bool:
    """True when a run has left something to talk to."""
    return (run.adapter / "adapter_config.json").is_file() or (run.model / "config.json").is_file()


def run_config(run: RunDir) -> RunConfig | None:
    """The configuration of a training run; None for a merge or an unreadable one."""
    try:
        config = run.config()
    except ConfigError:
        return None
    return config if isinstance(config, RunConfig) else None


def finished_runs(workspace: Workspace) -> list[RunDir]:
    """The training runs with a result, newest first."""
    return [run for run in workspace.list_runs() if chattable(run) and run_config(run)]


@dataclass
class Servers:
    """Starts, hands out and ends chat servers; only one run is loaded at a time."""

    workspace: Workspace
    _loaded: Loaded | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def current(self, run_id: str) -> Loaded | None:
        """The loaded servers if they are those of this run, alive or not."""
        loaded = self._loaded
        return loaded if loaded and loaded.run_id == run_id else None

    def ensure(self, run: RunDir, config: RunConfig) -> Loaded:
        """The servers of a run, started if need be; what another run had loaded is ended. Raises StartRefused."""
        with self._lock:
            loaded = self.current(run.id)
            alive = loaded and all(server.alive for server in loaded.servers())
            if loaded and alive and loaded.health()["state"] not in ("failed", "released"):
                return loaded
            self._stop()
            self._loaded = Loaded(run.id, self._start(run, config))
            return self._loaded

    def _start(self, run: RunDir, config: RunConfig) -> dict[str, Side]:
        base = config.model.model_name_or_path
        if config.method != "full":
            both = chat_server.start_chat_server(self.workspace, base, {TUNED: str(best_weights(run, whole=False))})
            return {BASE: Side(both, BASE), TUNED: Side(both, TUNED)}
        before = chat_server.start_chat_server(self.workspace, base, {})
        after = chat_server.start_chat_server(self.workspace, str(best_weights(run, whole=True)), {})
        return {BASE: Side(before, BASE), TUNED: Side(after, BASE)}

    def _stop(self) -> None:
        if self._loaded:
            for server in self._loaded.servers():
                server.stop()
            self._loaded = None
