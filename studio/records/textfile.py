"""A text file in blocks, lines or pieces of text, whatever its encoding and size; memory stays bounded."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from studio.records.encodings import (
    BAD,
    MARK_BAD,
    SAMPLE_BYTES,
    UTF8,
    Encoding,
    detect,
    first_foreign,
    wide_encoding,
)

BLOCK_BYTES = 1024 * 1024
# The longest row: longer ones are a fault of the file, and would not fit into any model's context by far.
LONGEST_ROW = 64 * 1024 * 1024
# A packed file may grow to this, or by this factor once it is large; more is a trap for the reader.
MOST_UNPACKED = 16 * 1024**3
MOST_GROWTH = 200
# What a file that fails half-way raises, a packed one in particular.
FAULTS = (OSError, EOFError, zlib.error)


class TextFile:
    """Reads one text file, plain or packed with gzip.

    `report` gets the encoding as soon as a byte outside ASCII shows it. `codec` reads the blocks and lines; it differs
    from `encoding` where the file has no ASCII bytes (UTF-16), because such files are handed on as UTF-8.
    """

    def __init__(self, path: Path, report: Callable[[Encoding, bool], None]) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.done = 0
        self.encoding = UTF8
        self._report = report

    @property
    def codec(self) -> str:
        """Python's codec for the blocks and lines."""
        return "utf-8" if self.encoding.name.startswith("utf-") else self.encoding.name

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the file in an encoding that contains ASCII, without a byte order mark."""
        with self._open() as read:
            block = read()
            wide = wide_encoding(block)
            if wide:
                self._found(wide)
                yield from _as_utf8(block, read, wide.name)
                return
            if block.startswith(codecs.BOM_UTF8):
                self._found(UTF8, mark=True)
                block = block[len(codecs.BOM_UTF8) :]
            old_lines = b"\r" in block and b"\n" not in block
            known = False
            while block:
                if not known and not block.isascii():
                    block = self._decide(block, read)
                    known = True
                yield block.replace(b"\r", b"\n") if old_lines else block
                block = read()

    def chunks(self) -> Iterator[str]:
        """The text of the file in pieces; a byte that is not valid becomes `encodings.BAD`."""
        decoder: codecs.IncrementalDecoder | None = None
        for block in self.blocks():
            if decoder is None and block.isascii():
                yield block.decode("ascii")
                continue
            decoder = decoder or codecs.getincrementaldecoder(self.codec)(MARK_BAD)
            yield decoder.decode(block)
        if decoder:
            yield decoder.decode(b"", True)

    def lines(self) -> Iterator[bytes | None]:
        """The lines without their line feed; None for one longer than LONGEST_ROW, whose rest is passed over.

        Only a line feed ends a line: JSON strings may contain the other characters Unicode counts as line ends.
        """
        held = bytearray()
        passing = False
        for block in self.blocks():
            first, *others = block.split(b"\n")
            if others:
                if not passing:
                    yield bytes(held) + first
                yield from others[:-1]
                held, passing = bytearray(others[-1]), False
            elif not passing:
                held += first
            if len(held) > LONGEST_ROW:
                yield None
                held, passing = bytearray(), True
        if held:
            yield bytes(held)

    def head(self) -> str:
        """The text of the first block."""
        return next(self.chunks(), "")

    def _decide(self, block: bytes, read: Callable[[], bytes]) -> bytes:
        """Finds the encoding from the first byte outside ASCII on; the block grows where that stands near its end."""
        start = first_foreign(block)
        if len(block) - start < SAMPLE_BYTES:
            with suppress(*FAULTS):  # the next read meets it again, after this block was used
                block += read()
        self._found(detect(block[start : start + SAMPLE_BYTES]))
        return block

    def _found(self, encoding: Encoding, *, mark: bool = False) -> None:
        self.encoding = encoding
        self._report(encoding, mark)

    @contextmanager
    def _open(self) -> Iterator[Callable[[], bytes]]:
        """A function that reads the next block; it keeps `done` up to date and stops at a packed trap."""
        with self.path.open("rb") as raw:
            packed = self.path.suffix.lower() == ".gz"
            file = _Unpacked(raw) if packed else raw
            unpacked = 0

            def read() -> bytes:
                nonlocal unpacked
                block = file.read(BLOCK_BYTES)
                self.done = min(raw.tell(), self.size)
                unpacked += len(block)
                if packed and (unpacked > MOST_UNPACKED or unpacked > 2**27 + MOST_GROWTH * self.done):
                    raise OSError(None, "it unpacks to far more than its size; unpack it yourself and look at it")
                return block

            yield read


class _Unpacked:
    """Unpacks a gzip file; what comes before a damaged or missing part is handed out before the fault is raised."""

    def __init__(self, raw: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=raw)
        self._fault: Exception | None = None

    def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size and self._fault is None:
            try:
                part = self._file.read1(size - len(found))
            except FAULTS as error:
                self._fault = error
                break
            if not part:
                break
            found += part
        if self._fault is not None and not found:
            raise self._fault
        return bytes(found)


def _as_utf8(block: bytes, read: Callable[[], bytes], name: str) -> Iterator[bytes]:
    """UTF-16 or UTF-32 blocks as UTF-8; what is not valid becomes a byte that is not valid in UTF-8 either."""
    decoder = codecs.getincrementaldecoder(name)(MARK_BAD)
    while block:
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
        block = read()
    yield decoder.decode(b"", True).encode("utf-8", "surrogateescape")


def is_damaged(text: str, start: int = 0, end: int | None = None) -> bool:
    """Whether a text from `chunks` had bytes that are not valid in its encoding."""
    return text.find(BAD, start, len(text) if end is None else end) >= 0
