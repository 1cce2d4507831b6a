"""The text of single tokens, for people to look at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_LONE = re.compile("[\udc80-\udcff]")  # how Python's surrogateescape shows a byte that is part of no character
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_texts(backend: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text each token stands for; bytes that are no whole character as hex, like `<E4>`.

    An id the tokenizer does not know gives the replacement character.
    """
    added = backend.get_added_tokens_decoder()
    read = _reader(backend)
    texts = []
    for number in ids:
        token = added[number].content if number in added else backend.id_to_token(number)
        texts.append(UNKNOWN if token is None else token if number in added else read(token))
    return texts


def _reader(backend: Tokenizer) -> Callable[[str], str]:
    """How a token of this vocabulary becomes text: byte-level, or SentencePiece with its low line for a space."""
    decoder = backend.decoder
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    kinds = {step.get("type") for step in [state, *state.get("decoders", [])]}
    return _from_bytes if "ByteLevel" in kinds else _from_pieces


def _from_bytes(token: str) -> str:
    if any(char not in _BYTES for char in token):
        return token
    raw = bytes(_BYTES[char] for char in token)
    return _LONE.sub(lambda byte: f"<{ord(byte[0]) - 0xDC00:02X}>", raw.decode("utf-8", "surrogateescape"))


def _from_pieces(token: str) -> str:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte is None:
        return token.replace("\u2581", " ")
    value = int(byte[1], 16)
    return chr(value) if value < 0x80 else f"<{value:02X}>"


def _byte_table() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return table


_BYTES = _byte_table()
