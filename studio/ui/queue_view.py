"""What the page shows of the queue: what is at work, what waits, at which place and for what."""

import re
from collections.abc import Mapping
from typing import Any

from studio import resources, run_queue, runner
from studio.resources import Decision
from studio.run_queue import Entry, Settings
from studio.rundir import RunDir
from studio.ui.i18n import LANGUAGES, table
from studio.ui.run_lines import facts
from studio.ui.sentences import translated
from studio.workspace import Workspace

# What the reason of a decision contains -> key of its text in the visitor's language.
REASONS = (
    (r"^waits behind run", "queue.why.before"),
    (r"^waits until run", "queue.why.run"),
    (r"^waits for card (?P<card>\d+)", "queue.why.card"),
    (r"needs up to (?P<need>[\d.]+) GB, and (?P<free>[\d.]+) GB", "queue.why.memory"),
    (r"wants (?P<wanted>\d+) cards, and there are (?P<there>\d+)", "queue.why.cards"),
)


def name_of(run: RunDir) -> str:
    """The name of a run as the lists show it."""
    return str(facts(run)["name"] or run.id)


def queue_json(workspace: Workspace, language: str) -> dict[str, Any]:
    """The whole queue: `paused`, `max_running`, `gpus`, the runs at work, and those that wait, the next one first."""
    settings = run_queue.settings(workspace)
    waiting = run_queue.entries(workspace)
    decisions = {decision.run_id: decision for decision in runner.decisions(workspace)} if waiting else {}
    names = _told_apart([run for run, _ in waiting])
    running = [_at_work(run) for run in reversed(runner.live_runs(workspace))]
    names |= {line["id"]: line["name"] for line in running}
    return {
        "paused": settings.paused,
        "max_running": settings.max_running,
        "gpus": [{"index": gpu.index, "name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in resources.cards()],
        "running": running,
        "waiting": [
            _waiting(run, entry) | {"place": place, "why": why(entry, settings, decisions.get(run.id), names, language)}
            for place, (run, entry) in enumerate(waiting, 1)
        ],
    }


def _told_apart(waiting: list[RunDir]) -> dict[str, str]:
    """The names of the runs that wait, by id; of those that share a name, with the place before it."""
    names = [name_of(run) for run in waiting]
    return {
        run.id: name if names.count(name) == 1 else f"{place}. {name}"
        for place, (run, name) in enumerate(zip(waiting, names, strict=True), 1)
    }


def _at_work(run: RunDir) -> dict[str, Any]:
    status, launch = run.read_status(), run.read_launch()
    return {
        "id": run.id,
        "name": name_of(run),
        "state": run.state().value,
        "step": status.step if status else 0,
        "max_steps": status.max_steps if status else 0,
        "gpus": launch.gpus if launch else [],
    }


def _waiting(run: RunDir, entry: Entry) -> dict[str, Any]:
    kept = {"paused", "resume", "gpus", "gpu_count", "queued_at"}
    return {"id": run.id, "name": name_of(run), **entry.model_dump(include=kept)}


def why(entry: Entry, settings: Settings, decision: Decision | None, names: Mapping[str, str], language: str) -> str:
    """What a waiting run waits for, in one sentence."""
    texts = table(language if language in LANGUAGES else "en")
    if entry.problem:
        return texts["queue.why.problem"].format(reason=translated(entry.problem, language))
    if entry.paused:
        return texts["queue.why.paused"]
    if settings.paused:
        return texts["queue.why.held"]
    if decision is None or decision.start:
        return texts["queue.why.first"]
    name = names.get(decision.blocking, decision.blocking)
    for pattern, key in REASONS:
        found = re.search(pattern, decision.reason)
        if found:
            return texts[key].format(name=name, **found.groupdict())
    return texts["queue.why.turn"]


def place_and_reason(workspace: Workspace, run: RunDir, language: str) -> tuple[int, str] | None:
    """The place of a run in the queue and what it waits for; None when it does not wait."""
    line = next((line for line in queue_json(workspace, language)["waiting"] if line["id"] == run.id), None)
    return (line["place"], line["why"]) if line else None
