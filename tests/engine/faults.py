"""Engines that meet with accidents: forked from the test, which has torch loaded already, so that each takes seconds.

The child is told what shall happen to it before it starts, and ends by `os._exit`: nothing of the test runs in it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import events_of

from studio.checkpoints import complete_checkpoints
from studio.config import RunConfig
from studio.engine import train
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace

ADAPTER = "adapter/adapter_model.safetensors"
Prepare = Callable[[RunDir], None]
STEPS, SAVE_STEPS = 6, 2


def rows_file(folder: Path) -> Path:
    """A few short conversations."""
    path = folder / "rows.jsonl"
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Who are you? {n}"},
                {"role": "assistant", "content": f"I am Nova {n}."},
            ]
        }
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks), encoding="utf-8")
    return path


def new_run(workspace: Workspace, rows: Path, method: str = "lora", **changes: Any) -> RunDir:
    """A queued run of the built-in model: six small updates, a checkpoint after every second."""
    layer: dict[str, Any] = {
        "method": method,
        "model.model_name_or_path": "crucible/ember",
        "data.dataset": str(rows),
        "data.max_length": 64,
        "lora.r": 4,
        "lora.lora_dropout": 0.1,
        "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 1,
        "train.max_steps": STEPS,
        "train.save_steps": SAVE_STEPS,
        "samples.evaluation_inputs": [],
        "verdict.enabled": False,
    }
    return workspace.create_run(build(RunConfig, merge(RunConfig, layer | changes)))


@functools.cache
def _load_everything() -> None:
    """One training in the test's own process: what it imports, no child has to."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = new_run(Workspace(Path(folder) / "ws"), rows_file(Path(folder)), "qlora", **{"train.max_steps": 1})
        assert train.main(str(run.path)) == 0


class Forked:
    """An engine at work in a child process."""

    def __init__(self, run: RunDir, *, resume: bool = False, prepare: Prepare | None = None) -> None:
        _load_everything()
        self.run = run
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _work(run, resume, prepare, writer)
        os.close(writer)
        self._reader = reader
        self._code: int | None = None

    def wait(self) -> int:
        """The exit code; of one that was killed the negative number of the signal."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def wait_unreaped(self) -> None:
        """Until it has ended; then it is a zombie."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def written(self) -> int:
        """How many events it had written completely; after its end."""
        with os.fdopen(self._reader, "rb") as pipe:
            return len(pipe.read())

    def kill(self) -> None:
        """Without warning, if it still runs."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()


def _work(run: RunDir, resume: bool, prepare: Prepare | None, writer: int) -> None:
    code = 99
    try:
        os.setsid()
        log = os.open(run.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", write_through=True)
        _report_events(writer)
        if prepare:
            prepare(run)
        code = train.main(str(run.path), resume=resume)
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        os._exit(code)


def _report_events(writer: int) -> None:
    append = RunDir.append_event

    def append_and_tell(self: RunDir, *args: Any, **kwargs: Any) -> None:
        append(self, *args, **kwargs)
        os.write(writer, b".")

    RunDir.append_event = append_and_tell  # type: ignore[method-assign]


def engine(run: RunDir, *, resume: bool = False, prepare: Prepare | None = None) -> int:
    """Train to the end in a child; the exit code."""
    return Forked(run, resume=resume, prepare=prepare).wait()


def die() -> None:
    """What `kill -9` does, at exactly this moment."""
    os.kill(os.getpid(), signal.SIGKILL)


def watch_files(run: RunDir, seen: Callable[[str, str], None]) -> None:
    """Call `seen(what, path)` whenever this process opens, renames or removes something in the run's directory."""
    root = str(run.path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and root in str(arguments[0]):
            seen(event, str(arguments[0]))

    sys.addaudithook(hook)


def replace(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Let `around(original, *args, **kwargs)` stand for a function from now on; only ever in a child."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))


def step_reached(run: RunDir) -> int:
    """The last step a curve knows."""
    return max((event.step for event in events_of(run, "log")), default=0)


def assert_offered_checkpoints_are_whole(run: RunDir) -> None:
    """Every checkpoint a resume, the chat or an export could choose can be read to its last byte."""
    for checkpoint in complete_checkpoints(run.checkpoints):
        assert load_file(checkpoint / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            assert torch.load(checkpoint / name, weights_only=False)


def leftovers(run: RunDir) -> list[str]:
    """Names of half-done work; a run that has ended has none."""
    ends = (".tmp", ".gone", ".part", ".old")
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.name.endswith(ends))


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in `folder`; the test is skipped where none may be mounted."""
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments: str) -> None:
    """Skips the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here ({done.stderr.strip()})")


def fill(disk: Path) -> None:
    """Leave no room at all."""
    with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
