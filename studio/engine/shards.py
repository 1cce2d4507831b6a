"""Weights files written tensor by tensor: their sizes are known before, so a file is never held in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from studio.engine.layouts import INDEX

PATTERN = "model{suffix}.safetensors"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class _Place:
    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shards:
    """The safetensors files of a model, laid out at once and filled in any order.

    `tensors` are stand-ins on the meta device, by name; no file is larger than `max_file_bytes` unless one
    tensor is. Raises OSError when the disk is full.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, torch.Tensor], max_file_bytes: int, pattern: str = PATTERN
    ) -> None:
        split = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern=pattern, max_shard_size=max_file_bytes
        )
        self._places: dict[str, _Place] = {}
        self.files = [folder / name for name in split.filename_to_tensors]
        for file, names in split.filename_to_tensors.items():
            self._lay_out(folder / file, {name: tensors[name] for name in names})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        self.missing = set(tensors)

    def _lay_out(self, file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the header, and make the file as long as it will be."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, tensor in tensors.items():
            end = offset + tensor.nbytes
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            self._places[name] = _Place(file, offset, tuple(tensor.shape), tensor.dtype)
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the format wants the numbers aligned
        start = 8 + len(text)
        for name in tensors:
            place = self._places[name]
            self._places[name] = _Place(file, start + place.offset, place.shape, place.dtype)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(start + offset)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Put a tensor in its place. Raises ValueError for one of another shape or number format."""
        place = self._places[name]
        if tuple(tensor.shape) != place.shape or tensor.dtype is not place.dtype:
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, not {place.shape} {place.dtype}")
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        with place.file.open("r+b") as stream:
            stream.seek(place.offset)
            stream.write(flat.numpy().data)
        self.missing.discard(name)

    def finish(self) -> None:
        """Raises ValueError if a tensor was forgotten."""
        if self.missing:
            raise ValueError(f"{len(self.missing)} tensors were not written, first {min(self.missing)}")
