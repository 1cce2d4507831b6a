"""What is said about GGUF and Modelfiles, in Chinese."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from studio import gguf_support, gguf_vocabulary, ollama_template
from studio.ui.wording import in_chinese

ROOT = Path(gguf_support.__file__).resolve().parent
SOURCES = [
    *(ROOT / f"{name}.py" for name in ("gguf_support", "gguf_vocabulary", "ollama_template")),
    *sorted((ROOT / "engine" / "formats").glob("gguf*.py")),
    ROOT / "engine" / "formats" / "ollama.py",
]
_SAID = re.compile(
    r'(?:Unsupported|Unsayable|yield|return|model_failure|"model"|Readback\([^"]*)\(?\s*f?"([^"\n]{25,})"'
)


def sentences() -> list[str]:
    """Reasons and sentences as they stand in the code, with something in each place."""
    found = [text for path in SOURCES for text in _SAID.findall(path.read_text(encoding="utf-8"))]
    texts = {re.sub(r"\{[^{}]*\}", "x1", re.sub(r"\{[^{}]*!r\}", "'x1'", text)) for text in found}
    return sorted(text.removeprefix("model: ") for text in texts if len(re.findall(r"\b[a-z]+\b", text)) > 3)


def test_there_are_sentences() -> None:
    assert len(sentences()) > 25


@pytest.mark.parametrize("sentence", sentences())
def test_every_reason_can_be_read_in_chinese(sentence: str) -> None:
    assert in_chinese(sentence) is not None


@pytest.mark.parametrize("module", [gguf_vocabulary, ollama_template])
def test_every_note_can_be_read_in_chinese(module: object) -> None:
    notes = [text for name, text in vars(module).items() if name.endswith("_NOTE")]
    assert notes
    assert all(in_chinese(note) for note in notes)


def test_a_reason_within_a_sentence_is_translated_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "falcon"}))
    said = gguf_support.obstacle(tmp_path)
    assert said is not None
    assert in_chinese(said) == f"{tmp_path.name} 不能写成 GGUF：它的类型是“falcon”，能写的有 {gguf_support.TITLES}。"
