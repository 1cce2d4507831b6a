"""Reads tokenizer.model files of SentencePiece without the library: pieces with scores, and how text is prepared.

The file is a protocol-buffer message; only its few fields that matter here are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

UNIGRAM, BPE = 1, 2
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class Kind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """A vocabulary, its algorithm (UNIGRAM or BPE), and what is done to a text first.

    `charsmap` is a precompiled table of character replacements, empty for none.
    """

    pieces: tuple[Piece, ...]
    algorithm: int = UNIGRAM
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True


def parse(data: bytes) -> SentencePieceModel:
    """The model in a file's bytes. Raises ValueError when they are no SentencePiece model."""
    pieces: list[Piece] = []
    algorithm, normalizer = UNIGRAM, b""
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_as_bytes(value)))
            elif number == 2:
                algorithm = int(dict(_fields(_as_bytes(value))).get(3, UNIGRAM))
            elif number == 3:
                normalizer = _as_bytes(value)
        spec = dict(_fields(normalizer))
        if not pieces:
            raise ValueError("no pieces")
        return SentencePieceModel(
            tuple(pieces), algorithm, _as_bytes(spec.get(2, b"")), bool(spec.get(3, 1)), bool(spec.get(4, 1))
        )
    except (IndexError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"it is no SentencePiece model ({type(error).__name__})") from None


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", _as_bytes(fields.get(2, bytes(4))))[0]
    return Piece(_as_bytes(fields.get(1, b"")).decode("utf-8"), score, Kind(int(fields.get(3, Kind.NORMAL))))


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: numbers for variable-length ones, bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire, len(data) + 1)
        if at + size > len(data):
            raise IndexError("a field longer than the file")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("an endless number")
