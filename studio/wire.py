"""Messages between the machines of a run: one line of JSON at a time over TCP, of bounded size, never a pickle.

A stranger who knows the port can say what they like: nothing they send is ever executed, and whoever does not begin
with what `studio.engine.machines` expects is shown the door.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import threading
import time
from typing import Any

LONGEST_LINE = 256 * 1024
PROTOCOL = 2
CALL_S = 3.0
SEND_S = 10.0
PAUSE_S = 0.5
_WRONG_ADDRESS = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EADDRNOTAVAIL)


class Garbled(ConnectionError):
    """What came over the line is no message of ours."""


class Line:
    """One connection to another machine; messages are mappings. One thread receives, any may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._left = b""
        self._sending = threading.Lock()
        connection.settimeout(SEND_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. Raises OSError when the other side is gone or does not take it."""
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None when none came in time. Raises OSError at the end of the line and for garbage."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._left:
            if len(self._left) > LONGEST_LINE:
                raise Garbled("a line too long")
            if not self._something_comes(max(0.0, deadline - time.monotonic())):
                return None
            part = self._socket.recv(65536)
            if not part:
                raise ConnectionResetError("the other side hung up")
            self._left += part
        line, _, self._left = self._left.partition(b"\n")
        return _message(line)

    def _something_comes(self, timeout: float) -> bool:
        try:
            return bool(select.select([self._socket], [], [], timeout)[0])
        except ValueError:  # closed by another thread
            raise ConnectionResetError("the line is closed") from None

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise Garbled("no JSON") from None
    if not isinstance(found, dict):
        raise Garbled("no message")
    return found


def call(address: str, port: int, timeout: float = CALL_S) -> Line:
    """A line to machine 0. Raises OSError (`why_not` says it in words)."""
    try:
        return Line(socket.create_connection((address, port), timeout=timeout))
    except UnicodeError:  # no name a machine can have
        raise socket.gaierror(socket.EAI_NONAME, "no such name") from None


def why_not(problem: OSError, address: str, port: int) -> str:
    """Why machine 0 cannot be reached, as a clause."""
    if isinstance(problem, socket.gaierror):
        return f"there is no machine called {address}"
    if isinstance(problem, ConnectionRefusedError):
        return f"nobody answers at {address}:{port}"
    if isinstance(problem, TimeoutError):
        return f"{address} does not answer"
    return f"{address}:{port} cannot be reached ({problem.strerror or problem})"


def is_wrong_address(problem: OSError) -> bool:
    """True if waiting will hardly help: no such name, no way there, or nothing at all comes back."""
    return isinstance(problem, socket.gaierror | TimeoutError) or problem.errno in _WRONG_ADDRESS


def decline(address: str, port: int, message: dict[str, Any], patience: float = 15.0) -> bool:
    """Tell machine 0 that this machine cannot take part; False when nobody there listened in time."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            line = call(address, port)
        except OSError as problem:
            if is_wrong_address(problem):
                return False
            time.sleep(PAUSE_S)
            continue
        with contextlib.closing(line), contextlib.suppress(OSError):
            line.send(message)
            line.receive(CALL_S)  # so that it has been read before this side hangs up
        return True
    return False
