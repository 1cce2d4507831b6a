"""What a merge is about to do, checked before anything heavy is loaded: base, adapter, goal, disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.config import MergeConfig
from studio.engine.adapter import AdapterFiles, open_adapter, open_base
from studio.engine.converted import Original, Progress, find_original, ready
from studio.engine.failure import EngineError, model_failure
from studio.events import ErrorKind, RunError
from studio.presets import ModelRef
from studio.rundir import RunDir

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPARE_BYTES = 64 * 2**20  # tokenizer, model card, and room for the disk to breathe


@dataclass(frozen=True)
class Plan:
    """A merge that can begin: inputs checked, `out` free, `work` the folder beside it that is filled first.

    `original` is where the base was converted from, if it was.
    """

    config: MergeConfig
    base: ModelRef
    adapter: AdapterFiles
    out: Path
    work: Path
    original: Original | None = None

    @property
    def layout(self) -> str:
        """What the weights are written as, for people; empty where there is nothing to say."""
        if self.original is None:
            return ""
        family = self.original.layout.family
        if self.config.layout == "original":
            return f"the original layout of {family.title}"
        return f"{family.becomes}, converted from the layout of {family.title}"


def make_plan(run: RunDir, progress: Progress | None = None) -> Plan:
    """Check base, adapter, goal and disk; convert the base if its layout is not the library's.

    Raises:
        EngineError: kind model (base, adapter), config (out) or disk (out), naming the field.
        ConfigError: config.yaml cannot be used.
    """
    config = run.config()
    if not isinstance(config, MergeConfig):
        raise refused("config", "kind", f"run {run.id} is no merge.", "Start it with what it is.")
    base = open_base(config.base)
    original = find_original(base, "base")
    if config.layout == "original" and original is None:
        sentence = f"layout: {Path(base.ref).name} is in the standard layout already; there is no other."
        raise refused("config", "layout", sentence, "Choose converted.")
    adapter = open_adapter(config.adapter)
    out = _goal(config.out)
    work = out.parent / f".merge-{run.id}"
    base = ready(base, run.path.parent.parent, progress, "base")
    copies = 2 if config.layout == "original" else 1
    _check_disk(out, copies * _expected_bytes(base, config))
    return Plan(config, base, adapter, out, work, original)


def _goal(text: str) -> Path:
    """The folder to make, which must not exist."""
    try:
        path = Path(text).expanduser()
        out = path.parent.resolve() / path.name
        taken = out.exists() or out.is_symlink()
        out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, RuntimeError):  # a NUL, an unknown ~user
        raise refused("config", "out", f"out: {text!r} is no folder name.", "Choose another name.") from None
    except OSError as error:
        sentence = f"out: the folder {text!r} cannot be made ({error.strerror or error})."
        raise refused("disk", "out", sentence, "Choose a folder that can be written.") from None
    if taken or out.name in ("", "."):
        raise taken_already(out)
    return out


def taken_already(out: Path) -> EngineError:
    """A merge never overwrites."""
    free = free_name(out)
    return refused(
        "config", "out", f"out: {out} exists already, and a merge never overwrites.", f"Choose another, like {free}."
    )


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 … that does not exist."""
    number, found = 1, path
    while found.exists() or found.is_symlink():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _expected_bytes(base: ModelRef, config: MergeConfig) -> int:
    """Bytes of the merged weights, from the sizes in the base's files; 0 when they are not on this machine yet."""
    if not base.local:
        return 0
    files = sorted(Path(base.path_or_id).glob("*.safetensors"))
    try:
        return sum(_numbers(file) for file in files) * DTYPE_BYTES[config.dtype]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise model_failure(
            f"base: a weights file of {Path(base.ref).name} is damaged.", "Copy the model again.", "base"
        ) from None


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError("header longer than the file")
        header: dict[str, Any] = json.loads(stream.read(size))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for length in entry["shape"]:
                count *= length
            total += count
    return total


def _check_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed + SPARE_BYTES:
        raise refused(
            "disk",
            "out",
            f"out: the merged model needs {_size(needed + SPARE_BYTES)} and {out.parent} has {_size(free)} free.",
            "Free some space or choose a folder on another disk.",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def refused(kind: ErrorKind, field: str, message: str, hint: str) -> EngineError:
    """An EngineError for bad input."""
    return EngineError(RunError(kind=kind, message=message, hint=hint, field=field))
