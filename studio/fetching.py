"""Starts and stops the processes that fetch datasets and models from a hub; like a run, a fetch outlives the page."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import psutil

from studio.events import Launch, RunState
from studio.fetchdir import FetchDir, FetchJob, FetchStatus, new_fetch
from studio.records.errors import DataError
from studio.rundir import is_alive
from studio.runner import ENGINE, engine_environment
from studio.workspace import Workspace

STOP_GRACE_S = 3.0
TERM_GRACE_S = 5.0
_POLL_S = 0.1


def start_fetch(workspace: Workspace, job: FetchJob) -> FetchDir:
    """A new fetch, at work. Raises DataError when it cannot be started; then nothing is left behind."""
    try:
        fetch = new_fetch(workspace, job)
    except OSError as error:
        raise _refused(error) from None
    try:
        _spawn(fetch)
    except OSError as error:
        shutil.rmtree(fetch.path, ignore_errors=True)
        raise _refused(error) from None
    return fetch


def stop_fetch(fetch: FetchDir, *, stop_grace: float = STOP_GRACE_S, term_grace: float = TERM_GRACE_S) -> FetchStatus:
    """Asks a fetch to stop and waits until it has: by its stop file, then SIGTERM, then SIGKILL."""
    launch = fetch.launch()
    if launch is None or not is_alive(launch):
        return fetch.status()
    fetch.request_stop()
    for seconds, number in ((stop_grace, signal.SIGTERM), (term_grace, signal.SIGKILL)):
        if _gone(launch, seconds):
            return fetch.status()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(launch.pid, number)
    _gone(launch, term_grace)
    status = fetch.status()
    if status.state is RunState.LOST:  # killed before it could say so itself
        status.state = RunState.STOPPED
        fetch.write_status(status)
    return status


def _spawn(fetch: FetchDir) -> None:
    argv = [*ENGINE, "fetch", str(fetch.path)]
    with fetch.log_file.open("ab") as log:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=engine_environment(),
            cwd=fetch.path,  # a hub id is looked for as a folder first: here there is none
        )
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
    launch = Launch(argv=argv, pid=child.pid, create_time=0.0, host=socket.gethostname())
    with contextlib.suppress(psutil.Error):
        launch.create_time = psutil.Process(child.pid).create_time()
    try:
        fetch.write_launch(launch)
    except OSError:  # a process nobody can find again must not go on
        os.killpg(child.pid, signal.SIGKILL)
        raise


def _gone(launch: Launch, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_alive(launch):
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_S)
    return True


def _refused(error: OSError) -> DataError:
    return DataError(f"The fetch cannot be started: {error.strerror or error}. Free some disk space.", "workspace")
