"""Which of llama.cpp's tokenizers writes the same ids as a tokenizer.json; looks at its JSON only.

llama.cpp knows two kinds that matter here: `gpt2`, merges of bytes within words that a regular expression cuts out
(each known expression has a name), and `llama`, SentencePiece's merges by score over whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SPACE = "▁"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}"
# What cuts a text into words -> its name in llama.cpp.
_NAMES: dict[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    (r"\p{N}", _GPT2): "smollm",
    (_LLAMA3,): "dbrx",
    (rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_TAIL}",): "qwen2",
    (rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}{_SLASH}",): "tekken",
    (rf"{_FIRST}{_UPPER}*{_LOWER}+{_SHORT}?|{_FIRST}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}{_SLASH}",): "gpt-4o",
}
# Where a word that is a token is taken whole, without looking at the merges.
_WHOLE_WORDS = {"dbrx": "llama-bpe", "tekken": "tekken"}
_KEEPS_ALL = (("Isolated", False), ("Removed", True))  # two ways to say: the matches are the words
_HAN = r"\p{Han}"
_HAN_BYTES = re.compile(rb"\xe3[\x90-\xbf]|[\xe4-\xe9]|\xf0[\xa0-\xb3]")  # how U+3400 to U+9FFF and U+20000 on begin
HAN_NOTE = "a rare Chinese character beside Japanese or Korean letters may be cut into other tokens"
REWRITE_NOTE = "characters the tokenizer replaces first (full-width letters, composed accents) are not replaced there"


class Unsupported(ValueError):
    """A tokenizer that llama.cpp cannot have; the text is the reason, a part of a sentence."""


@dataclass(frozen=True)
class Vocabulary:
    """How llama.cpp has to read a tokenizer: its `model` (gpt2 or llama) and the name `pre` of what cuts texts.

    `prefix`: where SentencePiece puts a space before a text: always, first (of a text only) or never.
    `notes`: what differs in rare texts, parts of sentences.
    """

    model: str
    pre: str
    prefix: str = "never"
    notes: tuple[str, ...] = ()


def vocabulary(tokenizer: Mapping[str, Any]) -> Vocabulary:
    """The kind of a tokenizer.json. Raises Unsupported with the reason."""
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise Unsupported(f"its tokenizer is of the kind {str(model.get('type'))[:40]}, and only BPE is written")
    steps = list(_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    normal = list(_steps(tokenizer.get("normalizer"), "normalizers"))
    if any(step.get("type") == "ByteLevel" for step in steps):
        return _byte_level(model, steps, normal)
    if model.get("byte_fallback"):
        return _sentencepiece(steps, normal)
    raise Unsupported("its tokenizer has neither bytes nor SentencePiece's pieces")


def _steps(item: Any, name: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(item, Mapping):
        if item.get("type") == "Sequence":
            for part in item.get(name, ()):
                yield from _steps(part, name)
        else:
            yield item


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _byte_level(
    model: Mapping[str, Any], steps: list[Mapping[str, Any]], normal: list[Mapping[str, Any]]
) -> Vocabulary:
    cuts, notes = tuple(_cuts(steps)), []
    if len(cuts) > 1 and cuts[0] == _HAN and not _han_merges(model):
        cuts = cuts[1:]  # no token reaches beyond one Chinese character, so that cutting around them changes nothing
        notes.append(HAN_NOTE)
    name = _NAMES.get(cuts)
    if name is None:
        raise Unsupported("its tokenizer cuts texts into words in a way llama.cpp has no name for")
    if model.get("ignore_merges"):
        name = _WHOLE_WORDS.get(name, name)
    elif name == "tekken":
        raise Unsupported("its tokenizer cuts texts as Tekken does but merges otherwise")
    kinds = {str(step.get("type")) for step in normal}
    if kinds - {"NFC"}:
        raise Unsupported(f"its tokenizer rewrites texts first ({', '.join(sorted(kinds))[:60]})")
    return Vocabulary("gpt2", name, notes=(*notes, *([REWRITE_NOTE] if kinds else [])))


def _cuts(steps: list[Mapping[str, Any]]) -> Iterator[str]:
    """The regular expressions that cut a text, one after the other."""
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                raise Unsupported("its tokenizer puts a space before every text")
            if step.get("use_regex", True):
                yield _GPT2
        elif kind == "Digits" and step.get("individual_digits"):
            yield r"\p{N}"
        elif kind == "Split" and (step.get("behavior"), bool(step.get("invert"))) in _KEEPS_ALL:
            yield str((step.get("pattern") or {}).get("Regex", ""))
        else:
            raise Unsupported(f"its tokenizer cuts texts with a step {str(kind)[:40]}")


def _han_merges(model: Mapping[str, Any]) -> bool:
    """Whether a merge makes a token that holds (the beginning of) a Chinese character beside something else.

    The last bytes of a character tell nothing about it; what begins with some is not counted.
    """
    letters = byte_letters()
    for pair in model.get("merges", ()):
        data = bytes(letters.get(letter, 0) for letter in "".join(_pair(pair)))
        hits = [hit.start() for hit in _HAN_BYTES.finditer(data)]
        if hits and (hits[0] > 0 or len(hits) > 1 or any(byte & 0xC0 != 0x80 for byte in data[1:])):
            return True
    return False


def _pair(pair: Any) -> tuple[str, str]:
    left, right = pair if isinstance(pair, list | tuple) else str(pair).split(" ", 1)
    return left, right


def byte_letters() -> dict[str, int]:
    """Letter -> byte of a byte-level vocabulary."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


def _sentencepiece(steps: list[Mapping[str, Any]], normal: list[Mapping[str, Any]]) -> Vocabulary:
    prefix, rewrites = "never", False
    for step in normal:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = "always"
        elif kind == "Replace" and step.get("content") == SPACE:
            continue
        elif kind in ("Precompiled", "Strip", "Replace", "NFKC", "NFC"):
            rewrites = True
        else:
            raise Unsupported(f"its tokenizer rewrites texts first ({str(kind)[:40]})")
    for step in steps:
        kind = step.get("type")
        if kind == "Metaspace":
            scheme = str(step.get("prepend_scheme", "always"))
            prefix = scheme if scheme != "never" else prefix
        elif not (kind == "Split" and step.get("behavior") == "MergedWithPrevious"):
            raise Unsupported(f"its tokenizer cuts texts with a step {str(kind)[:40]}")
    return Vocabulary("llama", "default", prefix, (REWRITE_NOTE,) if rewrites else ())


def merge_ranks(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> place of the first merge that makes it.

    Raises Unsupported when merging by score, as SentencePiece does, would find merges that the tokenizer has not.
    """
    ranks: dict[str, int] = {}
    known: set[tuple[str, str]] = set()
    for rank, pair in enumerate(model.get("merges", ())):
        left, right = _pair(pair)
        known.add((left, right))
        ranks.setdefault(left + right, rank)
    vocab = model.get("vocab", {})
    for text in ranks:
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in known and pair[0] in vocab and pair[1] in vocab and _made(pair, ranks):
                raise Unsupported("its tokenizer merges pairs of pieces in an order that no scores describe")
    return ranks


def _made(pair: tuple[str, str], ranks: Mapping[str, int]) -> bool:
    """Whether both sides can stand side by side: each is a character or made by a merge."""
    return all(len(side) == 1 or side in ranks for side in pair)
