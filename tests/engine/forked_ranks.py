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

from faults import _load_everything

from studio.config import RunConfig
from studio.engine.start import start_rank
from studio.engine.train import train
from studio.rundir import RunDir

POLL_S = 0.02
PATIENCE_S = 20.0  # for the others, once one has failed: they wait for it


def together(run: RunDir, *, resume: bool = False) -> list[int]:
    """Train with all processes of the run, here; the exit code of each, negative for one that was killed."""
    config = run.config()
    assert isinstance(config, RunConfig)
    _load_everything()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run.ranks.mkdir(exist_ok=True)
    world = config.parallel.num_processes
    return _ended({_forked(run, rank, world, port, resume): rank for rank in range(world)})


def _forked(run: RunDir, rank: int, world: int, port: int, resume: bool) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
        log = os.open(run.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
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
