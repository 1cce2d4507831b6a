"""Starts, resumes and stops engine processes, and starts the chat server.

A started run belongs to nobody: the child gets its own session and writes to files, so it outlives the tab, the
browser, the studio and the SSH line. Everything this module knows about a run it reads back from the run directory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import Timeout

from studio import hardware
from studio.events import Launch, RunState
from studio.presets import ROOT
from studio.rundir import RunDir, Workspace

VERSIONED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
ENGINE = (sys.executable, "-m", "studio.engine")
STOP_GRACE_S = 30.0
TERM_GRACE_S = 30.0


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


def start(run: RunDir) -> None:
    """Start the engine on a queued run. Raises StartRefused (also when another run is live)."""
    _launch(run, resume=False)


def resume(run: RunDir) -> None:
    """Continue a stopped, failed or lost run from its last complete checkpoint. Raises StartRefused."""
    _launch(run, resume=True)


def _launch(run: RunDir, *, resume: bool) -> None:
    workspace = Workspace(run.path.parent.parent)
    try:
        with workspace.lock():
            _check_may_start(run, workspace, resume=resume)
            _spawn(run, resume=resume)
    except Timeout:
        raise StartRefused("another studio is starting a run in this workspace; try again in a moment") from None


def _check_may_start(run: RunDir, workspace: Workspace, *, resume: bool) -> None:
    state = run.state()
    if resume and not state.resumable:
        raise StartRefused(f"run {run.id} is {state}; only a stopped, failed or lost run can be resumed", run.id)
    if not resume and state is not RunState.QUEUED:
        raise StartRefused(f"run {run.id} has been started already (it is {state})", run.id)
    live = live_run(workspace)
    if live:
        raise StartRefused(f"run {live.id} is {live.state()}; stop it or wait until it has finished", live.id)


def _spawn(run: RunDir, *, resume: bool) -> None:
    kind = run.config().kind
    argv = [*ENGINE, kind, str(run.path)] + (["--resume"] if resume else [])
    before = run.read_launch()
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
    try:
        run.write_launch(_describe(child, argv, attempt=before.attempt + 1 if before else 1))
    except OSError as error:  # a run nobody can find again must not go on
        os.killpg(child.pid, signal.SIGKILL)
        raise StartRefused(f"the run directory cannot be written ({error.strerror}); free some disk space") from None


def _describe(child: subprocess.Popen[bytes], argv: list[str], attempt: int) -> Launch:
    try:
        create_time = psutil.Process(child.pid).create_time()
    except psutil.Error:  # gone already: any time that no later process can have
        create_time = 0.0
    return Launch(
        argv=argv,
        pid=child.pid,
        create_time=create_time,
        host=socket.gethostname(),
        attempt=attempt,
        versions=_versions(),
        git_commit=_git_commit(),
    )


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Collect the child's exit status when it ends, so that it never stays a zombie of a long-lived studio."""
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()


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
    """`preferred` if it can be bound, else the next free port after it (0: any free port)."""
    for port in range(preferred, preferred + 100) if preferred else (0,):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartRefused(f"no port from {preferred} to {preferred + 99} is free on {host}; choose another with --port")


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
    folder = workspace.path / "chat"
    folder.mkdir(exist_ok=True)
    log_file = folder / f"server-{port}.log"
    argv = [*ENGINE, "serve", "--base", base, "--port", str(port), "--bits", str(bits)]
    for name, path in adapters.items():
        argv += ["--adapter", f"{name}={path}"]
    try:
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
