"""Starts chat servers: `studio.engine serve` children that hold one base model and any number of adapters."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from studio import processes, runner
from studio.chat_memory import ChatHolder, forget_ended, read_record, record_file, write_record
from studio.run_queue import StartRefused
from studio.workspace import Workspace


def free_port(preferred: int = 0, host: str = "127.0.0.1") -> int:
    """`preferred` if it can be bound, else the next free port after it (0: any free port). Raises StartRefused."""
    if not 0 <= preferred <= 65535:
        raise StartRefused(f"port {preferred} does not exist; choose one from 1024 to 65535 with --port")
    last = min(preferred + 99, 65535)
    for port in range(preferred, last + 1) if preferred else (0,):
        found = _bindable(host, port)
        if found:
            return found
    raise StartRefused(f"no port from {preferred} to {last} is free on {host}; choose another with --port")


def _bindable(host: str, port: int) -> int | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return None
            raise StartRefused(f"nothing can listen on {host} ({error.strerror}); choose another with --host") from None
        return int(probe.getsockname()[1])


@dataclass
class ChatServer:
    """A running `studio.engine serve` child. It ends by itself when this process does (its stdin closes)."""

    base: str
    adapters: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] = field(repr=False)
    log_file: Path
    record_file: Path
    started_at: float

    @property
    def base_url(self) -> str:
        """Address of the OpenAI protocol."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def alive(self) -> bool:
        """True while the child runs."""
        return self.process.poll() is None

    def health(self) -> dict[str, object]:
        """What the server says of itself: {"state": "loading" | "ready" | "failed" | "dead" | "released", …}.

        "released": it was ended for the run of that id, which needed the memory. Never raises.
        """
        # Written before the process is ended, which may still be ending when somebody asks.
        record = read_record(self.record_file)
        if record and record.pid == self.process.pid and record.released_for:
            return {"state": "released", "run": record.released_for.strip("-")}
        if not self.alive:
            return {"state": "dead", "exit_code": self.process.returncode}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                data = json.loads(answer.read())
                return data if isinstance(data, dict) else {"state": "loading"}
        except urllib.error.HTTPError as error:
            try:
                return dict(json.loads(error.read()))
            except ValueError:
                return {"state": "loading"}
        except (OSError, ValueError):
            return {"state": "loading", "phase": "process"}

    def stop(self) -> None:
        """End the child: close its stdin, then kill what is left after two seconds."""
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            self.record_file.unlink(missing_ok=True)


def start_chat_server(
    workspace: Workspace, base: str, adapters: dict[str, str], bits: int = 16, *, idle_minutes: float = 0.0
) -> ChatServer:
    """Start `studio.engine serve` on a free loopback port. Returns at once; ask `health()` when it is ready.

    `base` is a base-model reference, `adapters` maps a model name ("tuned") to an adapter folder; after
    `idle_minutes` without a question the weights are let go until the next one (0: never). Raises StartRefused.
    """
    port = free_port()
    log_file = workspace.path / "chat" / f"server-{port}.log"
    argv = [*runner.ENGINE, "serve", "--base", base, "--port", str(port), "--bits", str(bits)]
    argv += ["--workspace", str(workspace.path), "--idle-minutes", str(idle_minutes)]
    for name, path in adapters.items():
        argv += ["--adapter", f"{name}={path}"]
    try:
        log_file.parent.mkdir(exist_ok=True)
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*argv, "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=runner.engine_environment(),
            )
    except OSError as error:
        raise StartRefused(f"the chat server cannot be started ({error.strerror or error})") from None
    record = ChatHolder(**processes.record(process.pid), port=port, base=base)
    with contextlib.suppress(OSError):  # unrecorded, it only cannot be asked to make room
        forget_ended(workspace)
        write_record(workspace, record)
    file = record_file(workspace, port)
    return ChatServer(base, dict(adapters), port, process, log_file, file, record.started_at)
