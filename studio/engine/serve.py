"""The chat server: `python -m studio.engine serve --base REF [--adapter NAME=PATH …] --port N`.

It answers /health at once and loads the model in a thread. With --exit-with-stdin it ends when its standard input
does, so that it never outlives the studio that started it, however that one ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import psutil
import uvicorn

from studio.engine.chat_api import LOOPBACK, ApiError, Service, build_app
from studio.engine.dialogue import BASE, Backend, Options
from studio.engine.failure import explain
from studio.engine.quick_import import quickly
from studio.events import ExitCode, RunError
from studio.presets import ROOT
from studio.rundir import write_atomic

FAILURE_LINGER_S = 5.0  # a failed server stays to tell why, until it was asked or so long
FAILURE_TOLD_S = 1.0
MOST_IDLE_MINUTES = 100_000


@dataclass
class ChatService(Service):
    """How far the server is: loading, ready or failed."""

    options: Options
    state: Literal["loading", "ready", "failed"] = "loading"
    phase: str = "libraries"
    error: RunError | None = None
    exit_code: ExitCode = ExitCode.FINISHED
    talker: Backend | None = None
    port: int = 0
    told: threading.Event = field(default_factory=threading.Event)

    def health(self) -> dict[str, object]:
        """The body of /health and of the status file."""
        if self.state == "failed":
            self.told.set()
        return self.report()

    def report(self) -> dict[str, object]:
        """State, phase, models, error and facts."""
        names = list(self.talker.models) if self.talker else [BASE, *self.options.adapters]
        return {
            "state": self.state,
            "phase": self.phase,
            "base": self.options.base,
            "models": names,
            "port": self.port,
            "memory_bytes": psutil.Process().memory_info().rss,
            "error": self.error.model_dump() if self.error else None,
            **(self.talker.describe() if self.talker else {}),
        }

    def backend(self) -> Backend:
        """What answers. Raises ApiError 503 until it is ready."""
        if self.state == "failed" and self.error:
            raise ApiError(503, f"the model could not be loaded: {self.error.message}", "load_failed")
        if self.talker is None:
            raise ApiError(503, f"the model is still loading ({self.phase}); try again in a moment", "loading")
        return self.talker

    def enter(self, phase: str) -> None:
        """The next phase of loading."""
        self.phase = phase
        self._write()

    def ready(self, talker: Backend) -> None:
        """The model can be asked."""
        self.talker, self.state, self.phase = talker, "ready", "ready"
        self._write()

    def fail(self, error: RunError, code: ExitCode) -> None:
        """Loading has failed for good."""
        self.error, self.exit_code, self.state = error, code, "failed"
        print(f"error: {error.message} {error.hint}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        self._write()

    def _write(self) -> None:
        if self.options.status is None:
            return
        with contextlib.suppress(OSError):  # a status nobody can read must not stop the chat
            write_atomic(self.options.status, json.dumps(self.report(), indent=1))


def main(argv: list[str]) -> int:
    """Serve until told to stop; never returns, as threads of the libraries may still be at work."""
    try:
        options, with_stdin = parse(argv)
    except SystemExit as leaving:
        return int(ExitCode.BAD_INPUT if leaving.code else ExitCode.FINISHED)
    try:
        listener = _listen(options.host, options.port)
    except OSError as error:
        sentence = f"error: --port: {options.host}:{options.port} cannot be used ({error.strerror}); choose another"
        print(sentence, file=sys.stderr)  # noqa: T201 - this is a command
        return int(ExitCode.BAD_INPUT)
    if with_stdin:
        threading.Thread(target=_leave_with_stdin, name="stdin", daemon=True).start()
    _leave(_serve(options, listener))


def parse(argv: list[str]) -> tuple[Options, bool]:
    """The command line. Exits with a sentence when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m studio.engine serve", description=__doc__)
    parser.add_argument("--base", required=True, help="base model: built-in name, folder or hub id")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH", help="may be given again")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free one (see --status)")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16, 32), default=16, help="bits per weight of the base")
    parser.add_argument("--workspace", type=Path, default=ROOT / "workspace", help="where converted models are kept")
    parser.add_argument("--status", type=Path, help="file that says how far loading is")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input ends")
    parser.add_argument("--idle-minutes", type=float, default=0.0, help="let go of the weights then (0: never)")
    parser.add_argument(
        "--with-system", action="store_true", help="conversations without a system prompt get that of their model's run"
    )
    parser.add_argument("--base-system", metavar="TEXT", help="the system prompt a merged base was trained with")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable with the key clients must send")
    given = parser.parse_args(argv)
    if not 0 <= given.port < 65536:
        parser.error("--port must be between 0 and 65535")
    key = os.environ.get(given.api_key_env, "") if given.api_key_env else None
    if key == "":
        parser.error(f"--api-key-env: the environment variable {given.api_key_env} is not set")
    if not 0 <= given.idle_minutes <= MOST_IDLE_MINUTES:
        parser.error(f"--idle-minutes must be between 0 and {MOST_IDLE_MINUTES}")
    options = Options(
        base=given.base,
        adapters=_adapters(parser, given.adapter),
        host=given.host,
        port=given.port,
        bits=given.bits,
        status=given.status,
        api_key=key,
        workspace=given.workspace,
        idle_minutes=given.idle_minutes,
        with_system=given.with_system,
        base_system=given.base_system,
    )
    return options, given.exit_with_stdin


def _adapters(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            parser.error(f"--adapter {item}: write NAME=PATH, like tuned=runs/…/adapter")
        if name == BASE or name in found:
            parser.error(f"--adapter {item}: the name {name} is taken; choose another")
        found[name] = path
    return found


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """uvicorn that stops on a signal and then returns instead of raising the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Both signals ask for the end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        yield

    def _stop(self, *_: object) -> None:
        self.should_exit = True


def _serve(options: Options, listener: socket.socket) -> ExitCode:
    service = ChatService(options, port=listener.getsockname()[1])
    if options.host not in LOOPBACK and not options.api_key:
        print("warning: anybody on this network can chat here; protect it with --api-key-env", file=sys.stderr)  # noqa: T201
    app = build_app(service, host=options.host, api_key=options.api_key)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1, ws="none"
    )
    server = _Server(config)
    threading.Thread(target=_load, args=(service, server), name="loader", daemon=True).start()
    server.run(sockets=[listener])
    return service.exit_code


def _load(service: ChatService, server: _Server) -> None:
    try:
        service.enter("libraries")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it advises to install what nothing needs
        with quickly():
            from studio.engine import backend  # seconds to import

        service.ready(backend.open_backend(service.options, service.enter))
    except BaseException as problem:
        traceback.print_exc()
        service.fail(*_explained(problem))
        service.told.wait(FAILURE_LINGER_S)
        time.sleep(FAILURE_TOLD_S)
        server.should_exit = True


def _explained(problem: BaseException) -> tuple[RunError, ExitCode]:
    error, code = explain(problem)
    if code is ExitCode.OUT_OF_MEMORY and error.field != "bits":
        error = RunError(
            kind="memory",
            message="bits: the model needs more memory than there is.",
            hint="Load it in fewer bits, choose a smaller model, or close other programs.",
            field="bits",
        )
    return error, code


def _leave_with_stdin() -> None:
    """Wait for the end of standard input, then end at once, whatever the other threads are doing."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _leave(ExitCode.FINISHED)


def _leave(code: ExitCode) -> NoReturn:
    """End the process now: a thread inside torch would make a tidy exit hang or crash."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(code))
