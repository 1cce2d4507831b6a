"""Which encoding a text has, decided from a sample of its bytes: UTF-8 first, then what people's programs write."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

SAMPLE_BYTES = 256 * 1024
# Stands for a byte that is not valid in the encoding; as a lone surrogate it can never come from a valid text.
BAD = "\udcff"
MARK_BAD = "studio-mark-bad-bytes"
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
# The most frequent characters of each language: a text decoded with the right encoding is full of them.
_SIMPLIFIED = (
    "的一是了不在有人我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小"
    "么心多天而能好都然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面公同三已老从动两长知样"
    "现分将外但身些与高意进把法此实回二理美点月明其种声全工己话者向情部正名定女问力机给等几很业最间新什打"
    "便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市应书各员"
    "安请答谁叫吗呢"
)
_TRADITIONAL = (
    "的一是了不在有人我他這中大來上個國到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可里後小"
    "麼心多天而能好都然沒日於起還發成事只作當想看文無開手用主行方又如前所本見經頭面公同三已老從動兩長知樣"
    "現分將外但身些與高意進把法此實回二理美點月明其種聲全工己話者向情部正名定女問力機給等幾很業最間新什打"
    "便位因重被走電四第門相次東政海口使教西再平真聽世氣信北少關並內加化由卻代軍產入先山五太水萬市應書各員"
    "安請答誰叫嗎呢"
)
_HIRAGANA = "".join(map(chr, range(0x3041, 0x3094)))
_HANGUL = (
    "이다는을가의에은하고한기지로사를어자인서도해나시대리아그수일정있것들게보부주제과전성니라여만용요습합"
    "세안무스으장저원구상없때생문모말우동위조당까면내신너누입"
)
# Python's codec, the name people know, and its frequent characters. Order decides between equals.
_EAST_ASIAN = (
    ("gb18030", "GBK", frozenset(_SIMPLIFIED)),
    ("big5", "Big5", frozenset(_TRADITIONAL)),
    ("shift_jis", "Shift_JIS", frozenset(_HIRAGANA)),
    ("euc_kr", "EUC-KR", frozenset(_HANGUL)),
    ("euc_jp", "EUC-JP", frozenset(_HIRAGANA)),
)
# What Windows writes under the names above holds a few characters more.
_WINDOWS = {"big5": "cp950", "shift_jis": "cp932", "euc_kr": "cp949"}
_FREQUENT_ENOUGH = 0.12
_WESTERN = "éèêëàâäáãåæçîïíìñôöóòõøœùûüúÿßÉÈÊÀÂÄÁÅÆÇÎÍÑÔÖÓØÙÛÜÚ¿¡«»“”‘’–—…°€£§"
_FOREIGN_RUN = re.compile(r"[^\x00-\x7f]+")
_EUROPEAN = {
    "cp1250": "Windows-1250 (Central Europe)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "koi8_r": "KOI8-R (Cyrillic)",
    "cp1252": "Windows-1252",
    "cp1253": "Windows-1253 (Greek)",
    "cp1254": "Windows-1254 (Turkish)",
    "cp1255": "Windows-1255 (Hebrew)",
    "cp1256": "Windows-1256 (Arabic)",
    "cp1258": "Windows-1258 (Vietnamese)",
    "cp874": "Windows-874 (Thai)",
}


@dataclass(frozen=True)
class Encoding:
    """`name` is Python's codec that reads it, `label` the name people know."""

    name: str
    label: str


UTF8 = Encoding("utf-8", "UTF-8")


def _mark_bad(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    if error.encoding.startswith(("utf-16", "utf16", "utf-32", "utf32")):
        return BAD, error.end
    # One byte only: the next may be a quotation mark or a line feed that a row needs.
    return BAD, error.start + 1


codecs.register_error(MARK_BAD, _mark_bad)


def wide_encoding(head: bytes) -> Encoding | None:
    """UTF-16 or UTF-32 by byte order mark, or UTF-16 by its zero bytes; None for all other texts."""
    for mark, name, label in _MARKS:
        if head.startswith(mark):
            return Encoding(name, label)
    sample = head[: 4096 - 4096 % 2]
    little = sum(1 for low, high in zip(sample[::2], sample[1::2], strict=False) if high == 0 and 9 <= low < 0x7F)
    big = sum(1 for high, low in zip(sample[::2], sample[1::2], strict=False) if high == 0 and 9 <= low < 0x7F)
    if max(little, big) * 20 < len(sample) / 2 or not sample:
        return None
    name = "utf-16-le" if little >= big else "utf-16-be"
    text = _decoded(sample[: len(sample) - len(sample) % 2], name)
    return Encoding(name, "UTF-16") if text is not None and "\x00" not in text else None


def first_foreign(block: bytes) -> int:
    """Where the first byte stands that is not ASCII; the length of the block if there is none."""
    found = _NOT_ASCII.search(block)
    return found.start() if found else len(block)


def detect(sample: bytes) -> Encoding:
    """The encoding of a text whose sample starts with its first byte outside ASCII. Never fails."""
    sample = sample[:SAMPLE_BYTES]
    if _is_utf8(sample):
        return UTF8
    scores = [(_frequent(sample, name, known), name, label) for name, label, known in _EAST_ASIAN]
    best = max(scores, key=lambda score: score[0])
    if best[0] >= _FREQUENT_ENOUGH:
        return Encoding(_WINDOWS.get(best[1], best[1]), best[2])
    if _is_plain_chinese(sample):
        return Encoding("gb18030", "GBK")
    return _european(sample)


def _is_utf8(sample: bytes) -> bool:
    """Valid UTF-8, or UTF-8 in which some bytes were damaged (those rows are skipped later)."""
    text = codecs.getincrementaldecoder("utf-8")(MARK_BAD).decode(sample)
    bad = text.count(BAD)
    return not bad or _foreign(text) - bad > bad


def _decoded(sample: bytes, name: str) -> str | None:
    """The sample as text; None unless nearly every character of it is valid. Its end may be cut."""
    text = codecs.getincrementaldecoder(name)(MARK_BAD).decode(sample)
    return text if text.count(BAD) * 50 <= _foreign(text) else None


def _foreign(text: str) -> int:
    return sum(1 for char in text if char > "\x7f")


def _frequent(sample: bytes, name: str, known: frozenset[str]) -> float:
    """The share of the characters outside ASCII that are among the most frequent ones of a language."""
    text = _decoded(sample[: 32 * 1024], _WINDOWS.get(name, name))
    foreign = [char for char in text or "" if char > "\x7f"]
    letters = [char for char in foreign if not _is_mark(char)]
    return sum(char in known for char in letters) / len(letters) if letters else 0.0


def _is_mark(char: str) -> bool:
    """Punctuation and wide forms, which the East Asian encodings share."""
    return "\u2000" <= char <= "\u303f" or "\uff00" <= char <= "\uff65"


def _is_plain_chinese(sample: bytes) -> bool:
    """Valid GBK made of the Hanzi of GB 2312; a European text read as GBK gives rare ones."""
    text = _decoded(sample, "gb18030")
    foreign = [char for char in text or "" if char > "\x7f"]
    plain = "".join(foreign).encode("gb2312", "ignore")
    return bool(foreign) and len(plain) >= 1.8 * len(foreign)


def _european(sample: bytes) -> Encoding:
    """Encodings of one byte a character; these cannot be told apart with certainty."""
    western = _decoded(sample, "cp1252")
    if western is not None and _is_western(western):
        return Encoding("cp1252", "Windows-1252")
    from charset_normalizer import from_bytes

    guess = from_bytes(sample[: 16 * 1024], cp_isolation=list(_EUROPEAN)).best()
    if guess is not None and guess.encoding in _EUROPEAN:
        return Encoding(guess.encoding, _EUROPEAN[guess.encoding])
    return Encoding("cp1252", "Windows-1252") if western is not None else Encoding("latin-1", "Latin-1")


def _is_western(text: str) -> bool:
    """Whether the letters outside ASCII are those of Western Europe and stand alone, as in French or German."""
    runs = _FOREIGN_RUN.findall(text)
    letters = "".join(runs)
    return len(letters) <= 1.5 * len(runs) and sum(map(letters.count, set(_WESTERN))) >= 0.9 * len(letters)
