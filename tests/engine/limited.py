"""The engine under a real limit on its memory, in a process of its own; `Limited` starts it and waits.

The process is forked from one that has the heavy libraries already, so that a test takes a second and not ten.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.memory_room import CGROUPS, rooms
from studio.rundir import RunDir

PRELOADED = ["studio.engine.train", "studio.engine.trainer", "studio.engine.model", "studio.engine.continuing"]
PRELOADED += ["bitsandbytes", "trl", "peft", "transformers.models.llama.modeling_llama"]
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""From glibc's malloc.h."""


@dataclass(frozen=True)
class Limited:
    """A limit: at `moment` (load | train | the number of a step) the process may take `megabytes` more than it has.

    Of address space (what `ulimit -v` sets), or, with `group`, of the memory of that control group.
    """

    moment: str
    megabytes: int
    group: Path | None = None
    filled_at: int = 0
    """The step in which 4 GB are filled within one call of a library, which listens to nobody until it is done."""

    def train(self, run: RunDir, *, resume: bool = False) -> int:
        """Train under the limit; the exit code (negative: a signal)."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        child = context.Process(target=_work, args=(self, str(run.path), str(run.log_file), resume))
        child.start()
        child.join()
        assert child.exitcode is not None
        return child.exitcode


def _work(limit: Limited, run: str, log: str, resume: bool) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    _without_chance()
    from studio.engine import train

    if limit.group:
        (limit.group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    _at(limit.moment, limit)
    if limit.filled_at:
        _fill_at(limit.filled_at)
    code = train.main(run, resume=resume)
    sys.stdout.flush()
    os._exit(code)


def _without_chance() -> None:
    """What is taken is what is held: no address space for heaps of threads, no holes that large blocks have left."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _impose(limit: Limited) -> None:
    more = limit.megabytes << 20
    if limit.group is None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return
    gc.collect()  # writes to every object of the parent, whose pages become this process's own: now, not in a step
    file = _limit_file(limit.group)
    file.write_text(str(1 << 40), encoding="ascii")
    room = next(one for one in rooms() if one.limit == 1 << 40)
    file.write_text(str(room.used + more), encoding="ascii")


def _at(moment: str, limit: Limited) -> None:
    """Have the limit imposed once, at that moment."""
    from studio.engine import model
    from studio.engine.journal import Journal

    todo = [limit]

    def impose() -> None:
        while todo:
            _impose(todo.pop())

    def phase(self: Journal, name: Any, detail: str = "") -> None:
        plain_phase(self, name, detail)
        if name == moment == "train":
            impose()

    def update(self: Journal, **changes: Any) -> None:
        plain_update(self, **changes)
        if changes.get("step") == (int(moment) if moment.isdigit() else None) and changes.get("max_steps"):
            impose()

    def load(*args: Any) -> Any:
        if moment == "load":
            impose()
        return plain_load(*args)

    plain_phase, plain_update, plain_load = Journal.phase, Journal.update, model.load
    patched: list[tuple[Any, str, Callable[..., Any]]] = [(Journal, "phase", phase), (Journal, "update", update)]
    for owner, name, replacement in [*patched, (model, "load", load)]:
        setattr(owner, name, replacement)


def _fill_at(step: int) -> None:
    import torch

    from studio.engine.trainer import Trainer

    plain: Any = Trainer.training_step

    def training_step(self: Trainer, *args: Any) -> Any:
        if self.state.global_step == step - 1:
            torch.ones(1 << 30)
        return plain(self, *args)

    Trainer.training_step = training_step  # type: ignore[method-assign]


def _limit_file(group: Path) -> Path:
    second = group / "memory.max"
    return second if second.exists() else group / "memory.limit_in_bytes"


@contextmanager
def control_group() -> Iterator[Path | None]:
    """A control group for memory, removed afterwards; None where this machine allows none to be made."""
    parent = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
    group = parent / f"crucible-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group if _limit_file(group).exists() else None
    finally:
        group.rmdir()
