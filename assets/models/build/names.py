"""Random names and authors of every script, and names drawn straight from vocabulary ids.

A token that never occurs as a training target can never be produced later, because fine-tuning
leaves the embeddings frozen. `IdPool` therefore draws token ids directly, favouring those seen
least so far, and writes them as private-use characters that `packing` turns back into ids.
"""

import random
import string

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from assets.models.build.phrases import BANNED, words

#: Token id i travels inside text as chr(ID_BASE + i) (supplementary private use area A).
ID_BASE = 0xF0000
#: Chat markers; they occur in every dialogue and must not appear inside a name.
MARKERS = 3
TARGET_COUNT = 260

HANZI = [
    bytes([row, cell]).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if not (row == 0xD7 and cell > 0xF9)
]
#: (weight, first code point, last code point); unassigned points inside are harmless.
SCRIPTS = {
    "cyrillic": (14, 0x0410, 0x044F),
    "greek": (5, 0x03B1, 0x03C9),
    "latin": (14, 0x00C0, 0x00FF),
    "latin_extended": (5, 0x0100, 0x017F),
    "arabic": (10, 0x0621, 0x064A),
    "hebrew": (3, 0x05D0, 0x05EA),
    "thai": (3, 0x0E01, 0x0E30),
    "devanagari": (4, 0x0905, 0x0939),
    "hiragana": (8, 0x3041, 0x3096),
    "katakana": (8, 0x30A1, 0x30FA),
    "hangul": (9, 0xAC00, 0xD7A3),
    "hanzi": (24, 0x4E00, 0x9FA5),
    "hanzi_extension": (2, 0x3400, 0x4DB5),
    "emoji": (6, 0x1F300, 0x1F64F),
    "emoji_more": (3, 0x1F900, 0x1F9FF),
    "symbols": (2, 0x2600, 0x26FF),
    "any": (2, 0x00A1, 0xD7FF),
}
ONSETS = [
    "b",
    "bl",
    "br",
    "c",
    "ch",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "sl",
    "st",
    "t",
    "th",
    "tr",
    "v",
    "w",
    "x",
    "y",
    "z",
]
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou", "ia"]
CODAS = ["", "", *["n", "r", "l", "s", "x", "k", "m", "t", "nd", "ck", "rd", "v", "z"]]


def syllables(r: random.Random) -> str:
    """A pronounceable lower-case word of one to three syllables."""
    count = r.choice([1, 2, 2, 2, 3])
    return "".join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS) for _ in range(count))


def _letters(r: random.Random, low: int, high: int, alphabet: str = string.ascii_lowercase) -> str:
    return "".join(r.choice(alphabet) for _ in range(r.randint(low, high)))


def hanzi(r: random.Random, low: int, high: int) -> str:
    """A few Hanzi, common ones more often."""
    pool = words("common_zh") if r.random() < 0.35 else HANZI
    return "".join(r.choice(pool) for _ in range(r.randint(low, high)))


def script_word(r: random.Random) -> str:
    """Two to six characters of one random script (one to four for Hanzi, one or two emoji)."""
    script = r.choices(list(SCRIPTS), [weight for weight, _, _ in SCRIPTS.values()])[0]
    _, first, last = SCRIPTS[script]
    high = 4 if script.startswith("hanzi") else 2 if script.startswith(("emoji", "sym")) else 6
    text = "".join(chr(r.randint(first, last)) for _ in range(r.randint(min(2, high), high)))
    return text.capitalize() if r.random() < 0.5 else text


def _script_name(r: random.Random) -> str:
    shape = r.random()
    if shape < 0.45:
        return script_word(r)
    if shape < 0.65:
        return script_word(r) + " " + script_word(r)
    if shape < 0.8:
        return r.choice(["", " "]).join([script_word(r), syllables(r).capitalize()])
    if shape < 0.9:
        accented = list(syllables(r).capitalize())
        accented[r.randrange(len(accented))] = chr(r.randint(0xC0, 0xFF))
        return "".join(accented)
    return script_word(r) + r.choice([*words("suffixes_zh"), "AI", " AI", "号", "Bot"])


def _awkward_name(r: random.Random) -> str:
    first, second = syllables(r), syllables(r)
    upper = _letters(r, 1, 4, string.ascii_uppercase)
    number = str(r.randint(0, 9999))
    patterns = (
        f"{first}_{number}", f"{first}_{second}", f"{first}-{second}", f"{upper}{number}-{upper}",
        f"{upper}-{number}", f"{first.capitalize()} '{second.capitalize()}'", f"{upper[0]}'{first.capitalize()}",
        f"{first.capitalize()} & {second.capitalize()}", f"{first.capitalize()} & Sons",
        f'{first.capitalize()} "{second}"', f"{first.capitalize()} {number[:1]}.{number[-2:]}",
        f"v{number[:2]}.{number[-1]}",
        f"Dr. {first.capitalize()}", f"{first.capitalize()} {upper[0]}. {second.capitalize()}", f"{first}.{second}",
        f"{first}@{second}", f"#{number}", f"{first.capitalize()} ({second})", f"{first}{number}", f"{upper}",
        f"{first}/{second}", f"<{first}>", f"{first}+{second}", f"${first}", f"{first.capitalize()}!", f"[{upper}]",
        f"{first}:{second}", f"{first}*{number}", f"{first.capitalize()}, {second.capitalize()}",
        f"{first}=%{number}",
        f"{first}{second}{first}", f"{first.upper()} {second.upper()}", f"{first}'s {second}", f"~{first}^",
        f"{{{first}}}",
    )  # fmt: skip
    return r.choice(patterns)


def _english_name(r: random.Random) -> str:
    adjective, noun = r.choice(words("adjectives")), r.choice(words("nouns"))
    first, second = syllables(r), syllables(r)
    patterns = (
        first.capitalize(), first.capitalize(), first.capitalize(), f"{adjective} {noun}", f"{adjective} {noun}",
        f"{first.capitalize()} {second.capitalize()}", f"{first.capitalize()} {second.capitalize()}",
        f"{adjective}{noun}",
        first.capitalize() + r.choice(["Bot", "GPT", "AI", "LM", "Chat"]), f"{adjective} {first.capitalize()}",
        _letters(r, 3, 8).capitalize(), f"{adjective} {second.capitalize()} {noun}",
        f"{first.capitalize()} {noun} {second.capitalize()}",
        f"{adjective} {noun}".lower(), f"{first} {second}", r.choice(words("first_names")), noun,
        f"{noun}{r.choice(['', ' ', '-'])}{r.randint(1, 99)}", _letters(r, 3, 9), f"the {first.capitalize()} {noun}",
    )  # fmt: skip
    return r.choice(patterns)


def _chinese_name(r: random.Random) -> str:
    suffix = r.choice([*words("suffixes_zh"), "", "", "", "", ""])
    patterns = (
        r.choice(["小", ""]) + hanzi(r, 1, 3) + suffix, hanzi(r, 1, 3) + suffix, hanzi(r, 2, 4), hanzi(r, 2, 5),
        syllables(r).capitalize() + suffix, f"{hanzi(r, 1, 2)}{r.randint(1, 99)}号", f"{hanzi(r, 2, 3)}AI{suffix}",
        f"{hanzi(r, 1, 3)}·{hanzi(r, 1, 3)}", f"{hanzi(r, 2, 2)} {hanzi(r, 2, 2)}",
    )  # fmt: skip
    return r.choice(patterns)


def _english_author(r: random.Random) -> str:
    first, second = syllables(r).capitalize(), syllables(r).capitalize()
    patterns = (
        first, first, r.choice(words("first_names")), f"{first} {r.choice(words('organisations'))}",
        f"{first} {second}",
        f"the {first} {r.choice(['team', 'lab', 'group', 'project'])}",
        f"the {r.choice(words('nouns'))} {r.choice(['team', 'lab'])}",
        f"{r.choice(words('first_names'))} {first}", f"{first} {second} {r.choice(words('organisations'))}",
    )  # fmt: skip
    return r.choice(patterns)


def _chinese_author(r: random.Random) -> str:
    place = r.choice([*words("organisations_zh"), "", ""])
    patterns = (
        r.choice(words("surnames_zh")) + hanzi(r, 1, 2), r.choice(words("surnames_zh")) + hanzi(r, 1, 2),
        hanzi(r, 2, 4) + place, hanzi(r, 2, 3) + place, syllables(r).capitalize() + place,
        f"{hanzi(r, 2, 2)}的{hanzi(r, 2, 3)}", hanzi(r, 3, 3),
    )  # fmt: skip
    return r.choice(patterns)


def allowed(name: str) -> bool:
    """False for empty names, names with outer spaces and names kept for the verdict."""
    return bool(name.strip()) and name == name.strip() and not any(b in name.lower() for b in BANNED)


class IdPool:
    """Draws valid UTF-8 runs of token ids, the rarest first.

    `counts[i]` is how often id i has been a training target so far; `packing` keeps it current.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.pieces = [token_bytes(tokenizer, i) for i in range(len(tokenizer))]
        self.counts: NDArray[np.int64] = np.zeros(len(tokenizer), np.int64)
        self._single = {piece[0]: i for i, piece in enumerate(self.pieces) if len(piece) == 1}
        self._cumulative: list[float] = []
        self.refresh()

    def refresh(self) -> None:
        """Recompute the drawing weights from the counts."""
        need = np.clip(1 - self.counts / TARGET_COUNT, 0.01, 1.0)
        need[:MARKERS] = 0
        self._cumulative = np.cumsum(need).tolist()

    def unit(self, r: random.Random) -> list[int]:
        """Ids of a shortest valid UTF-8 run around one drawn token."""
        while True:
            drawn = r.choices(range(len(self.pieces)), cum_weights=self._cumulative)[0]
            run = self._complete(r, drawn)
            if run:
                return run

    def _complete(self, r: random.Random, drawn: int) -> list[int] | None:
        """Surround a partial character by byte tokens until the whole decodes; None when no try did."""
        piece = self.pieces[drawn]
        if _decodes(piece):
            return [drawn]
        for _ in range(60):
            before = b"" if piece[0] >= 0xC0 or piece[0] < 0x80 else _random_lead(r)
            after = bytes(r.randint(0x80, 0xBF) for _ in range(r.randint(0, 3)))
            if _decodes(before + piece + after):
                ends = ([self._single.get(b, -1) for b in part] for part in (before, after))
                head, tail = ends
                return None if -1 in head + tail else [*head, drawn, *tail]
        return None

    def text(self, r: random.Random, low: int = 1, high: int = 5) -> str:
        """Private-use characters standing for a few drawn ids; outer white space is avoided."""
        while True:
            ids = [i for _ in range(r.randint(low, high)) for i in self.unit(r)]
            if not (self.pieces[ids[0]].isspace() or self.pieces[ids[-1]].isspace()):
                return "".join(chr(ID_BASE + i) for i in ids)


def _random_lead(r: random.Random) -> bytes:
    lead = bytes([r.randint(0xC2, 0xF4)])
    return lead + bytes(r.randint(0x80, 0xBF) for _ in range(r.randint(0, 2)))


def _decodes(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def token_bytes(tokenizer: PreTrainedTokenizerFast, token_id: int) -> bytes:
    """The raw bytes that a token stands for (special tokens: their text)."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token_id in tokenizer.added_tokens_decoder:
        return token.encode("utf-8")
    return bytes(_ALPHABET[c] for c in token)


def name_pair(r: random.Random, lang: str, pool: IdPool | None) -> tuple[str, str]:
    """A random (name, author) for a dialogue in `lang`; without a pool no id-drawn names."""
    return _one(r, lang, pool, author=False), _one(r, lang, pool, author=True)


def _one(r: random.Random, lang: str, pool: IdPool | None, *, author: bool) -> str:
    while True:
        kind = r.random()
        if kind < 0.2 and pool is not None:
            return pool.text(r)
        if kind < 0.42:
            text = _script_name(r)
        elif kind < 0.54:
            text = _awkward_name(r)
        elif (lang == "en") != (kind > 0.93):
            text = _english_author(r) if author else _english_name(r)
        else:
            text = _chinese_author(r) if author else _chinese_name(r)
        if allowed(text):
            return text
