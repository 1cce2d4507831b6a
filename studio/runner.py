"""Starts, resumes and stops engine processes, and starts the chat server.

A started run belongs to nobody: the child gets its own session and writes to files, so it outlives the tab, the
browser, the studio and the SSH line. Everything this module knows about a run it reads back from the run directory.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import Timeout

from studio import hardware
from studio.config import AnyConfig, RunConfig
from studio.events import Launch, RunState
from studio.presets import ROOT
from studio.rundir import RunDir, write_atomic
from studio.schema import dump_yaml
from studio.workspace import Workspace

VERSIONED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
ENGINE = (sys.executable, "-m", "studio.engine")
# A stop is obeyed at the end of a step: a long step, a round of samples or a large checkpoint on a slow machine is
# waited for, since killing it would lose what the stop was to save.
STOP_GRACE_S = 60.0
TERM_GRACE_S = 600.0


class StartRefused(RuntimeError):
    """A run is not started; the message says why. `blocking` is the run in the way, if there is one."""

    def __init__(self, message: str, blocking: str = "") -> None:
        super().__init__(message)
        self.blocking = blocking


def engine_environment() -> dict[str, str]:
    """The environment of an engine: offline libraries stay quiet, threads fit this machine, output is unbuffered."""
    env = dict(os.environ)
    threads = str(hardware.recommended_threads())
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false"}
    env.setdefault("OMP_NUM_THREADS", threads)
    # Spinning OpenMP barriers slow a shared CPU down by an order of magnitude.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    env |= {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}  # never import what lies in the working directory
    return env


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def live_run(workspace: Workspace) -> RunDir | None:
    """The newest run of the workspace an engine is working on, or None."""
    return next((run for run in workspace.list_runs() if run.state().live), None)


def create_and_start(workspace: Workspace, config: AnyConfig) -> RunDir:
    """A new run, at work. Nothing is left behind when it is refused.

    Raises:
        StartRefused: another run is live, or the engine cannot be started.
        WorkspaceError: the run directory cannot be written.
    """
    with _starting(workspace):
        run = workspace.create_run(config)
        try:
            _spawn(run, resume=False)
        except StartRefused:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
    return run


def start(run: RunDir) -> None:
    """Start the engine on a queued run. Raises StartRefused (also when another run is live)."""
    state = run.state()
    if state is not RunState.QUEUED:
        raise StartRefused(f"run {run.id} has been started already (it is {state})", run.id)
    with _starting(Workspace(run.path.parent.parent)):
        _spawn(run, resume=False)


def resume(run: RunDir) -> None:
    """Continue a stopped, failed or lost run from its last complete checkpoint. Raises StartRefused."""
    state = run.state()
    if not state.resumable:
        raise StartRefused(f"run {run.id} is {state}; only a stopped, failed or lost run can be resumed", run.id)
    with _starting(Workspace(run.path.parent.parent)):
        _spawn(run, resume=True)


@contextlib.contextmanager
def _starting(workspace: Workspace) -> Iterator[None]:
    """Inside, this process is the only one that starts a run in the workspace, and no run is live."""
    try:
        lock = workspace.lock().acquire()
    except Timeout:
        raise StartRefused("another studio is starting a run in this workspace; try again in a moment") from None
    except OSError as error:
        raise StartRefused(f"the workspace cannot be written ({error.strerror}); free some disk space") from None
    with lock:
        live = live_run(workspace)
        if live:
            raise StartRefused(f"run {live.id} is {live.state()}; stop it or wait until it has finished", live.id)
        yield


def _spawn(run: RunDir, *, resume: bool) -> None:
    kind = run.config().kind
    argv = [*ENGINE, kind, str(run.path)] + (["--resume"] if resume else [])
    before = run.read_launch()
    # Everything slow is found out first: between the child's birth and its record a killed studio would lose it.
    launch = Launch(
        argv=argv,
        pid=0,
        create_time=0.0,  # stays so for a child that is gone at once: a time no later process can have
        host=socket.gethostname(),
        attempt=before.attempt + 1 if before else 1,
        versions=_versions(),
        git_commit=_git_commit(),
    )
    with contextlib.suppress(FileNotFoundError):
        run.stop_file.unlink()
    try:
        with run.log_file.open("ab") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=engine_environment(),
                cwd=run.path,
            )
    except OSError as error:
        raise StartRefused(f"the engine cannot be started ({error.strerror or error})") from None
    _reap(child)
    with contextlib.suppress(psutil.Error):
        launch.create_time = psutil.Process(child.pid).create_time()
    launch.pid = child.pid
    try:
        run.write_launch(launch)
    except OSError as error:  # a run nobody can find again must not go on
        os.killpg(child.pid, signal.SIGKILL)
        raise StartRefused(f"the run directory cannot be written ({error.strerror}); free some disk space") from None


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Collect the child's exit status when it ends, so that it never stays a zombie of a long-lived studio."""
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()


def start_counting(workspace: Workspace, config: RunConfig) -> subprocess.Popen[bytes]:
    """Have a large dataset tokenised by a process of its own, which is returned; `estimate.plan` finds the result.

    What it says goes to `counting_log`; SIGINT ends it and leaves nothing behind. Harmless to call twice: the second
    process waits for the first and finds its work done. Raises StartRefused.
    """
    file = workspace.path / "cache" / "counting.yaml"
    argv = [sys.executable, "-m", "studio.cli", "data", "preview", str(file), "--batches", "0", "--json"]
    try:
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, dump_yaml(config, full=True))
        with counting_log(workspace).open("wb") as log:
            child = subprocess.Popen(
                [*argv, "--workspace", str(workspace.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env=engine_environment(),
            )
    except OSError as error:
        raise StartRefused(f"the dataset cannot be counted ({error.strerror or error})") from None
    _reap(child)
    return child


def counting_log(workspace: Workspace) -> Path:
    """What the last counting process said; its last line is the reason when it failed."""
    return workspace.path / "cache" / "counting.log"


def stop(run: RunDir, *, stop_grace: float = STOP_GRACE_S, term_grace: float = TERM_GRACE_S) -> RunState:
    """Ask a run to save and stop, and wait until it has.

    After `stop_grace` seconds its process group gets SIGTERM, after `term_grace` more SIGKILL. Returns the end state.
    A run that is not live is left as it is.
    """
    if not run.state().live:
        return run.state()
    run.request_stop()
    for seconds, signal_number in ((stop_grace, signal.SIGTERM), (term_grace, signal.SIGKILL)):
        if _wait_until_gone(run, seconds):
            return run.state()
        _signal_group(run, signal_number)
    _wait_until_gone(run, 5.0)
    return run.state()


def stop_in_background(run: RunDir) -> None:
    """Like `stop`, without waiting: for a page that follows the run's directory anyway."""
    run.request_stop()
    threading.Thread(target=stop, args=(run,), name=f"stop-{run.id}", daemon=True).start()


def _wait_until_gone(run: RunDir, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not run.alive():
            return True
        time.sleep(0.1)
    return not run.alive()


def _signal_group(run: RunDir, number: int) -> None:
    launch = run.read_launch()
    if launch and launch.host == socket.gethostname() and run.alive():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(launch.pid, number)


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
        """What the server says of itself: {"state": "loading" | "ready" | "failed" | "dead", …}. Never raises."""
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


def start_chat_server(workspace: Workspace, base: str, adapters: dict[str, str], bits: int = 16) -> ChatServer:
    """Start `studio.engine serve` on a free loopback port. Returns at once; ask `health()` when it is ready.

    `base` is a base-model reference, `adapters` maps a model name ("tuned") to an adapter folder. Raises StartRefused.
    """
    port = free_port()
    log_file = workspace.path / "chat" / f"server-{port}.log"
    argv = [*ENGINE, "serve", "--base", base, "--port", str(port), "--bits", str(bits)]
    argv += ["--workspace", str(workspace.path)]
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
                env=engine_environment(),
            )
    except OSError as error:
        raise StartRefused(f"the chat server cannot be started ({error.strerror or error})") from None
    return ChatServer(base, dict(adapters), port, process, log_file, time.time())
