"""Modelfiles: the template trained with, what ends an answer, and what cannot be said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import EMBER
from tiny_shapes import save_shape
from transformers import AutoTokenizer

from studio.engine.failure import EngineError
from studio.engine.formats import ollama
from studio.go_template import render
from studio.records.template_names import named_template


def template_of(folder: Path) -> str:
    """The template within the Modelfile, as Ollama takes it out."""
    return (folder / "Modelfile").read_text(encoding="utf-8").split('TEMPLATE """')[1].split('"""')[0]


def test_the_modelfile_writes_what_transformers_writes(tmp_path: Path) -> None:
    report = ollama.write(EMBER, tmp_path, "ember.gguf", 'You are "Ember",\na small assistant.')
    assert (report["passed"], report["conversations"], report["stops"]) == (True, 40, ["<|im_end|>"])
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith('FROM ./ember.gguf\nTEMPLATE """')
    assert 'SYSTEM """You are "Ember",\na small assistant."""\nPARAMETER stop "<|im_end|>"\n' in text
    assert text.endswith("PARAMETER num_ctx 1024\n")  # Ollama would give it more than it was trained for
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi {{ .Role }}"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "你是谁？"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(EMBER)
    wanted = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    messages = [{"Role": one["role"], "Content": one["content"]} for one in talk]
    assert render(template_of(tmp_path), {"System": "Be brief.", "Messages": messages}) == wanted


def test_the_begin_token_is_left_to_ollama_where_the_file_says_so(tmp_path: Path) -> None:
    source = save_shape(tmp_path / "gemma", "gemma")
    (source / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [2], "temperature": 0.7, "repetition_penalty": 1.1, "stop_strings": ["\nUser:", "END"]}
        )
    )
    report = ollama.write(source, tmp_path, "model.gguf", None)
    assert report["passed"]
    assert '{{- if eq $before "" -}}{{- "<start_of_turn>user\\n" -}}' in template_of(tmp_path)
    assert report["stops"] == ["</s>", "<end_of_turn>", "END"]  # one with a line end has no place in a Modelfile
    assert report["parameters"] == {"temperature": 0.7, "repeat_penalty": 1.1, "num_ctx": 1024}
    assert "SYSTEM" not in (tmp_path / "Modelfile").read_text(encoding="utf-8")


def test_what_a_modelfile_cannot_say_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "ember"
    shutil.copytree(EMBER, source)
    with pytest.raises(EngineError, match="quotation marks that end a text"):
        ollama.write(source, tmp_path, "ember.gguf", 'Say """ never.')
    (source / "chat_template.jinja").write_text(named_template("chatglm2").source, encoding="utf-8")
    with pytest.raises(EngineError, match="its chat template cannot be written for Ollama: what it writes before"):
        ollama.write(source, tmp_path, "ember.gguf", None)
    assert not (tmp_path / "Modelfile").exists()
