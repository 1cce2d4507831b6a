"""From the bytes of a .json or .jsonl file to its rows; every fault becomes a sentence with a position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studio.records.errors import DataError, shown

MAX_BYTES = 2 * 1024**3
SUFFIXES = (".json", ".jsonl")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_rows(path: Path) -> list[tuple[int, Any]]:
    """(row number from 1, value) of each row: items of a JSON list, or lines of JSON Lines. Raises DataError."""
    text = decode(_read_bytes(path), path.name)
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path.name} is empty. Choose a file with at least one conversation.")
    rows = _read_list(text, path.name) if start == "[" else _read_lines(text, path.name)
    if not rows:
        raise DataError(f"{path.name} holds an empty list. Add at least one conversation.")
    return rows


def decode(raw: bytes, name: str) -> str:
    """The text of UTF-8 bytes, with or without a byte order mark. Raises DataError naming the real encoding."""
    if raw.startswith(_UTF16_MARKS):
        raise DataError(f"{name} is encoded as UTF-16. Save it as UTF-8 and try again.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        if _looks_like_gbk(raw):
            raise DataError(
                f"{name} is not UTF-8; it looks like GBK (line {line}). Save it as UTF-8, for example with "
                "'iconv -f GBK -t UTF-8', and try again."
            ) from None
        raise DataError(
            f"{name} is not UTF-8 text (byte 0x{raw[error.start]:02x} in line {line}). Save it as UTF-8 and try again."
        ) from None


def _read_bytes(path: Path) -> bytes:
    name = shown(path.name)
    try:
        if path.is_dir():
            raise DataError(f"{name} is a folder. Choose a .json or .jsonl file.")
        if not path.is_file():
            raise DataError(f"The file {shown(str(path), 120)} does not exist. Check the path.")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{name} is not a .json or .jsonl file. Convert it to JSON Lines and try again.")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{name} is larger than 2 GB. Split it into smaller files.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{name} cannot be read: {reason}. Check the file and its permissions.") from None


def _looks_like_gbk(raw: bytes) -> bool:
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return False
    foreign = [char for char in text if ord(char) > 0x7F]
    return sum("\u3000" <= char <= "\u9fff" or "\uff00" <= char <= "\uffef" for char in foreign) > len(foreign) / 2


def _read_list(text: str, name: str) -> list[tuple[int, Any]]:
    value = _parse(text, name, None)
    return list(enumerate(value, 1)) if isinstance(value, list) else [(1, value)]


def _read_lines(text: str, name: str) -> list[tuple[int, Any]]:
    # Split at line feeds only: str.splitlines would also cut at U+2028 and U+0085, which JSON strings may contain.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and not _is_object(lines[0][1]):
        return [(1, _parse(text, name, None))]  # one object spread over several lines
    return [(number, _parse(line, name, number)) for number, line in lines]


def _is_object(line: str) -> bool:
    try:
        json.loads(line)
    except RecursionError:
        return True
    except ValueError:
        return line.rstrip().endswith("}")
    return True


def _parse(text: str, name: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(_json_fault(error, name, line)) from None
    except RecursionError:
        raise DataError(f"{name} is nested too deeply{_at(line)}. Check the file.") from None
    except ValueError as error:
        raise DataError(f"{name} holds a number that cannot be read{_at(line)}: {shown(str(error), 80)}.") from None


def _at(line: int | None) -> str:
    return f" in line {line}" if line else ""


def _json_fault(error: json.JSONDecodeError, name: str, line: int | None) -> str:
    where = f"line {line or error.lineno}, column {error.colno}"
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"{name} breaks off at {where}: the JSON is not complete. The file was cut short; copy it again."
    return f"{name} is not valid JSON at {where}: {error.msg}. Correct that place and try again."
