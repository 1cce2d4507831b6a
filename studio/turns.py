"""Whose turn it is: the queue, the runs at work and this machine put together for `studio.resources.decide`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import psutil

from studio import chat_memory, devices, resources, run_queue
from studio.at_work import holding_runs
from studio.chat_memory import ChatHolder
from studio.config import AnyConfig
from studio.resources import Busy, Decision, Job, Room
from studio.run_queue import Entry
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.workspace import Workspace


def decisions(workspace: Workspace) -> list[Decision]:
    """What every waiting run waits for, in the order of the queue."""
    return decisions_for(workspace, run_queue.entries(workspace))


def decisions_for(workspace: Workspace, waiting: Sequence[tuple[RunDir, Entry]]) -> list[Decision]:
    """The same for some runs only, as if no other waited."""
    if not waiting:
        return []
    holding = holding_runs(workspace)
    jobs = [Job(run.id, _wanted(entry), entry.gpu_count, entry.paused) for run, entry in waiting]
    busy = [Busy(run.id, tuple(launch.gpus)) for run in holding if (launch := run.read_launch())]
    cards = sorted(resources.cards(), key=lambda card: -card.free_bytes)
    room = Room(
        cards=tuple(card.index for card in cards),
        max_running=run_queue.settings(workspace).max_running,
        fits=partial(_missing_memory, workspace),
    )
    return resources.decide(jobs, busy, room)


def _wanted(entry: Entry) -> tuple[int, ...] | None:
    return tuple(entry.gpus) if entry.gpus else None


def needs_chat_memory(workspace: Workspace, config: AnyConfig, cards: Sequence[int] | None = None) -> ChatHolder | None:
    """The chat server that holds a model in memory this run needs; None when there is room, or no such server.

    `cards`: those the run gets; without them the roomiest that no run has.
    """
    found = chat_memory.holders(workspace)
    device = _device(workspace, cards) if found else None
    needed = resources.predicted_bytes(workspace, config, device) if device else None
    if device is None or needed is None or needed <= device.free_bytes:
        return None
    return max(found, key=lambda record: record.memory_bytes)


def make_room(workspace: Workspace, run: RunDir, cards: Sequence[int] | None = None) -> None:
    """End the workspace's chat servers if a run is about to start in the memory they hold. Raises ConfigError."""
    if needs_chat_memory(workspace, run.config(), cards):
        chat_memory.release(workspace, run.id)


def _device(workspace: Workspace, cards: Sequence[int] | None) -> devices.Device | None:
    """Where a run would go: the fullest of its cards, the roomiest that is free, or main memory.

    None when it would have to wait: then the queue asks again when its turn comes.
    """
    known = resources.cards()
    if cards is not None:
        mine = [card for card in known if card.index in cards]
        return min(devices.from_gpus(mine), key=lambda device: device.free_bytes, default=devices.main_memory())
    launches = [launch for run in holding_runs(workspace) if (launch := run.read_launch())]
    if not known:
        full = len(launches) >= run_queue.settings(workspace).max_running
        return None if full else devices.main_memory()
    held = {card for launch in launches for card in launch.gpus}
    free = [card for card in known if card.index not in held]
    return max(devices.from_gpus(free), key=lambda device: device.free_bytes, default=None)


def _missing_memory(workspace: Workspace, run_id: str, others: Sequence[str]) -> str:
    """What is missing for a run to go beside others; "" when it fits or its need is not known."""
    needed = _needed(workspace, RunDir(workspace.runs / run_id))
    promised = sum(_still_to_come(workspace, RunDir(workspace.runs / other)) for other in others)
    free = max(0, devices.main_memory().free_bytes - promised)
    if needed is None or needed <= free:
        return ""
    return f"waits for memory: it needs up to {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def _still_to_come(workspace: Workspace, run: RunDir) -> int:
    """Bytes a run at work, or one that is about to be, will take beyond those it has taken already."""
    launch, needed = run.read_launch(), _needed(workspace, run) or 0
    taken = 0
    with contextlib.suppress(psutil.Error):
        if launch and run.alive():
            engine = psutil.Process(launch.pid)
            taken = sum(process.memory_info().rss for process in (engine, *engine.children(recursive=True)))
    return max(0, needed - taken)


def _needed(workspace: Workspace, run: RunDir) -> int | None:
    """Main memory a run needs at worst, None if it cannot be told."""
    stamps = tuple(_stamp(file) for file in (run.config_file, run.changes_file))
    return _predicted(workspace.path, run.path, stamps)


def _stamp(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=256)  # a queue is looked at twice a second
def _predicted(workspace: Path, run: Path, _stamps: tuple[int, ...]) -> int | None:
    try:
        return resources.predicted_bytes(Workspace(workspace), RunDir(run).config(), devices.main_memory())
    except ConfigError:
        return None
