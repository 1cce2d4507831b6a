"""The chat servers of this studio: a child process per base model, started on demand, shared by all pages."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from studio import chat_server
from studio.model_choices import ModelChoice
from studio.ui.sentences import translated
from studio.workspace import Workspace, slug

BASE = "base"
IDLE_MINUTES = 30.0  # a room nobody talks in gives its memory back; the next question loads the weights again
"""The model name under which a server answers without an adapter."""
Pair = Mapping[str, ModelChoice]
"""Who answers on which side."""


@dataclass(frozen=True)
class Seat:
    """Where one of the sides is answered: a server and the model's name there."""

    server: chat_server.ChatServer
    model: str


@dataclass
class Loaded:
    """The servers of one pair. Adapters share the server of their base model."""

    key: tuple[object, ...]
    sides: dict[str, Seat]
    bits: int

    def servers(self) -> list[chat_server.ChatServer]:
        """Each server once."""
        return list({id(seat.server): seat.server for seat in self.sides.values()}.values())

    @property
    def alive(self) -> bool:
        """True while every server's process runs."""
        return all(server.alive for server in self.servers())

    def health(self) -> dict[str, object]:
        """The worst of the servers' states: failed, released, dead, loading, ready."""
        found = [server.health() for server in self.servers()]
        order = ("failed", "released", "dead", "loading", "ready")
        known = [answer if answer.get("state") in order else answer | {"state": "loading"} for answer in found]
        return min(known, key=lambda answer: order.index(str(answer["state"])))


def reason_of(health: Mapping[str, object]) -> str:
    """Why nothing answers and what to do, in the visitor's language; "" when there is nothing to say."""
    error = health.get("error")
    told = (error.get("message"), error.get("hint")) if isinstance(error, Mapping) else (error,)
    sentences = [translated(str(text)) for text in told if text]
    return "".join(sentences) if sentences and sentences[0].endswith("。") else " ".join(sentences)


def adapter_name(choice: ModelChoice) -> str:
    """What a server calls an adapter; the same folder always has the same name, so a server can be kept."""
    if choice.adapter is None:
        return BASE
    place = slug(choice.key.rpartition("/")[2])  # "=" ends a name on the command line, "-" begins an option
    return f"{place}-{hashlib.sha256(str(choice.adapter).encode()).hexdigest()[:6]}"


def pair_key(pair: Pair, bits: int) -> tuple[object, ...]:
    """What has to be equal for two pairs to be the same."""
    return (bits, *((side, choice.base, str(choice.adapter or "")) for side, choice in sorted(pair.items())))


@dataclass
class Servers:
    """Starts, hands out and ends chat servers; only one pair is loaded at a time."""

    workspace: Workspace
    _loaded: Loaded | None = None
    _running: list[tuple[int, chat_server.ChatServer]] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def idle(self) -> bool:
        """True while no pair is loaded, so that loading one takes nothing from another page."""
        return self._loaded is None

    def current(self, key: tuple[object, ...]) -> Loaded | None:
        """The loaded servers if they are those of this pair, alive or not."""
        loaded = self._loaded
        return loaded if loaded and loaded.key == key else None

    def ensure(self, pair: Pair, bits: int) -> Loaded:
        """The servers of a pair, started if need be; what it does not use is ended. Raises StartRefused."""
        with self._lock:
            key = pair_key(pair, bits)
            loaded = self.current(key)
            if loaded and loaded.alive and loaded.health()["state"] not in ("failed", "released"):
                return loaded
            self._loaded = None
            wanted: dict[str, dict[str, str]] = {}
            for choice in pair.values():
                adapters = wanted.setdefault(choice.base, {})
                if choice.adapter is not None:
                    adapters[adapter_name(choice)] = str(choice.adapter)
            self._end_all_but(wanted, bits)
            places = {base: self._server(base, adapters, bits) for base, adapters in wanted.items()}
            sides = {side: Seat(places[choice.base], adapter_name(choice)) for side, choice in pair.items()}
            self._loaded = Loaded(key, sides, bits)
            return self._loaded

    def _end_all_but(self, wanted: Mapping[str, Mapping[str, str]], bits: int) -> None:
        """Keep the servers that already hold what is wanted. The others end first: they have the memory."""
        kept = []
        for held, server in self._running:
            fits = held == bits and server.base in wanted and wanted[server.base].items() <= server.adapters.items()
            if fits and server.alive and server.health().get("state") not in ("failed", "released"):
                kept.append((held, server))
            else:
                server.stop()
        self._running = kept

    def _server(self, base: str, adapters: dict[str, str], bits: int) -> chat_server.ChatServer:
        for _, server in self._running:
            if server.base == base:
                return server
        started = chat_server.start_chat_server(self.workspace, base, adapters, bits, idle_minutes=IDLE_MINUTES)
        self._running.append((bits, started))
        return started

    def stop(self) -> None:
        """End every server."""
        for _, server in self._running:
            server.stop()
        self._running, self._loaded = [], None
