"""Where the processes of a run on one machine find each other: a store of torch's that only this machine reaches.

torch's own ways to meet listen at every address of the machine, ask nobody who they are, and one of them unpickles
what lies in the store.
"""

from __future__ import annotations

import errno
import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from studio.engine.failure import EngineError
from studio.events import RunError

NAME = "crucible"
HERE = "127.0.0.1"
PORT = "parallel.main_process_port"


class Rendezvous(RendezvousHandler):
    """What torch's agent asks: there is one agent, so nobody is waited for. `port`: 0 for any free one."""

    def __init__(self, port: int, run_id: str, timeout_s: int) -> None:
        self.port, self.run_id, self.timeout_s = port, run_id, timeout_s

    @property
    def use_agent_store(self) -> bool:
        """The ranks use the same store."""
        return True

    def get_backend(self) -> str:
        """The name it is registered by."""
        return NAME

    def get_run_id(self) -> str:
        """The name of this start of the run."""
        return self.run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """The store, which listens from here on. Raises EngineError: the port is in use, or may not be used."""
        try:
            server = socket.create_server((HERE, self.port))
        except OSError as problem:
            raise _refused(problem, self.port) from None
        port = int(server.getsockname()[1])
        store = TCPStore(
            HERE,
            port,
            is_master=True,
            timeout=timedelta(seconds=self.timeout_s),
            wait_for_workers=False,
            master_listen_fd=server.detach(),
        )
        return RendezvousInfo(PrefixStore(self.run_id, store), 0, 1, RendezvousStoreInfo(HERE, port))

    def is_closed(self) -> bool:
        """It is never closed: ranks are not started again."""
        return False

    def set_closed(self) -> None:
        """Nothing."""

    def num_nodes_waiting(self) -> int:
        """Nobody waits."""
        return 0

    def shutdown(self) -> bool:
        """The store goes with the agent."""
        return True


def _refused(problem: OSError, port: int) -> EngineError:
    message, hint = f"{PORT}: port {port} may not be used.", "Choose one above 1023, the same on all machines."
    if problem.errno == errno.EADDRINUSE:
        message = f"{PORT}: port {port} is in use on this machine; another program or run has it."
        hint = "Choose another port, the same on all machines."
    return EngineError(RunError(kind="config", message=message, hint=hint, field=PORT))


def _make(parameters: RendezvousParameters) -> RendezvousHandler:
    port = int(parameters.endpoint.rpartition(":")[2])
    return Rendezvous(port, parameters.run_id, int(parameters.config["timeout"]))


def register() -> None:
    """Let torch's agent find it by its name."""
    rendezvous_handler_registry.register(NAME, _make)
