"""Writes a model as GGUF, tensor by tensor, and proves that the file says what the model says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from studio.engine.failure import model_failure
from studio.engine.formats import llama_cpp
from studio.engine.formats.gguf_model import FILE_TYPES, describe, read_config
from studio.engine.formats.gguf_proof import prove_in_llama_cpp
from studio.engine.formats.gguf_readback import read_back
from studio.engine.formats.gguf_tensors import ModelTensors
from studio.engine.formats.gguf_tokens import read_words, write_words
from studio.engine.loading import blaming
from studio.gguf_support import ARCHITECTURES, BLIND_NOTE, obstacle

READ_BACK_ONLY = "reading it back only; llama.cpp was not asked"


def write(source: Path, file: Path, kind: str, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Write the model in `source` to `file`; `kind` is f32, f16, bf16 or q8_0. Returns what was written.

    `progress` is told (tensors written, all of them).

    Raises:
        EngineError: kind model, for what GGUF cannot hold.
        OSError: the disk is full.
    """
    reason = obstacle(source)
    if reason:
        raise model_failure(f"model: {reason}", "Choose another format.", "model")
    with blaming("model"):
        config = read_config(source)
        words = read_words(source)
    architecture = ARCHITECTURES[config.model_type]
    with ModelTensors(source, config, kind) as model:
        tensors = list(model)
        writer = gguf.GGUFWriter(file, architecture)
        try:
            describe(writer, config, file.stem, kind)
            write_words(writer, words, config.vocab_size)
            for tensor in tensors:
                writer.add_tensor_info(tensor.name, tensor.shape, tensor.plain, tensor.nbytes, tensor.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, tensor in enumerate(tensors, start=1):
                writer.write_tensor_data(tensor)  # type: ignore[arg-type]  # it asks for nbytes and tofile only
                progress(done, len(tensors))
        finally:
            writer.close()
    return {
        "file": file.name,
        "size_bytes": file.stat().st_size,
        "type": kind,
        "architecture": architecture,
        "tensors": len(tensors),
        "tokenizer": f"{words.kind.model}/{words.kind.pre}",
        "notes": [*words.kind.notes, *([BLIND_NOTE] if model.sees else [])],
    }


def prove(source: Path, file: Path) -> dict[str, Any]:
    """Compare a GGUF file with the model it was made of: `passed`, `reason`, and the figures.

    Every number is read back and compared, by the code that wrote it. Where llama.cpp's Python module is installed,
    it also has to cut the same texts into the same tokens, write conversations alike and answer the same questions as
    transformers does.
    """
    config, words = read_config(source), read_words(source)
    kind = kind_of(file)
    with ModelTensors(source, config, kind) as model:
        numbers = read_back(model, words, file)
    report: dict[str, Any] = {
        "tensors": numbers.tensors,
        "max_weight_difference": numbers.largest_difference,
        "checked_with": READ_BACK_ONLY,
        "reason": numbers.reason,
    }
    if not report["reason"] and llama_cpp.available():
        report |= prove_in_llama_cpp(source, file, words, kind)
    report["passed"] = not report["reason"]
    return report


def kind_of(file: Path) -> str:
    """The number format a GGUF file says it is in. Raises EngineError of kind model for one that cannot be read."""
    try:
        field = gguf.GGUFReader(file).fields["general.file_type"]
        return next(kind for kind, number in FILE_TYPES.items() if number == field.contents())
    except Exception as error:  # the reader raises whatever comes up
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise model_failure(f"out: the GGUF file cannot be read ({reason}).", "Write it again.", "out") from error
