"""Models as GGUF: llama.cpp reads every architecture as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.engine.formats import gguf
from tiny_shapes import SHAPES, save_shape


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_reads_what_transformers_reads(tmp_path: Path, name: str) -> None:
    source, file = save_shape(tmp_path / name, name), tmp_path / "model.gguf"
    gguf.write(source, file, "f32", lambda done, total: None)
    report = gguf.prove(source, file)
    assert report["passed"], report
    print(name, report["max_logprob_difference"], report["answers_equal"], report['rows'][:1], report['lead_of_other_tokens'])
