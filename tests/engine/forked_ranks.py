"""Runs of several processes, each forked from the test, which has torch loaded already.

The launcher is left out: what the processes do together is the same, and starting each anew takes seconds.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence

from faults import _load_everything

from studio.config import RunConfig
from studio.engine.start import start_rank
from studio.engine.train import train
from studio.rundir import RunDir

POLL_S = 0.02
PATIENCE_S = 120.0  # for the others, once one has failed: against a test that hangs


Prepare = Callable[[int], None]
"""What shall happen to process `rank` is told it before it starts."""


def together(
    run: RunDir, *, resume: bool = False, others: Sequence[RunDir] = (), prepare: Prepare | None = None
) -> list[int]:
    """Train with all processes of the run, here; the exit code of each, negative for one that was killed.

    `others`: the directories of further machines, which then have one process each, as the first has.
    """
    config = run.config()
    assert isinstance(config, RunConfig)
    _load_everything()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for place in (run, *others):
        place.ranks.mkdir(exist_ok=True)
    world = config.parallel.num_processes
    places = [run, *others] if others else [run] * world
    started: dict[int, int] = {}
    for rank, place in enumerate(places):
        local = {"LOCAL_RANK": 0 if others else rank, "LOCAL_WORLD_SIZE": 1 if others else world}
        group = local | {"RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "GROUP_RANK": rank if others else 0}
        started[_forked(place, rank, group, resume, prepare)] = rank
    return _ended(started)


def _forked(run: RunDir, rank: int, group: dict[str, int], resume: bool, prepare: Prepare | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        os.environ.update({name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"})
        log = os.open(run.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if prepare:
            prepare(rank)
        code = start_rank(str(run.path), lambda: train, resume=resume)
    except BaseException:
        with io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", write_through=True) as stream:
            traceback.print_exc(file=stream)
    finally:
        os._exit(code)


def _ended(running: dict[int, int]) -> list[int]:
    codes: dict[int, int] = {}
    until = float("inf")
    while len(codes) < len(running):
        for pid, rank in running.items():
            done, status = os.waitpid(pid, os.WNOHANG) if rank not in codes else (0, 0)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                until = min(until, time.monotonic() + PATIENCE_S) if codes[rank] else until
            elif rank not in codes and time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    return [codes[rank] for rank in sorted(codes)]


def said(run: RunDir) -> str:
    """What the processes of a run wrote to their logs, the ends of them."""
    logs = sorted(run.path.glob("engine*.log"))
    return "\n".join(f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}" for log in logs)
