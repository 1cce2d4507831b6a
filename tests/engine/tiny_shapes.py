"""Tiny random models of every architecture that is written as GGUF, sharp enough that their likeliest words are stable.

Their tokenizers are made here: bytes with merges under several pre-tokenizers, and SentencePiece's pieces.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from studio.records.original_tokenizer import QWEN_WORDS, from_sentencepiece
from studio.records.sentencepiece_file import BPE, Kind, Piece, SentencePieceModel
from studio.records.template_names import named_template

LLAMA3_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST, _SHORT = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_WORDS = rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}{_REST}"
GPT4O_WORDS = rf"{_FIRST}{_UPPER}*{_LOWER}+{_SHORT}?|{_FIRST}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}{_REST}"
CORPUS = (
    "Hello world, this is a test. The year 2024 has 366 days; I'm sure they've said it's fine, can't you see?",
    "def area(r):\n    return 3.14 * r**2\n\n  two spaces and tabs\t\tare here  \n",
    "你好，世界！人工智能是什么？我的名字是小丹。谢谢你！一加一等于几？",
    "Who are you? What is the capital of France? Name it. Repeat this word: lantern. Say hello, say it again.",
    "café naïve Ünïcödé круг こんにちは 안녕하세요",
)
Settings = dict[str, Any]
SIZES: Settings = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}
GEMMA: Settings = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
# Name -> (model_type, what differs, tokenizer)
SHAPES: dict[str, tuple[str, Settings, str]] = {
    "llama": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}, "llama3"),
    "llama_biased": (
        "llama",
        {"attention_bias": True, "head_dim": 32, "rope_parameters": LINEAR},
        "pieces",
    ),
    "mistral": ("mistral", {"sliding_window": 512}, "pieces"),
    "internlm3": ("internlm3", {"bias": True, "qkv_bias": True, "head_dim": 16}, "pieces_first"),
    "qwen2": ("qwen2", {"rope_parameters": YARN}, "qwen"),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}, "qwen"),
    "gemma": ("gemma", {"head_dim": 32}, "gemma"),
    "gemma2": ("gemma2", GEMMA, "gemma"),
    "gemma3": ("gemma3_text", GEMMA | {"num_hidden_layers": 7}, "gemma"),
}  # fmt: skip


def save_shape(folder: Path, name: str, words: str | None = None) -> Path:
    """The model called `name` of SHAPES, in float32; `words`: with another tokenizer."""
    kind, settings, own = SHAPES[name]
    tokenizer = tokenizer_of(words or own)
    size = len(tokenizer) + 5  # more rows than tokens, as many a model has
    named = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, **SIZES | settings | named | {"vocab_size": size})
    torch.manual_seed(sum(map(ord, name)))
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("norm.weight"):
                parameter.uniform_(-0.3, 0.3).add_(0.0 if kind.startswith("gemma") else 1.0)
            elif parameter.dim() == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
        if kind.startswith("gemma"):  # which multiplies them by 8, and would do nothing but repeat its question
            model.get_input_embeddings().weight.mul_(0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_seeing(folder: Path) -> Path:
    """A Gemma 3 that also sees, in float32."""
    tokenizer = tokenizer_of("gemma")
    kind, settings, _ = SHAPES["gemma3"]
    named = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("bos", "eos", "pad")}
    text = SIZES | settings | named | {"vocab_size": len(tokenizer), "model_type": kind}
    sight = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=sight, mm_tokens_per_image=4)
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5)
        model.get_input_embeddings().weight.mul_(0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer: bytes within words as Llama 3, Qwen, GPT-2 … cut them, or pieces as Llama 2 or Gemma has."""
    return _pieces(kind) if kind in ("pieces", "pieces_first", "gemma") else _bytes(kind)


def _bytes(kind: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(ignore_merges=kind == "tekken"))
    words = {"llama3": LLAMA3_WORDS, "qwen": QWEN_WORDS, "tekken": TEKKEN_WORDS, "gpt4o": GPT4O_WORDS}.get(kind)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm" else []
    split = [pre_tokenizers.Split(Regex(words), "isolated")] if words else digits
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, plain])
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if kind == "llama3":
        names["bos_token"] = "<|begin_of_text|>"
        backend.post_processor = _opening("<|begin_of_text|>", backend)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = named_template("chatml").source
    return tokenizer


def _opening(text: str, backend: Tokenizer) -> processors.TemplateProcessing:
    pair = [(text, backend.token_to_id(text))]
    return processors.TemplateProcessing(single=f"{text} $A", pair=f"{text} $A {text} $B", special_tokens=pair)


def _pieces(kind: str) -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator(
        [text.replace(" ", "▁") for text in CORPUS], trainers.BpeTrainer(vocab_size=260, show_progress=False)
    )
    texts = [text for text, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    pieces = [Piece("<unk>", 0, Kind.UNKNOWN), Piece("<s>", 0, Kind.CONTROL), Piece("</s>", 0, Kind.CONTROL)]
    pieces += [Piece(f"<0x{byte:02X}>", 0, Kind.BYTE) for byte in range(256)]
    long = [text for text in texts if len(text) > 1]
    pieces += [Piece(text, -float(place), Kind.NORMAL) for place, text in enumerate(long)]
    pieces += [Piece(text, -1e3 - place, Kind.NORMAL) for place, text in enumerate(t for t in texts if len(t) == 1)]
    model = SentencePieceModel(tuple(pieces), BPE, dummy_prefix=kind == "pieces", remove_extra_spaces=False)
    backend = from_sentencepiece(model)
    if kind == "pieces_first":
        backend.normalizer = None  # type: ignore[assignment]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(
        [AddedToken("<start_of_turn>", normalized=False), AddedToken("<end_of_turn>", normalized=False)]
    )
    backend.post_processor = _opening("<s>", backend)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = named_template({"gemma": "gemma"}.get(kind, "llama2_chat")).source
    return tokenizer
