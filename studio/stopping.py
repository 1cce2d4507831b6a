"""Stops runs: asks first, then ends the run's own process group, and no other process whatever its number.

Whoever waits for a run to stop keeps the stop file fresh, so that a studio that finds an old one takes the stop over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

from studio import processes, run_queue
from studio.at_work import live_runs
from studio.events import Launch, RunState
from studio.rundir import RunDir, is_alive
from studio.workspace import Workspace

# A stop is obeyed at the end of a step: a long step, a round of samples or a large checkpoint on a slow machine is
# waited for, since killing it would lose what the stop was to save.
STOP_GRACE_S = 60.0
TERM_GRACE_S = 600.0
KILL_GRACE_S = 5.0
FRESH_S = 5.0
ABANDONED_S = 30.0


def stop(run: RunDir, *, stop_grace: float = STOP_GRACE_S, term_grace: float = TERM_GRACE_S) -> RunState:
    """Ask a run to save and stop, and wait until it has.

    After `stop_grace` seconds its process group gets SIGTERM, after `term_grace` more SIGKILL. Returns the end state.
    A run that is not live is left as it is.
    """
    launch = run.read_launch()
    if launch is None or not run.state().live:
        return run.state()
    run.request_stop()
    for seconds, number in ((stop_grace, signal.SIGTERM), (term_grace, signal.SIGKILL)):
        if _wait_until_gone(run, launch, seconds):
            break
        signal_group(launch, number)
    if _wait_until_gone(run, launch, KILL_GRACE_S):
        _end_remains(run)
    return run.state()


def stop_in_background(run: RunDir) -> None:
    """Like `stop`, without waiting: for a page that follows the run's directory anyway."""
    run.request_stop()
    threading.Thread(target=stop, args=(run,), name=f"stop-{run.id}", daemon=True).start()


def take_over_stops(workspace: Workspace) -> list[RunDir]:
    """Go on with stops that nobody waits for any more: whoever asked was killed. Returns their runs."""
    found = [run for run in live_runs(workspace) if _age(run) > ABANDONED_S]
    for run in found:
        stop_in_background(run)
    return found


def _age(run: RunDir) -> float:
    """Seconds since somebody last waited for the run to stop; 0 when no stop was asked for."""
    try:
        return time.time() - run.stop_file.stat().st_mtime
    except OSError:
        return 0.0


def _wait_until_gone(run: RunDir, launch: Launch, seconds: float) -> bool:
    """Wait for the very process of `launch`: a resume meanwhile is another one."""
    deadline = time.monotonic() + seconds
    fresh_until = time.monotonic() + FRESH_S
    while is_alive(launch, run.read_status()):
        if time.monotonic() >= deadline:
            return False
        if time.monotonic() >= fresh_until:
            fresh_until = time.monotonic() + FRESH_S
            with contextlib.suppress(OSError):
                os.utime(run.stop_file)
        time.sleep(0.1)
    return True


def signal_group(launch: Launch, number: int) -> None:
    """Signal the process group of a run: its leader is the very process that was recorded, or nobody is signalled."""
    if not processes.visible(launch) or not processes.runs(launch):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(launch.pid) == launch.pid:
            os.killpg(launch.pid, number)
        else:
            os.kill(launch.pid, number)


def _end_remains(run: RunDir) -> None:
    """End children that did not end with their engine; not while somebody starts the run again."""
    with contextlib.suppress(run_queue.StartRefused), run_queue.locked(run_queue.workspace_of(run)):
        if not run.alive():
            processes.end_remains(run.path)
