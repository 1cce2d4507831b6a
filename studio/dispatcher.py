"""python -m studio.dispatcher WORKSPACE [ENGINE …]: starts the runs of a queue, one after the other or side by side.

A light process that belongs to nobody: it goes on when the studio ends, and ends itself when nothing waits any more.
There is at most one per workspace. Killed, it is started again by the next studio or command that looks at the queue.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from studio import dispatching, run_queue, runner
from studio.events import ExitCode
from studio.locales import start_in_utf8
from studio.workspace import Workspace, WorkspaceError

POLL_S = 0.5


def main(argv: Sequence[str]) -> int:
    """Work until nothing waits; the exit code. `argv`: the workspace, and the engine's command if it is another."""
    path = Path(argv[0])
    if argv[1:]:
        runner.ENGINE = tuple(argv[1:])
    if not (path / "runs").is_dir():  # moved or deleted meanwhile: nothing is made anew in its place
        return ExitCode.FINISHED
    try:
        workspace = Workspace(path)
        lock = dispatching.lock(workspace)
        lock.acquire()
    except Timeout:
        return ExitCode.FINISHED  # another one is at it
    except (WorkspaceError, OSError):
        return ExitCode.BAD_INPUT
    with lock:
        while _turn(workspace, lock):
            time.sleep(POLL_S)
    return ExitCode.FINISHED


def _turn(workspace: Workspace, lock: FileLock) -> bool:
    """Start what there is room for; False when there is nothing left to do, with `lock` given back."""
    if not workspace.runs.is_dir():  # moved or deleted
        return False
    try:
        with run_queue.locked(workspace):
            runner.start_waiting(workspace)
            if run_queue.has_work(workspace):
                return True
            # Still inside the workspace's lock: what is queued next is seen by this process, or by whoever queues
            # it no dispatcher is seen.
            dispatching.forget(workspace)
            lock.release(force=True)
            return False
    except (run_queue.StartRefused, OSError):  # a full disk, a busy lock: it may be better at the next turn
        return True


if __name__ == "__main__":
    start_in_utf8()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
