"""What a merge is about to do, checked before anything heavy is loaded: base, adapter, goal, disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.config import MergeConfig
from studio.engine.adapter import AdapterFiles, open_adapter, open_base
from studio.engine.converted import Original, Progress, find_original, ready
from studio.engine.failure import EngineError, model_failure
from studio.engine.output_folder import check_disk, refused
from studio.presets import ModelRef

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Part:
    """An adapter that is added, and how much of it."""

    files: AdapterFiles
    weight: float


@dataclass(frozen=True)
class Plan:
    """A merge that can begin: inputs checked, `work` the folder to fill.

    `original` is where the base was converted from, if it was. The first of `adapters` brings tokenizer and template.
    """

    config: MergeConfig
    base: ModelRef
    adapters: tuple[Part, ...]
    work: Path
    original: Original | None = None

    @property
    def adapter(self) -> AdapterFiles:
        """The first adapter."""
        return self.adapters[0].files

    @property
    def trained_in_4_bits(self) -> bool:
        """True where what was trained is the adapter on a packed base, so that two bases can be merged into."""
        trained = self.adapter.trained
        return self.config.merge_base == "dequantized" or bool(trained and trained.method == "qlora")

    @property
    def in_one_piece(self) -> str:
        """Why the adapters want the base loaded as a whole; empty where they do not."""
        for part in self.adapters:
            if part.files.config.get("target_parameters"):
                return "its adapter changes weights that are no layers of their own"
            if part.files.config.get("layer_replication"):
                return "its adapter repeats layers"
        return ""

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
    adapters = _open_adapters(config)
    base = _on_this_machine(ready(base, workspace, progress, "base"))
    _check_not_packed(base)
    copies = 2 if config.layout == "original" else 1
    check_disk(work, copies * _expected_bytes(base, config), "the merged model")
    return Plan(config, base, adapters, work, original)


def _open_adapters(config: MergeConfig) -> tuple[Part, ...]:
    """All adapters, checked: with weights, or several of them, only what is a sum can be added."""
    parts = [Part(open_adapter(config.adapter), config.weight)]
    for more in config.more_adapters:
        with _said_of("more_adapters"):
            parts.append(Part(open_adapter(more.path), more.weight))
    if len(parts) > 1 or config.weight != 1:
        for part in parts:
            _check_addable(part.files)
    return tuple(parts)


@contextlib.contextmanager
def _said_of(field: str) -> Iterator[None]:
    """What is wrong with a further adapter is said of its own field."""
    try:
        yield
    except EngineError as error:
        message = error.error.message.removeprefix("adapter: ")
        raise model_failure(f"{field}: {message}", error.error.hint, field) from error


_NO_SUM = {
    "use_dora": "DoRA",
    "modules_to_save": "layers trained as a whole",
    "trainable_token_indices": "tokens trained as a whole",
    "alora_invocation_tokens": "a beginning that switches it on",
}


def _check_addable(files: AdapterFiles) -> None:
    found = next((said for name, said in _NO_SUM.items() if files.config.get(name)), None)
    if found is None and files.config.get("bias", "none") != "none":
        found = "trained biases"
    if found:
        raise model_failure(
            f"adapter: {files.folder.name} has {found}; it cannot be added to others or with a weight.",
            "Merge it alone, with weight 1.",
            "adapter",
        )


def _on_this_machine(base: ModelRef) -> ModelRef:
    """The base as a folder: one that is only on the hub is fetched into the cache of its client."""
    if base.local:
        return base
    from huggingface_hub import snapshot_download

    from studio.engine.hub_model import UNWANTED, WANTED

    try:
        folder = snapshot_download(base.path_or_id, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    except Exception as error:  # the network, the name, a licence to be agreed to: the client has a class for each
        raise model_failure(
            f"base: {base.ref} is not on this machine and cannot be fetched ({' '.join(str(error).split())[:200]}).",
            "Check the name and the network, or give the folder of a model on this machine.",
            "base",
        ) from error
    return ModelRef(base.ref, folder, local=True)


def _check_not_packed(base: ModelRef) -> None:
    """Raises EngineError of kind model for a base that is saved in 4 or 8 bits."""
    try:
        config = json.loads((Path(base.path_or_id) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # said where it is loaded
    if isinstance(config, dict) and config.get("quantization_config"):
        raise model_failure(
            f"base: {Path(base.ref).name} is saved in packed weights, into which nothing can be merged.",
            "Choose the model it was packed from, in 16 or 32 bits.",
            "base",
        )


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
