"""Rewrites the weights of an original layout as those of the architecture they are, and back, shard by shard.

No more than one output file's worth of tensors is held in memory.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from studio.engine.layout_rules import Rule, Sizes, rules_for
from studio.layouts import Layout

SHARD_BYTES = 10**9
SLICE_NUMBERS = 2**24  # how many numbers of a large tensor are converted at a time
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
Progress = Callable[[int, int], None]


class LayoutError(ValueError):
    """Weights that are not what their layout says; the text is a part of a sentence."""


class Weights:
    """The tensors of a model folder by name, read one at a time.

    A file is opened anew for each of them: what was read of one that stays open counts as memory in use.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX
        names = _file_names(index) if index.is_file() else [SINGLE]
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            with _damage_named(), safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    self._files[key] = folder / name
                    self.shapes[key] = tuple(file.get_slice(key).get_shape())

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open between two reads."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._open(name) as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def read(self, name: str, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
        """A tensor in another number format, read in slices: it is held once, and only a slice of it as it was."""
        shape = self.shapes.get(name, ())
        rows = max(1, SLICE_NUMBERS // max(1, math.prod(shape[1:])))
        if not shape or rows >= shape[0]:
            return self[name].to(device, dtype)
        found = torch.empty(shape, dtype=dtype, device=device)
        for start in range(0, shape[0], rows):
            with self._open(name) as file:
                found[start : start + rows] = file.get_slice(name)[start : start + rows]
        return found

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        if name not in self._files:
            raise LayoutError(f"the tensor {name} is missing")
        with _damage_named(), safe_open(self._files[name], framework="pt") as file:
            yield file


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except (LayoutError, MemoryError):
        raise
    except Exception as error:  # SafetensorError is no class one can name, and the file may be anything
        reason = " ".join(str(error).split())[:160]
        raise LayoutError(f"a weights file is damaged or missing ({reason})") from error


def _file_names(index: Path) -> list[str]:
    try:
        return sorted(
            {Path(str(name)).name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise LayoutError(f"{index.name} is damaged") from None


class ShardWriter:
    """Collects tensors and writes them to numbered files of at most `shard_bytes` (1 GB), then the index."""

    def __init__(self, folder: Path, shard_bytes: int | None = None) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes or SHARD_BYTES
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """One more tensor. Raises OSError when the disk is full."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._bytes += size
        self._total += size

    def close(self) -> None:
        """Write the rest, give the files their names."""
        self._flush()
        count = len(self._shards)
        names = [SINGLE] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
        for number, name in enumerate(names):
            (self.folder / f"part-{number}").rename(self.folder / name)
        if count > 1:
            weight_map = {key: name for name, keys in zip(names, self._shards, strict=True) for key in keys}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _flush(self) -> None:
        save_file(self._pending, self.folder / f"part-{len(self._shards)}", metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0


def convert_weights(source: Path, target: Path, layout: Layout, progress: Progress | None = None) -> None:
    """Write the converted tensors of the model in `source` into `target`.

    Raises:
        LayoutError: a tensor the layout does not know, or of the wrong size; a damaged file.
        OSError: the disk is full.
    """
    converter = _Converter(layout)
    weights = Weights(source)
    writer, names = ShardWriter(target), list(weights)
    for done, name in enumerate(names, start=1):
        for part, tensor in converter.split(name, weights[name]):
            writer.add(part, tensor)
        if progress:
            progress(done, len(names))
    writer.close()


def converted_tensors(weights: Weights, layout: Layout) -> dict[str, Callable[[], torch.Tensor]]:
    """What reads each converted tensor of the model behind `weights`, by its converted name.

    Raises LayoutError for a tensor the layout does not know.
    """
    converter = _Converter(layout)
    return {part: partial(_part, converter, weights, name, part) for name in weights for part in converter.names(name)}


def _part(converter: _Converter, weights: Weights, name: str, part: str) -> torch.Tensor:
    return dict(converter.split(name, weights[name]))[part]


def restore_weights(merged: Path, source: Path, target: Path, layout: Layout, shard_bytes: int | None = None) -> int:
    """Write the tensors of `merged`, a converted model, into `target` in the original layout of `source`.

    No file is larger than `shard_bytes` (1 GB) unless one tensor is.
    Every tensor is converted once more and compared to the bit; returns how many there are.

    Raises:
        LayoutError: something of the merged model has no place in the original layout.
        OSError: the disk is full.
    """
    converter = _Converter(layout)
    changed, original = Weights(merged), Weights(source)
    writer, names = ShardWriter(target, shard_bytes), list(original)
    used: set[str] = set()
    for name in names:
        parts = converter.parts_of(name, changed)
        used |= parts.keys()
        writer.add(name, converter.join(name, parts, original[name]))
    left = sorted(set(changed) - used)
    if left:
        raise LayoutError(f"the original layout has no place for {left[0]}")
    writer.close()
    return len(names)


class _Converter:
    """The rules of one model, applied to its tensors by name."""

    def __init__(self, layout: Layout) -> None:
        config = layout.converted_config()
        self.sizes = Sizes.of(config)
        self.rules = rules_for(layout.family.key, layout.config)
        self.title = layout.family.title
        self.tied = bool(config["tie_word_embeddings"])

    def names(self, name: str) -> tuple[str, ...]:
        """The names of the converted tensors of an original one."""
        return self._find(name)[1]

    def split(self, name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """The converted tensors of an original one, with their names."""
        rule, targets = self._find(name)
        if not targets:
            return []
        try:
            return list(zip(targets, rule.split(tensor, self.sizes), strict=True))
        except (RuntimeError, ValueError) as error:
            sizes = " x ".join(map(str, tensor.shape))
            raise LayoutError(f"the tensor {name} is {sizes}, which does not fit config.json") from error

    def parts_of(self, name: str, weights: Weights) -> dict[str, torch.Tensor]:
        """The tensors of a converted model an original tensor is made of."""
        _, targets = self._find(name)
        found = {}
        for target in targets:
            tied = self.tied and target == "lm_head.weight" and target not in weights
            found[target] = weights["model.embed_tokens.weight" if tied else target]
        return found

    def join(self, name: str, parts: dict[str, torch.Tensor], original: torch.Tensor) -> torch.Tensor:
        """The original tensor made of `parts`; the one it had, where nothing was taken from it or it is unchanged."""
        rule, _ = self._find(name)
        if not parts:
            return original
        dtype = next(iter(parts.values())).dtype
        if rule.join is None:
            before = dict(self.split(name, original))
            if any(not torch.equal(before[key].to(dtype), part) for key, part in parts.items()):
                raise LayoutError(f"{name} was trained, and the original layout cannot hold it")
            return original.to(dtype)
        try:
            joined = rule.join(list(parts.values()), self.sizes)
        except ValueError as error:
            raise LayoutError(str(error)) from error
        again = dict(self.split(name, joined))
        if any(not torch.equal(again[key], part) for key, part in parts.items()):
            raise LayoutError(f"{name} does not survive the way back")
        return joined

    def _find(self, name: str) -> tuple[Rule, tuple[str, ...]]:
        for rule in self.rules:
            targets = rule.targets(name)
            if targets is not None:
                return rule, targets
        raise LayoutError(f"the tensor {name} is no part of the layout of {self.title}")
