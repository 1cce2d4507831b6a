"""What the command line says of the queue: who is at work, who waits, at which place and for what."""

from __future__ import annotations

from typing import Any

from studio import run_queue, runner
from studio.resources import Decision
from studio.run_queue import Entry, Settings
from studio.rundir import RunDir
from studio.workspace import Workspace


def describe(workspace: Workspace) -> dict[str, Any]:
    """The whole queue as plain data: settings, runs at work, runs that wait with their place and reason."""
    settings, waiting = run_queue.settings(workspace), run_queue.entries(workspace)
    decisions = {decision.run_id: decision for decision in runner.decisions(workspace)}
    return settings.model_dump() | {
        "running": [_at_work(run) for run in runner.live_runs(workspace)],
        "waiting": [
            {"id": run.id, "place": place, "why": why(entry, settings, decisions.get(run.id))}
            | entry.model_dump(exclude={"position", "attempt"})
            for place, (run, entry) in enumerate(waiting, 1)
        ],
    }


def _at_work(run: RunDir) -> dict[str, Any]:
    status, launch = run.read_status(), run.read_launch()
    steps = {"step": status.step, "max_steps": status.max_steps} if status else {"step": 0, "max_steps": 0}
    return {"id": run.id, "state": str(run.state()), "gpus": launch.gpus if launch else []} | steps


def why(entry: Entry, settings: Settings, decision: Decision | None) -> str:
    """What a waiting run waits for."""
    if entry.problem:
        return f"paused: {entry.problem}"
    if entry.paused:
        return "paused; let it go on: queue resume RUN"
    if settings.paused:
        return "the whole queue is paused; let it go on: queue resume"
    return decision.reason if decision and not decision.start else "is started now"


def place_of(workspace: Workspace, run: RunDir) -> tuple[int, str] | None:
    """The place of a run in the queue and what it waits for; None when it does not wait."""
    line = next((line for line in describe(workspace)["waiting"] if line["id"] == run.id), None)
    return (line["place"], line["why"]) if line else None
