"""What a waiting run can have now: which cards, or its share of the main memory.

`decide` is pure: from the queue, the runs at work and the cards to who may start and what the others wait for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from studio import devices, hardware
from studio.bounds import UNKNOWN, Facts
from studio.config import AnyConfig, RunConfig
from studio.estimate import plan
from studio.hardware import Gpu
from studio.memory import facts_of, fit, shape_of
from studio.presets import ModelError
from studio.records.errors import DataError
from studio.records.sources import NotCounted
from studio.workspace import Workspace

CARDS_KEPT_S = 10


@dataclass(frozen=True)
class Job:
    """A run that waits. `cards`: numbers of the cards it wants, None for any `count` of them; 0 needs no card."""

    run_id: str
    cards: tuple[int, ...] | None = None
    count: int = 1
    paused: bool = False


@dataclass(frozen=True)
class Busy:
    """A run at work and the cards it holds."""

    run_id: str
    cards: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether a job may start now, on which cards; if not, what it waits for and which run is in its way."""

    run_id: str
    start: bool
    cards: tuple[int, ...] = ()
    reason: str = ""
    blocking: str = ""


@dataclass(frozen=True)
class Room:
    """What there is: free cards best first is the order of `cards`; `max_running` runs share the main memory.

    `fits` says whether a job fits into the memory that is left beside those runs ("" or what is missing).
    """

    cards: tuple[int, ...]
    max_running: int
    fits: Callable[[str, Sequence[str]], str]


def decide(jobs: Sequence[Job], busy: Sequence[Busy], room: Room) -> list[Decision]:
    """What becomes of every job, in the order of the queue.

    A job that waits keeps the cards it waits for from those behind it, so that nothing overtakes it for ever.
    """
    holder = {card: run.run_id for run in busy for card in run.cards}
    others = [run.run_id for run in busy if not run.cards]
    found, lane_closed = [], ""
    for job in jobs:
        if job.paused:
            found.append(Decision(job.run_id, False, reason="paused"))
        elif room.cards and job.count:
            decision = _on_cards(job, holder, room.cards)
            holder |= dict.fromkeys(decision.cards, job.run_id)
            found.append(decision if decision.start else Decision(job.run_id, False, (), *_why(decision)))
        else:
            decision = _in_memory(job, others, room, lane_closed)
            lane_closed = lane_closed or ("" if decision.start else job.run_id)
            others += [job.run_id] if decision.start else []
            found.append(decision)
    return found


def _why(decision: Decision) -> tuple[str, str]:
    return decision.reason, decision.blocking


def _on_cards(job: Job, holder: dict[int, str], cards: tuple[int, ...]) -> Decision:
    """The decision; of a job that has to wait, `cards` are those it keeps for itself meanwhile."""
    wanted = job.cards if job.cards is not None else cards
    free = tuple(card for card in wanted if card not in holder and card in cards)
    needed = len(job.cards) if job.cards is not None else job.count
    if len(free) >= needed:
        return Decision(job.run_id, True, free[:needed])
    taken = next((card for card in wanted if card in holder), None)
    if taken is None:
        reason = f"it wants {needed} cards, and there are {len(cards)}"
        return Decision(job.run_id, False, reason=reason)
    return Decision(job.run_id, False, free, f"waits for card {taken}, which run {holder[taken]} has", holder[taken])


def _in_memory(job: Job, others: list[str], room: Room, lane_closed: str) -> Decision:
    if lane_closed:
        return Decision(job.run_id, False, reason=f"waits behind run {lane_closed}", blocking=lane_closed)
    if len(others) >= room.max_running:
        return Decision(job.run_id, False, reason=f"waits until run {others[0]} has ended", blocking=others[0])
    missing = room.fits(job.run_id, others) if others else ""  # alone, a run is the person's own decision
    if missing:
        return Decision(job.run_id, False, reason=missing, blocking=others[0])
    return Decision(job.run_id, True)


# ---- this machine ----------------------------------------------------------------------------------------------------


def cards() -> tuple[Gpu, ...]:
    """The GPUs an engine can use, looked up again every few seconds."""
    return _cards(int(time.monotonic() / CARDS_KEPT_S))


@lru_cache(maxsize=1)
def _cards(_moment: int) -> tuple[Gpu, ...]:
    found = hardware.visible_gpus(hardware.find_gpus()) if hardware.torch_has_cuda() else ()
    names = _identifiers()
    if not found or not names:
        return found
    # Parts of cards, or cards by identifiers the listing does not have: counted as they are named.
    return tuple(replace(found[min(place, len(found) - 1)], index=place) for place in range(len(names)))


def _identifiers() -> list[str]:
    """Cards that CUDA_VISIBLE_DEVICES names by identifiers (GPU-…, MIG-…) and not by numbers."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return names if any(name.startswith(("GPU-", "MIG-")) for name in names) else []


def card_environment(held: Sequence[int]) -> dict[str, str]:
    """The variables that let an engine see these cards only, numbered as the driver's own program numbers them."""
    names = _identifiers()
    shown = [names[card] if card < len(names) else str(card) for card in held]
    return {"CUDA_VISIBLE_DEVICES": ",".join(shown), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def predicted_bytes(workspace: Workspace, config: AnyConfig, device: devices.Device) -> int | None:
    """Memory a run needs at worst on a device; None when it cannot be told (a merge, a model not here yet).

    Of main memory for all its processes on this machine, of a card for the one that has it.
    """
    if not isinstance(config, RunConfig):
        return None
    shape = shape_of(config)
    if shape is None:
        return None
    processes = config.parallel.processes_per_machine if device.kind == "cpu" else 1
    return processes * fit(config, shape, device, _facts(workspace, config)).high


def _facts(workspace: Workspace, config: RunConfig) -> Facts:
    try:
        found = plan(config, workspace)
    except (DataError, ModelError, NotCounted, OSError):
        return UNKNOWN
    return facts_of(found.prepared, found.counts) if found else UNKNOWN
