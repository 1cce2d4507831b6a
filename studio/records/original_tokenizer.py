"""The tokenizer of a model folder in an original layout, as tokenizer.json has it: from whichever files it brings.

Read are tokenizer.json, SentencePiece's tokenizer.model, tiktoken's lists of ranked bytes, and GPT-2's vocab.json with
merges.txt. Nothing of the model's own code runs, and neither SentencePiece nor tiktoken is needed.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from studio.layout_configs import Refused
from studio.layouts import Family, Layout, read_layout
from studio.records.errors import DataError
from studio.records.sentencepiece_file import BPE, Kind, SentencePieceModel, parse
from studio.records.template_names import named_template

_RANKED = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
FIELD = "model.model_name_or_path"
SPACE = "▁"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"
GLM4_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
GLM_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
GLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
_NAMES: dict[str, dict[str, str]] = {
    "internlm2": _LLAMA_NAMES,
    "internlm": _LLAMA_NAMES,
    "baichuan": _LLAMA_NAMES | {"pad_token": "<unk>"},
    "minicpm": _LLAMA_NAMES | {"pad_token": "<unk>"},
    "qwen": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "chatglm": {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
}
_WRITES_BOS = ("internlm2", "internlm", "minicpm")  # before a plain text, if the folder does not say


@dataclass(frozen=True)
class OriginalTokenizer:
    """tokenizer.json as text, what tokenizer_config.json says beside it, and the chat template, if there is one."""

    backend: str
    config: dict[str, Any]
    template: str | None
    stop_words: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the files a converted model folder needs."""
        (folder / "tokenizer.json").write_text(self.backend, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config, ensure_ascii=False, indent=1), "utf-8")
        if self.template is not None:
            (folder / "chat_template.jinja").write_bytes(self.template.encode("utf-8"))


def read_original(folder: Path) -> OriginalTokenizer | None:
    """The tokenizer of a folder in an original layout; None for folders that transformers reads itself.

    Raises DataError (field model.model_name_or_path) when its files are missing or damaged.
    """
    layout = _layout(folder)
    if layout is None:
        return None
    family, config = layout.family, _json(folder / "tokenizer_config.json")
    try:
        backend = _backend(folder, family.key, config)
    except (ValueError, KeyError, TypeError, OSError, binascii.Error) as error:
        raise _damaged(folder, error) from None
    except Exception as error:  # tokenizers raises plain Exception
        raise _damaged(folder, error) from None
    names = _special_names(folder, family.key, config, backend)
    _write_bos(backend, family.key, config, names)
    own = config.get("chat_template")
    named = named_template(family.template) if family.template and not isinstance(own, str) else None
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": layout.converted_config()["max_position_embeddings"],
        **names,
    }
    template = own if isinstance(own, str) else named.source if named else None
    return OriginalTokenizer(backend.to_str(), settings, template, _ends(backend, family, named))


def is_original(folder: Path) -> bool:
    """Whether a model folder is in an original layout that is converted."""
    return _layout(folder) is not None


def _layout(folder: Path) -> Layout | None:
    try:
        return read_layout(folder)
    except Refused:
        return None


def _ends(backend: Tokenizer, family: Family, named: Any) -> tuple[str, ...]:
    """Texts that end an answer and are one token of this tokenizer."""
    words = named.stop_words if named else named_template(family.template).stop_words if family.template else ()
    return tuple(word for word in words if backend.token_to_id(word) is not None)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path.parent, error, path.name) from None
    return content if isinstance(content, dict) else {}


def _damaged(folder: Path, error: Exception, name: str = "the tokenizer") -> DataError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return DataError(f"In {folder.name}, {name} cannot be read ({reason}). Copy the model again.", field=FIELD)


def _backend(folder: Path, family: str, config: Mapping[str, Any]) -> Tokenizer:
    listed = _listed_tokens(config)
    if (folder / "tokenizer.json").is_file():
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.no_padding()
        backend.no_truncation()
    elif (folder / "tokenizer.model").is_file():
        data = (folder / "tokenizer.model").read_bytes()
        if _RANKED.match(data):  # GLM-4 gives tiktoken's list this name
            backend = from_ranks(data, GLM4_WORDS, (), nfc=False)
        else:
            backend = from_sentencepiece(parse(data), {number: token.content for number, token in listed.items()})
            backend.add_special_tokens(_glm_tokens() if family == "chatglm" else [])
    elif (folder / "qwen.tiktoken").is_file():
        backend = from_ranks((folder / "qwen.tiktoken").read_bytes(), QWEN_WORDS, QWEN_SPECIALS, nfc=True)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _from_gpt2(folder)
    else:
        raise ValueError("there is no tokenizer.json, tokenizer.model, qwen.tiktoken or vocab.json")
    for _, token in sorted(listed.items()):
        if token.special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
    return backend


def _listed_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Number -> token of tokenizer_config.json's `added_tokens_decoder`."""
    listed = config.get("added_tokens_decoder")
    found = {}
    for number, token in listed.items() if isinstance(listed, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and str(number).isdecimal():
            flags = {name: bool(token.get(name)) for name in ("lstrip", "rstrip", "single_word", "special")}
            found[int(number)] = AddedToken(token["content"], normalized=False, **flags)
    return found


def _glm_tokens() -> list[AddedToken]:
    """ChatGLM2's and 3's own tokens, behind the pieces of the file.

    Two are called sop and eop there and reached only by number; as texts they would be found within words.
    """
    return [AddedToken(text, normalized=False, special=True) for text in (*GLM_SPECIALS, *GLM_ROLES)]


def from_sentencepiece(model: SentencePieceModel, renamed: Mapping[int, str] | None = None) -> Tokenizer:
    """A tokenizer that writes the same ids; `renamed` gives some ids another text. Raises ValueError for unigrams."""
    if model.algorithm != BPE:
        raise ValueError("tokenizer.model is not of the BPE kind")
    texts = [(renamed or {}).get(number, piece.text) for number, piece in enumerate(model.pieces)]
    vocab = {text: number for number, text in enumerate(texts)}
    if len(vocab) < len(texts):
        raise ValueError("tokenizer.model has a piece twice")
    scores = {
        text: piece.score
        for text, piece in zip(texts, model.pieces, strict=True)
        if piece.kind in (Kind.NORMAL, Kind.UNUSED)
    }
    unknown = next((text for text, piece in zip(texts, model.pieces, strict=True) if piece.kind == Kind.UNKNOWN), None)
    order = sorted(scores, key=lambda text: (-scores[text], vocab[text]))
    by_bytes = any(piece.kind == Kind.BYTE for piece in model.pieces)
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges(order, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=by_bytes)
    )
    backend.normalizer = normalizers.Sequence(_preparation(model))
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for text, piece in zip(texts, model.pieces, strict=True):
        if piece.kind in (Kind.UNKNOWN, Kind.CONTROL):
            backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif piece.kind == Kind.USER_DEFINED:
            backend.add_tokens([AddedToken(text, normalized=False)])
    return backend


def _preparation(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def from_ranks(data: bytes, words: str, specials: Sequence[str], *, nfc: bool) -> Tokenizer:
    """The tokenizer of a tiktoken file: lines of base64 bytes and rank. `specials` follow the last rank.

    `words` is the regular expression that divides a text first. Raises ValueError for a damaged file.
    """
    letters = _byte_letters()
    ranks: dict[str, int] = {}
    for line in data.splitlines():
        if line.strip():
            token, rank = line.split()
            ranks["".join(letters[byte] for byte in base64.b64decode(token, validate=True))] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(letter in ranks for letter in letters):
        raise ValueError("the list of tokens has gaps")
    backend = Tokenizer(models.BPE(vocab=ranks, merges=merges(sorted(ranks, key=ranks.__getitem__), ranks)))
    backend.normalizer = normalizers.NFC() if nfc else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in specials])
    return backend


def _from_gpt2(folder: Path) -> Tokenizer:
    backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def merges(order: Iterable[str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of entries that makes another one, in the `order` in which those are made."""
    found = []
    for text in order:
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        found += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return found


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if it can be seen, else one above 255."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    letters = {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def _special_names(folder: Path, family: str, config: Mapping[str, Any], backend: Tokenizer) -> dict[str, str]:
    """bos_token and the like: as the folder says, else as the family has them; only those the tokenizer knows."""
    given = {**_NAMES.get(family, {}), **_json(folder / "special_tokens_map.json"), **config}
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = given.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and backend.token_to_id(text) is not None:
            found[name] = text
    return found


def _write_bos(backend: Tokenizer, family: str, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Let plain texts begin as in the training of the model, unless tokenizer.json has seen to it."""
    if backend.post_processor is not None:
        return
    opening = [names["bos_token"]] if "bos_token" in names else []
    wanted = config.get("add_bos_token", family in _WRITES_BOS)
    if family == "chatglm":
        opening, wanted = ["[gMASK]", "<sop>"], True
    pairs = [(token, backend.token_to_id(token)) for token in opening]
    if wanted and pairs and all(number is not None for _, number in pairs):
        single = [*opening, "$A"]
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(single), pair=" ".join([*single, "$B"]), special_tokens=pairs
        )
