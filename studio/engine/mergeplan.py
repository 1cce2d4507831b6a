"""What a merge is about to do, checked before anything heavy is loaded: base, adapter, goal, disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.config import MergeConfig
from studio.engine.adapter import AdapterFiles, open_adapter, open_base
from studio.engine.converted import Original, Progress, find_original, ready
from studio.engine.failure import model_failure
from studio.engine.output_folder import check_disk, refused
from studio.presets import ModelRef

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Plan:
    """A merge that can begin: inputs checked, `work` the folder to fill.

    `original` is where the base was converted from, if it was.
    """

    config: MergeConfig
    base: ModelRef
    adapter: AdapterFiles
    work: Path
    original: Original | None = None

    @property
    def name(self) -> str:
        """What the merged model is called."""
        return Path(self.config.out).name

    @property
    def layout(self) -> str:
        """What the weights are written as, for people; empty where there is nothing to say."""
        if self.original is None:
            return ""
        family = self.original.layout.family
        if self.config.layout == "original":
            return f"the original layout of {family.title}"
        return f"{family.becomes}, converted from the layout of {family.title}"


def make_plan(config: MergeConfig, work: Path, workspace: Path, progress: Progress | None = None) -> Plan:
    """Check base, adapter and disk; convert the base if its layout is not the library's.

    `work` is the folder to fill, or where it will be made; `workspace` keeps a converted base for the next time.

    Raises EngineError: kind model (base, adapter), config (layout) or disk (out), naming the field.
    """
    base = open_base(config.base)
    original = find_original(base, "base")
    if config.layout == "original" and original is None:
        sentence = f"layout: {Path(base.ref).name} is in the standard layout already; there is no other."
        raise refused("config", "layout", sentence, "Choose converted.")
    adapter = open_adapter(config.adapter)
    base = ready(base, workspace, progress, "base")
    copies = 2 if config.layout == "original" else 1
    check_disk(work, copies * _expected_bytes(base, config), "the merged model")
    return Plan(config, base, adapter, work, original)


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
