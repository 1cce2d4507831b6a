"""Which models are converted, which are refused and why; and tokenizers read from their original files."""

import base64
import json
import struct
from pathlib import Path

import pytest

from studio.layout_configs import CONVERTERS, Refused
from studio.layouts import FAMILIES, detect, read_layout
from studio.presets import models
from studio.records.chat_tokenizer import ChatTokenizer, has_tokenizer
from studio.records.errors import DataError
from studio.records.original_tokenizer import QWEN_SPECIALS, QWEN_WORDS, from_ranks, from_sentencepiece, read_original
from studio.records.sentencepiece_file import Kind, Piece, SentencePieceModel, parse
from studio.records.template_names import template_names

LLAMA = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
INTERNLM2 = LLAMA | {"model_type": "internlm2", "num_key_value_heads": 2, "rope_theta": 1000000}
BAICHUAN = LLAMA | {"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"]}
QWEN = LLAMA | {"model_type": "qwen", "intermediate_size": 192, "seq_length": 64}
CHATGLM = {
    "model_type": "chatglm", "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "kv_channels": 16,
    "multi_query_attention": True, "multi_query_group_num": 2, "num_layers": 2, "padded_vocab_size": 300,
    "seq_length": 64, "add_qkv_bias": True, "add_bias_linear": False,
}  # fmt: skip
MINICPM = LLAMA | {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}


def test_what_the_library_reads_itself_has_no_layout():
    for kind in ("llama", "qwen2", "internlm3", "glm", ""):
        assert detect({"model_type": kind}) is None
    assert detect({}) is None
    assert detect({"model_type": ["internlm2"]}) is None


def test_numbers_go_where_the_architecture_wants_them():
    config = detect(INTERNLM2 | {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "bias": True}).converted_config()
    assert (config["model_type"], config["num_key_value_heads"], config["attention_bias"]) == ("llama", 2, True)
    assert config["rope_parameters"] == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 3.0}
    assert detect(QWEN).converted_config()["intermediate_size"] == 96
    assert detect(QWEN).converted_config()["max_position_embeddings"] == 64
    glm = detect(CHATGLM).converted_config()
    assert (glm["num_key_value_heads"], glm["head_dim"], glm["intermediate_size"]) == (2, 16, 96)
    granite = detect(MINICPM).converted_config()
    assert (granite["logits_scaling"], granite["embedding_multiplier"]) == (4.0, 12)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BAICHUAN | {"num_attention_heads": 40, "hidden_size": 640}, "ALiBi"),
        ({k: v for k, v in BAICHUAN.items() if k != "max_position_embeddings"}, "ALiBi"),
        (BAICHUAN | {"architectures": None}, "which generation"),
        (INTERNLM2 | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "stretches positions"),
        (INTERNLM2 | {"rope_scaling": "dynamic"}, "stretches positions"),
        (INTERNLM2 | {"hidden_act": "gelu"}, "hidden_act"),
        (INTERNLM2 | {"architectures": ["InternLM2ForRewardModel"]}, "InternLM2ForRewardModel"),
        (INTERNLM2 | {"quantization_config": {"bits": 4}}, "quantised already"),
        (INTERNLM2 | {"hidden_size": "64"}, "no usable hidden_size"),
        (INTERNLM2 | {"num_hidden_layers": -2}, "no usable num_hidden_layers"),
        (INTERNLM2 | {"num_attention_heads": True}, "no usable num_attention_heads"),
        (INTERNLM2 | {"num_key_value_heads": 3}, "do not divide"),
        (INTERNLM2 | {"rope_theta": float("nan")}, "no usable rope_theta"),
        (QWEN | {"visual": {}}, "pictures"),
        (QWEN | {"kv_channels": 32}, "another width"),
        (CHATGLM | {"rope_ratio": 50}, "rope_ratio"),
        (CHATGLM | {"quantization_bit": 4}, "quantization_bit"),
        ({k: v for k, v in CHATGLM.items() if k != "multi_query_attention"}, "ChatGLM2 on"),
        (MINICPM | {"num_experts": 8}, "experts"),
        (MINICPM | {"sparse_config": {"kernel_size": 32}}, "experts"),
        ({k: v for k, v in MINICPM.items() if k != "scale_emb"}, "scale_emb"),
        ({"model_type": "moss"}, "CodeGen"),
    ],
)  # fmt: skip
def test_what_could_not_be_exact_is_refused_with_the_reason(config, words):
    with pytest.raises(Refused, match=words):
        detect(config)


def test_every_convertible_family_has_a_converter_and_a_template_that_exists():
    assert {key for key, family in FAMILIES.items() if family.becomes} == CONVERTERS.keys()
    assert {family.template for family in FAMILIES.values()} - {""} <= set(template_names())


def test_the_presets_agree():
    """What the presets say of loading is what happens: only the models with ALiBi need code of their own."""
    refused = {model.name for model in models().values() if model.loading == "remote_code"}
    assert refused == {"baichuan_13b_base", "baichuan_13b_chat", "baichuan2_13b_base", "baichuan2_13b_chat"}
    converted = {model.name.split("_")[0] for model in models().values() if model.loading == "converted"}
    assert converted == {
        "internlm2",
        "internlm",
        "qwen",
        "chatglm2",
        "chatglm3",
        "minicpm",
        "deepseek",
        "baichuan",
        "baichuan2",
    }


def test_no_readable_config_is_no_layout(tmp_path: Path):
    assert read_layout(tmp_path) is None
    for text in ("[", "[1]", "9" * 5000, '{"model_type": 7}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        assert read_layout(tmp_path) is None
    assert not has_tokenizer(tmp_path)


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def file_of(pieces, *, algorithm=2, dummy_prefix=1) -> bytes:
    data = b""
    for text, score, kind in pieces:
        data += field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + field(3, kind))
    return data + field(2, field(3, algorithm)) + field(3, field(3, dummy_prefix) + field(4, 0))


BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES]
PIECES += [
    ("ab", -0.0, 1),
    ("bc", -1.0, 1),
    ("▁ab", -2.0, 1),
    ("▁", -3.0, 1),
    ("a", -4.0, 1),
    ("b", -5.0, 1),
    ("c", -6.0, 1),
]


def texts(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).tokens


def test_a_sentencepiece_file_is_read_and_its_merges_go_by_score():
    model = parse(file_of(PIECES))
    assert model.pieces[1] == Piece("<s>", 0.0, Kind.CONTROL)
    assert (model.algorithm, model.dummy_prefix, model.remove_extra_spaces) == (2, True, False)
    tokenizer = from_sentencepiece(model)
    assert texts(tokenizer, "abc") == ["▁ab", "c"]  # "ab" comes before "bc", then it joins the space
    assert texts(tokenizer, "cbc é") == ["▁", "c", "bc", "▁", "<0xC3>", "<0xA9>"]
    assert texts(tokenizer, "a<s>b") == ["▁", "a", "<s>", "▁", "b"]
    assert tokenizer.decode(tokenizer.encode("abc é").ids) == "abc é"
    assert texts(from_sentencepiece(parse(file_of(PIECES, dummy_prefix=0))), "abc") == ["ab", "c"]


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 40, b"\x0a\xff\xff", file_of(PIECES)[:50], b"\x0a\x03\x12\x01x", field(1, 5), b"<html>no</html>"],
)
def test_a_damaged_sentencepiece_file_is_one_error(data):
    with pytest.raises(ValueError, match=r"no pieces|no SentencePiece|is not a valid Kind"):
        parse(data)


def test_unigrams_and_doubles_are_refused():
    with pytest.raises(ValueError, match="BPE"):
        from_sentencepiece(parse(file_of(PIECES, algorithm=1)))
    with pytest.raises(ValueError, match="twice"):
        from_sentencepiece(SentencePieceModel((Piece("a", 0, Kind.NORMAL),) * 2, 2))


def ranks(tokens) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


SINGLE = [bytes([byte]) for byte in range(256)]


def test_a_tiktoken_file_merges_by_rank_and_numbers_its_specials_behind():
    tokenizer = from_ranks(ranks([*SINGLE, b"bc", b"ab", b"abc"]), QWEN_WORDS, QWEN_SPECIALS, nfc=True)
    assert texts(tokenizer, "abc") == ["abc"]
    assert texts(tokenizer, "abx") == ["ab", "x"]
    assert tokenizer.token_to_id("<|endoftext|>") == 259
    assert tokenizer.token_to_id("<|im_end|>") == 261
    assert texts(tokenizer, "12<|im_end|>") == ["1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("你好 e\u0301").ids) == "你好 é"


@pytest.mark.parametrize("data", [b"", b"YQ== 0\n", b"!! 0\n", b"YQ==\n", ranks(SINGLE[1:]), ranks([*SINGLE, b"a"])])
def test_a_damaged_tiktoken_file_is_one_error(data):
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        from_ranks(data, QWEN_WORDS, (), nfc=False)


@pytest.fixture
def internlm2(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(INTERNLM2), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(file_of([*PIECES, ("[UNUSED_TOKEN_145]", 0.0, 4)]))
    return folder


def test_a_folder_gives_its_tokenizer_with_names_template_and_bos(internlm2: Path):
    chat = ChatTokenizer.from_folder(internlm2)
    assert has_tokenizer(internlm2)
    assert chat.backend.token_to_id("</s>") == chat.eos_id == 2
    assert "<|im_start|>" in chat.template.source
    assert chat.backend.encode("ab").tokens == ["<s>", "▁ab"]


def test_tokens_that_the_folder_renames_keep_their_number(internlm2: Path):
    number = str(len(PIECES))
    config = {"added_tokens_decoder": {number: {"content": "<|im_end|>", "special": True}}, "bos_token": "<s>"}
    (internlm2 / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = read_original(internlm2)
    assert found
    assert found.stop_words == ("<|im_end|>",)
    chat = ChatTokenizer.from_folder(internlm2)
    assert chat.encode_text("a<|im_end|>")[-1] == int(number)
    (internlm2 / "tokenizer_config.json").write_text('{"chat_template": "mine {{ messages }}"}', encoding="utf-8")
    assert ChatTokenizer.from_folder(internlm2).template.source == "mine {{ messages }}"


@pytest.mark.parametrize(
    ("name", "data"), [("tokenizer.model", b"\xff\xff"), ("tokenizer_config.json", b"{"), ("tokenizer.json", b"{}")]
)
def test_a_damaged_tokenizer_is_one_sentence(internlm2: Path, name: str, data: bytes):
    (internlm2 / name).write_bytes(data)
    with pytest.raises(DataError, match=r"In m, .* cannot be read \(.*\)\. Copy the model again\.") as caught:
        ChatTokenizer.from_folder(internlm2)
    assert caught.value.field == "model.model_name_or_path"


def test_no_tokenizer_at_all_is_said(internlm2: Path):
    (internlm2 / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"there is no tokenizer\.json, tokenizer\.model"):
        ChatTokenizer.from_folder(internlm2)


def test_chatglms_own_tokens_follow_the_pieces(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM), encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(file_of(PIECES))
    chat = ChatTokenizer.from_folder(tmp_path)
    start = len(PIECES)
    assert chat.backend.encode("ab").ids[:2] == [start + 1, start + 3]  # [gMASK] sop
    assert chat.encode_text("[gMASK]<sop><|user|>") == [start + 1, start + 3, start + 6]
    assert chat.encode_text("sop")[-1] < start  # the word, not the token


def test_glm4_keeps_a_list_of_ranks_in_tokenizer_model(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM), encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(ranks([*SINGLE, b"12", b"123"]))
    tokens = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
    listed = {str(258 + place): {"content": text, "special": True} for place, text in enumerate(tokens)}
    config = {"added_tokens_decoder": listed, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    chat = ChatTokenizer.from_folder(tmp_path)
    assert chat.encode_text("[gMASK]<sop>123")[:2] == [260, 262]
    assert texts(chat.backend, "123") == ["123"]
    assert texts(chat.backend, "1234") == ["123", "4"]  # at most three digits in a word
    assert chat.eos_id == 258


def test_vocab_and_merges_of_gpt2_are_read(tmp_path: Path):
    config = LLAMA | {"model_type": "aquila"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocab = {text: number for number, text in enumerate(["</s>", "Ġ", "a", "b", "ab", "Ġab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ messages }}"}', "utf-8")
    chat = ChatTokenizer.from_folder(tmp_path)
    assert texts(chat.backend, "ab ab") == ["ab", "Ġab"]
    assert chat.eos_id == 0
