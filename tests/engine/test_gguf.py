"""Models as GGUF: llama.cpp reads every architecture, number format and tokenizer as transformers does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from originals import save_original
from safetensors.torch import load_file, save_file
from tiny import EMBER
from tiny_shapes import SHAPES, save_seeing, save_shape

from studio.config import ExportConfig
from studio.engine import export
from studio.engine.failure import EngineError
from studio.engine.formats import gguf, gguf_tensors, llama_cpp
from studio.engine.formats.gguf_tokens import read_words
from studio.events import WarningEvent
from studio.gguf_support import BLIND_NOTE, obstacle
from studio.workspace import Workspace

ALL = 8  # questions and texts of a proof


def written(source: Path, file: Path, kind: str = "f32") -> dict[str, Any]:
    """Write and prove; the report of the proof."""
    seen: list[tuple[int, int]] = []
    about = gguf.write(source, file, kind, lambda done, total: seen.append((done, total)))
    assert seen == [(number, about["tensors"]) for number in range(1, about["tensors"] + 1)]
    report = gguf.prove(source, file)
    assert report["tensors"] == about["tensors"]
    return report


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_reads_what_transformers_reads(tmp_path: Path, name: str) -> None:
    report = written(save_shape(tmp_path / name, name), tmp_path / "model.gguf")
    assert report["passed"], report
    assert report["checked_with"].startswith("xllamacpp")
    assert (report["texts_equal"], report["conversations_equal"], report["prompts"]) == (ALL, 2, ALL)
    # Gemma's activation is looked up in a table of 16 bits there; everything else is float32.
    assert report["max_logprob_difference"] < (5e-3 if "gemma" in name else 2e-4)
    assert report["lead_of_other_tokens"] < 1e-3


@pytest.mark.parametrize(("kind", "allowed"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.3)])
def test_the_built_in_model_answers_alike_in_every_number_format(tmp_path: Path, kind: str, allowed: float) -> None:
    report = written(EMBER, tmp_path / "ember.gguf", kind)
    assert report["passed"], report
    # Of answers rounded to 8 bits one may turn where two words are as good as equally likely.
    assert report["answers_equal"] >= (ALL - 1 if kind == "q8_0" else ALL)
    assert report["max_logprob_difference"] < allowed
    assert report["lead_of_other_tokens"] < allowed / 3
    assert report["rows"][0]["file"].startswith("I'm Ember")
    told = [text for row in report["rows"] for text in (row["model"], row["file"])]
    assert not [text for text in told if "<|" in text], "an answer ends at its end"
    size = {"f16": 11.2e6, "bf16": 11.2e6, "q8_0": 6.0e6}[kind]
    assert (tmp_path / "ember.gguf").stat().st_size < size


def test_a_model_in_its_original_layout_is_written_as_what_it_is_converted_to(tmp_path: Path) -> None:
    source = save_original(tmp_path / "internlm2", "internlm2", context=512)
    report = written(source, tmp_path / "model.gguf")
    assert report["passed"], report
    assert report["answers_equal"] == report["prompts"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["internlm2", "model.gguf"]  # nothing is left behind


@pytest.mark.parametrize("words", ["gpt2", "smollm", "tekken", "gpt4o"])
def test_byte_level_tokenizers_cut_texts_alike(tmp_path: Path, words: str) -> None:
    report = written(save_shape(tmp_path / "model", "qwen2", words), tmp_path / "model.gguf")
    assert report["passed"], report


def test_of_a_model_that_sees_the_language_model_is_written(tmp_path: Path) -> None:
    source = save_seeing(tmp_path / "gemma3")
    report = written(source, tmp_path / "model.gguf")
    assert report["passed"], report
    assert (report["prompts"], report["texts_equal"]) == (ALL, ALL)
    notes = gguf.write(source, tmp_path / "again.gguf", "q8_0", lambda done, total: None)["notes"]
    assert notes == [BLIND_NOTE]


def test_the_head_names_ends_context_and_template(tmp_path: Path) -> None:
    source = tmp_path / "ember"
    shutil.copytree(EMBER, source)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    gguf.write(source, tmp_path / "model.gguf", "f16", lambda done, total: None)
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (2, 0)
    assert fields["qwen3.context_length"] == 1024
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "generation" not in fields["tokenizer.chat_template"].replace("add_generation_prompt", "")


def test_heads_in_the_wrong_order_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tensors, "_interleaved", lambda tensor, heads, size: tensor)
    report = written(save_shape(tmp_path / "llama", "llama"), tmp_path / "model.gguf")
    assert not report["passed"]
    assert "the chances of its next words differ" in report["reason"]


def test_a_changed_number_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    file = tmp_path / "model.gguf"
    report = written(EMBER, file, "f16")
    assert report["passed"]
    assert report["checked_with"] == "reading it back only; llama.cpp was not asked"
    tensor = next(one for one in GGUFReader(file).tensors if one.name == "blk.3.ffn_up.weight")
    data = bytearray(file.read_bytes())
    data[tensor.data_offset + 5] ^= 0x40
    file.write_bytes(data)
    report = gguf.prove(EMBER, file)
    assert not report["passed"]
    assert "blk.3.ffn_up.weight is off by" in report["reason"]


def test_an_export_that_llama_cpp_was_not_asked_about_says_how_to_have_it_asked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    run = workspace.create_run(ExportConfig(format="gguf", model=str(EMBER), out=str(workspace.exports / "g")))
    assert export.main(str(run.path)) == 0
    (warning,) = [event for event in run.read_events()[0] if isinstance(event, WarningEvent)]
    assert warning.message.startswith("format: llama.cpp was not asked")
    assert warning.message.endswith("pip install xllamacpp")


def test_llama_cpp_is_given_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def run(*_: Any, env: dict[str, str], **__: Any) -> Any:
        given.append(env)
        raise OSError

    for name, value in {"HF_TOKEN": "secret", "OPENAI_API_KEY": "secret", "CRUCIBLE_RUN": "mark"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(llama_cpp.subprocess, "run", run)
    with pytest.raises(OSError):  # noqa: PT011
        llama_cpp.ask({})
    assert "secret" not in given[0].values()
    assert given[0]["CRUCIBLE_RUN"] == "mark"  # what a killed engine leaves is found by it


def test_a_file_that_is_cut_off_is_said_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    gguf.write(EMBER, file, "f16", lambda done, total: None)
    with file.open("r+b") as opened:
        opened.truncate(100_000)
    with pytest.raises(EngineError, match="the GGUF file cannot be read"):
        gguf.prove(EMBER, file)
    with pytest.raises(llama_cpp.Refused, match="load"):
        llama_cpp.ask({"file": str(file), "context": 64, "tokens": 1, "texts": [], "conversations": [], "prompts": []})


def test_numbers_beyond_float16_are_refused_with_what_to_do(tmp_path: Path) -> None:
    source = save_shape(tmp_path / "qwen2", "qwen2")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="too large for f16") as caught:
        gguf.write(source, tmp_path / "model.gguf", "f16", lambda done, total: None)
    assert caught.value.error.hint == "Choose bf16."
    gguf.write(source, tmp_path / "second.gguf", "bf16", lambda done, total: None)


def test_a_missing_tensor_file_and_unknown_architectures_are_said(tmp_path: Path) -> None:
    source = save_shape(tmp_path / "qwen3", "qwen3")
    assert obstacle(source) is None
    (source / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="damaged or missing"):
        gguf.write(source, tmp_path / "model.gguf", "f16", lambda done, total: None)
    (source / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(EngineError, match="it is of the type 'opt', and possible are Llama"):
        gguf.write(source, tmp_path / "model.gguf", "f16", lambda done, total: None)


def test_no_more_than_one_tensor_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tensors, "ROWS_BYTES", 4096)
    sizes: list[int] = []
    quantize = gguf_tensors.gguf.quantize
    monkeypatch.setattr(
        gguf_tensors.gguf, "quantize", lambda rows, kind: sizes.append(rows.nbytes) or quantize(rows, kind)
    )
    gguf.write(EMBER, tmp_path / "model.gguf", "q8_0", lambda done, total: None)
    assert max(sizes) <= 4096
    assert len(sizes) > 1000


def test_a_template_for_a_model_without_a_begin_token_writes_none(tmp_path: Path) -> None:
    words = read_words(save_shape(tmp_path / "qwen2", "qwen2"))
    assert words.tokenizer.bos_token is None
    assert words.template is not None
    assert words.template.startswith("{%- set bos_token = '' %}")
