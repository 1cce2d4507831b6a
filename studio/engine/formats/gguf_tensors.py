"""The tensors of a GGUF file: their names in llama.cpp, their order, and how each is made of the model's.

Nothing is held longer than one tensor takes: a tensor is read when it is written, and turned into the number format
of the file some rows at a time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, TensorNameMap
from transformers import PretrainedConfig

from studio.engine.failure import model_failure
from studio.engine.formats.gguf_model import head_size, rope_factors
from studio.engine.layouts import LayoutError, Weights, converted_tensors
from studio.gguf_support import ARCHITECTURES
from studio.layouts import read_layout

F32 = GGMLQuantizationType.F32
KINDS = {
    "f32": F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
ROWS_BYTES = 32 * 2**20  # of a tensor turned at once, in float32
_SEES = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")
LARGEST_F16 = 65504.0
Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its name, its shape, its number format, and what reads it from the model."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    read: Callable[[], torch.Tensor]

    @property
    def plain(self) -> np.dtype[Any]:
        """What its shape counts: numbers, whatever they are packed in."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of it in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        count = int(np.prod(self.shape))
        return count // block * size

    def tofile(self, out: IO[bytes]) -> None:
        """Write it, some rows at a time. Raises EngineError for numbers float16 cannot hold."""
        for rows in self.rows():
            if self.kind == GGMLQuantizationType.F16 and np.abs(rows).max(initial=0) > LARGEST_F16:
                raise model_failure(
                    f"gguf_type: {self.name} holds numbers that are too large for f16.", "Choose bf16.", "gguf_type"
                )
            out.write(gguf.quantize(rows, self.kind).tobytes())

    def rows(self) -> Iterator[Numbers]:
        """Its numbers in float32, some rows at a time."""
        tensor = self.read()
        tensor = tensor.reshape(-1, tensor.shape[-1])
        step = max(1, ROWS_BYTES // (4 * tensor.shape[-1]))
        for start in range(0, tensor.shape[0], step):
            yield tensor[start : start + step].float().contiguous().numpy()


class ModelTensors:
    """The tensors a model folder gives for a GGUF file of the number format `kind`; files are open while it is."""

    def __init__(self, source: Path, config: PretrainedConfig, kind: str) -> None:
        self.config: Any = config
        self._kind = KINDS[kind]
        self._gemma = str(config.model_type).startswith("gemma")
        self._turned = ARCHITECTURES[config.model_type] == "llama"
        self._stack = ExitStack()
        with named_faults():
            weights = self._stack.enter_context(Weights(source))
            layout = read_layout(source)
            plain = {_plain(name): _reader(weights, name) for name in weights}
            self.sees = any(_SEES.search(name) for name in plain)
            self._readers = converted_tensors(weights, layout) if layout else plain

    def __enter__(self) -> ModelTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Tensor]:
        """Every tensor of the file, in its order. Raises EngineError of kind model for one that has no place."""
        architecture = gguf.MODEL_ARCH_NAMES
        arch = next(key for key, name in architecture.items() if name == ARCHITECTURES[self.config.model_type])
        names = gguf.get_tensor_name_map(arch, self.config.num_hidden_layers)
        factors = rope_factors(self.config)
        if factors is not None:
            yield Tensor("rope_freqs.weight", tuple(factors.shape), F32, lambda: factors)
        for name in self._readers:
            if not self._left_out(name):
                yield self._tensor(name, names)

    def _left_out(self, name: str) -> bool:
        tied = name == "lm_head.weight" and self.config.tie_word_embeddings
        return (
            tied or bool(_SEES.search(name)) or name.endswith(("rotary_emb.inv_freq", "attention.bias", ".masked_bias"))
        )

    def _tensor(self, name: str, names: TensorNameMap) -> Tensor:
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise model_failure(
                f"model: its tensor {name} has no place in a GGUF file.", "Choose another format.", "model"
            )
        with named_faults():
            shape = tuple(self._readers[name]().shape)
        return Tensor(place, shape, self._format(shape), lambda: self._read(name))

    def _format(self, shape: tuple[int, ...]) -> GGMLQuantizationType:
        if len(shape) < 2:
            return F32  # norms and biases: small, and llama.cpp wants them so
        if self._kind == GGMLQuantizationType.Q8_0 and shape[-1] % 32:
            return GGMLQuantizationType.F16  # rows that are no whole blocks
        return self._kind

    def _read(self, name: str) -> torch.Tensor:
        with named_faults():
            tensor = self._readers[name]()
        if self._gemma and name.endswith("norm.weight"):
            return tensor.float() + 1  # Gemma's norms are stored as the distance from one
        side = name.split(".")[-2] if "." in name else ""
        if self._turned and side in ("q_proj", "k_proj"):
            heads = self.config.num_attention_heads if side == "q_proj" else self.config.num_key_value_heads
            return _interleaved(tensor, heads, head_size(self.config))
        return tensor


def _plain(name: str) -> str:
    """The name of a tensor of a language model, also of one within a model that sees."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "model.", 1)
    return name.removeprefix("language_model.")


def _reader(weights: Weights, name: str) -> Callable[[], torch.Tensor]:
    return lambda: weights[name]


def _interleaved(tensor: torch.Tensor, heads: int, size: int) -> torch.Tensor:
    """Rows of a head in the order in which llama.cpp rotates them: neighbours are pairs, not the two halves."""
    rest = tensor.shape[1:]
    return tensor.reshape(heads, 2, size // 2, *rest).transpose(1, 2).reshape(heads * size, *rest)


@contextlib.contextmanager
def named_faults() -> Iterator[None]:
    """Damaged weights are said in a sentence."""
    try:
        yield
    except LayoutError as error:
        raise model_failure(f"model: {error}.", "Copy the model again, with all its files.", "model") from error
