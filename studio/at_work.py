"""Which runs of a workspace an engine is working on, found without reading every run again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from studio import processes
from studio.rundir import RunDir
from studio.workspace import Workspace

ENDING_S = 30.0
"""An engine that has said its last word still gives its memory back for a moment, or sends figures to a tracker."""

# Path and writing time of launch records whose process is gone: nothing brings that very process back.
_gone: set[tuple[str, int]] = set()


def live_runs(workspace: Workspace) -> list[RunDir]:
    """Runs that are starting, running or stopping, newest first."""
    return [run for run in _candidates(workspace) if run.state().live]


def live_run(workspace: Workspace) -> RunDir | None:
    """The newest of them, or None."""
    return next(iter(live_runs(workspace)), None)


def holding_runs(workspace: Workspace) -> list[RunDir]:
    """Runs that hold memory or cards of this machine: those at work, and those whose engine is just going."""
    return [run for run in _candidates(workspace) if _is_here(run) and (run.state().live or _just_ended(run))]


def _is_here(run: RunDir) -> bool:
    launch = run.read_launch()
    return launch is not None and processes.visible(launch)


def wait_for_ending(workspace: Workspace, seconds: float) -> None:
    """Let engines that are just going go, at most so long."""
    deadline = time.monotonic() + seconds
    while any(_just_ended(run) for run in _candidates(workspace)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _just_ended(run: RunDir) -> bool:
    status = run.read_status()
    if status is None or run.state().live:
        return False
    return 0 <= time.time() - status.updated_at < ENDING_S and run.alive()


def _candidates(workspace: Workspace) -> list[RunDir]:
    """Runs whose recorded process may still be there."""
    found = []
    with os.scandir(workspace.runs) as listed:  # no Path for each of a thousand old runs
        paths = sorted((item.path for item in listed), reverse=True)
    for path in paths:
        try:
            stamp = (path, os.stat(f"{path}/launch.json").st_mtime_ns)  # noqa: PTH116
        except OSError:
            continue
        if stamp in _gone:
            continue
        run = RunDir(Path(path))
        launch = run.read_launch()
        if launch and processes.visible(launch) and not processes.runs(launch):
            _gone.add(stamp)
        else:
            found.append(run)
    return found
