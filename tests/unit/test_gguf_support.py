"""What is said before a model is written as GGUF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from studio.gguf_support import context_length, modelfile_obstacle, obstacle
from studio.gguf_vocabulary import Unsupported, merge_ranks, vocabulary
from studio.records.template_names import named_template

EMBER = Path(__file__).resolve().parents[2] / "assets" / "models" / "ember"
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "hidden_act": "silu"}
GEMMA2 = {"model_type": "gemma2", "head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in model's small files."""
    for file in EMBER.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / file.name)
    return tmp_path


def with_config(folder: Path, config: dict[str, Any]) -> str | None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return obstacle(folder)


def test_the_built_in_model_can_be_written() -> None:
    assert obstacle(EMBER) is None
    assert modelfile_obstacle(EMBER) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}, "its weights are quantised already"),
        ({"model_type": "falcon"}, "it is of the type 'falcon', and possible are Llama, Mistral"),
        (LLAMA | {"hidden_act": "relu"}, "its activation is 'relu', and llama.cpp takes silu for it"),
        (LLAMA | {"rope_scaling": {"type": "longrope"}}, "positions in a way that is not written ('longrope')"),
        (LLAMA | {"rope_parameters": {"rope_type": "yarn", "mscale": 0.7}}, "it scales its attention with"),
        ({"model_type": "qwen3", "attention_bias": True}, "its attention has biases"),
        (GEMMA2 | {"query_pre_attn_scalar": 224}, "it scales its attention by 224, and llama.cpp by 256"),
        (GEMMA2 | {"layer_types": ["full_attention"] * 2}, "its layers with a sliding window are not those"),
        ({"model_type": "moss"}, "no conversion has been checked"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_said_before(folder: Path, config: dict[str, Any], said: str) -> None:
    sentence = with_config(folder, config)
    assert sentence is not None
    assert said in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("config", [LLAMA, LLAMA | {"rope_scaling": None}, GEMMA2, {"model_type": "gemma3_text"}])
def test_what_is_supported_is_not_refused(folder: Path, config: dict[str, Any]) -> None:
    assert with_config(folder, config) is None


def test_folders_without_readable_files_are_said(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in str(obstacle(folder))
    (folder / "config.json").unlink()
    assert "has no config.json" in str(obstacle(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"type": "WordPiece"}}, "its tokenizer is of the kind WordPiece"),
        ({"normalizer": {"type": "Lowercase"}}, "its tokenizer rewrites texts first (Lowercase)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its tokenizer has neither bytes nor SentencePiece's pieces"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
            "its tokenizer puts a space before every text",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ]}},
            "its tokenizer cuts texts into words in a way llama.cpp has no name for",
        ),
    ],
)  # fmt: skip
def test_tokenizers_llama_cpp_cannot_have(change: dict[str, Any], said: str) -> None:
    content = json.loads((EMBER / "tokenizer.json").read_text(encoding="utf-8"))
    with pytest.raises(Unsupported) as caught:
        vocabulary(content | change)
    assert said in str(caught.value)


def test_cutting_around_chinese_characters_matters_once_a_merge_crosses_one() -> None:
    content = json.loads((EMBER / "tokenizer.json").read_text(encoding="utf-8"))
    assert vocabulary(content).pre == "qwen2"
    content["model"]["merges"].append(["ä½ł", "å¥½"])  # 你 and 好 as bytes
    with pytest.raises(Unsupported, match="in a way llama.cpp has no name for"):
        vocabulary(content)


def test_scores_can_only_stand_for_merges_that_are_complete() -> None:
    vocab = {text: number for number, text in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    merges = [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]
    assert merge_ranks({"vocab": vocab, "merges": merges}) == {"bc": 0, "ab": 1, "abc": 2}
    with pytest.raises(Unsupported, match="in an order that no scores describe"):
        merge_ranks({"vocab": vocab, "merges": [pair for pair in merges if pair != ["a", "bc"]]})


def test_the_context_ends_where_a_window_would_be_left_out() -> None:
    mistral = {"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}
    assert context_length(mistral) == 4096
    assert context_length(mistral | {"sliding_window": None}) == 32768
    assert context_length(mistral | {"model_type": "gemma2"}) == 32768  # llama.cpp has the window there
    assert context_length(mistral | {"model_type": "qwen2", "use_sliding_window": False}) == 32768


def test_a_template_that_counts_rounds_is_refused_for_ollama(folder: Path) -> None:
    sentence = modelfile_obstacle(folder, "chatglm2")
    assert sentence is not None
    assert "cannot be written for Ollama: what it writes before a message depends on more than" in sentence


def test_the_template_of_the_adapter_counts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    adapter = tmp_path_factory.mktemp("adapter")
    assert modelfile_obstacle(folder, adapter=adapter) is None  # it brings none of its own
    (adapter / "chat_template.jinja").write_text(named_template("chatglm2").source, encoding="utf-8")
    assert "cannot be written for Ollama" in str(modelfile_obstacle(folder, adapter=adapter))
