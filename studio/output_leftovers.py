"""What a killed merge, import or export left beside its goal: where such folders are, and when they may go.

A folder is only ever touched when it is named as the working folder of a run of this workspace, lies where that run
fills its result, and no engine is at work on that run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from studio.config import OutputConfig
from studio.rundir import RunDir
from studio.schema import ConfigError

_BEGIN, _END = ".", ".part"


def work_folder(run: RunDir, out: Path) -> Path:
    """Where the result of `run` is filled, beside `out`."""
    return out.parent / f"{_BEGIN}{run.id}{_END}"


def left_of(run: RunDir) -> Path | None:
    """The working folder that is there of a run, or None; a link is none."""
    try:
        config = run.config()
        if not isinstance(config, OutputConfig) or not config.out:
            return None
        out = Path(config.out).expanduser()
        found = work_folder(run, out.parent.resolve() / out.name)
        return found if found.is_dir() and not found.is_symlink() else None
    except (ConfigError, OSError, ValueError, RuntimeError):
        return None


def clear_leftovers(mine: RunDir, parent: Path) -> list[Path]:
    """Remove from `parent` what killed runs of the workspace of `mine` left there; returns what is gone."""
    gone = []
    for run in _named_in(mine, parent):
        try:
            with run.engine_lock():  # an engine whose record was lost still holds this
                left = left_of(run)
                if left is None or left.parent != parent.resolve() or run.state().live:
                    continue
                shutil.rmtree(left, ignore_errors=True)
                gone += [] if left.exists() else [left]
        except (Timeout, OSError):  # at work, or not ours to write
            continue
    return gone


def _named_in(mine: RunDir, parent: Path) -> Iterator[RunDir]:
    """The other runs whose working folders seem to be in `parent`."""
    try:
        names = [path.name for path in parent.iterdir()]
    except OSError:
        return
    for name in names:
        run = RunDir(mine.path.parent / name.removeprefix(_BEGIN).removesuffix(_END))
        if name == f"{_BEGIN}{run.id}{_END}" and run.id != mine.id and run.config_file.is_file():
            yield run
