"""Reads a GGUF file back and compares every number of it with the model it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor

from studio.engine.formats.gguf_tensors import ModelTensors, Numbers, Tensor
from studio.engine.formats.gguf_tokens import Words, token_texts

_F16, _BF16, _Q8 = GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0
# Half of the last digit, as a share of a number; below the smallest normal float16 its digits stand still.
_ROUNDING = {GGMLQuantizationType.F32: 0.0, _F16: 2.0**-11, _BF16: 2.0**-8}
_SMALLEST_F16 = 2.0**-25
_BLOCK = 32


@dataclass(frozen=True)
class Readback:
    """How the file compares: `reason` is empty when it is what it should be, else a part of a sentence."""

    tensors: int
    largest_difference: float
    reason: str = ""


def read_back(model: ModelTensors, words: Words, file: Path) -> Readback:
    """Compare names, shapes, every number and the vocabulary."""
    try:
        reader = GGUFReader(file)
    except Exception as error:  # it raises whatever comes up
        return Readback(0, 0.0, f"it cannot be read ({' '.join(str(error).split())[:160]})")
    there = {tensor.name: tensor for tensor in reader.tensors}
    largest, count = 0.0, 0
    for tensor in model:
        found = there.pop(tensor.name, None)
        if found is None or tuple(int(n) for n in reversed(found.shape)) != tensor.shape:
            return Readback(count, largest, f"its tensor {tensor.name} is missing or of another size")
        difference, inside = _compare(tensor, found)
        largest, count = max(largest, difference), count + 1
        if not inside:
            return Readback(count, largest, f"its tensor {tensor.name} is off by {difference:.3g}")
    if there:
        return Readback(count, largest, f"it holds a tensor {min(there)} nobody wrote")
    field: Any = reader.fields.get("tokenizer.ggml.tokens")
    if field is None or field.contents() != token_texts(words, int(model.config.vocab_size)):
        return Readback(count, largest, "its vocabulary is another one")
    return Readback(count, largest)


def _compare(tensor: Tensor, found: ReaderTensor) -> tuple[float, bool]:
    """(largest difference, whether it is nowhere more than the number format rounds)."""
    if found.tensor_type != tensor.kind:
        return float("inf"), False
    data = found.data.reshape(-1, found.data.shape[-1])
    start, largest, inside = 0, 0.0, True
    for wanted in tensor.rows():
        read = gguf.dequantize(data[start : start + len(wanted)], tensor.kind)
        start += len(wanted)
        gap = np.abs(read - wanted)
        largest = max(largest, float(gap.max(initial=0)))
        inside &= bool((gap <= _allowed(wanted, tensor.kind)).all())  # NaN is inside of nothing
    return largest, inside


def _allowed(wanted: Numbers, kind: GGMLQuantizationType) -> Numbers:
    size = np.abs(wanted)
    if kind == _Q8:
        blocks = size.reshape(*size.shape[:-1], -1, _BLOCK).max(axis=-1, keepdims=True)
        # Half a step of 127, the step itself rounded to float16.
        steps = blocks / 127 * (0.5 + 127 * 2.0**-11) * 1.001 + 127 * _SMALLEST_F16
        return np.broadcast_to(steps, (*steps.shape[:-1], _BLOCK)).reshape(size.shape)
    allowed: Numbers = size * _ROUNDING[kind] + (_SMALLEST_F16 if kind == _F16 else 0.0)
    return allowed
