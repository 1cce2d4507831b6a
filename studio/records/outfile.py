"""Records written to a file of a common format: JSON, JSON Lines or plain text."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from studio.records.conversation import PlainText, Record
from studio.records.convert import convert
from studio.records.errors import DataError, Skipped, shown
from studio.records.formats import RowError
from studio.records.unfinished import half_name

Target = Literal["messages", "conversation", "alpaca", "text"]
TARGETS: tuple[str, ...] = get_args(Target)
SUFFIXES = (".json", ".jsonl", ".txt")
SKIPPED_KEPT = 200
_FIELD = "out"


@dataclass
class Written:
    """A file that was written: its rows, how many could not be, and the first of those with the reasons."""

    path: Path
    rows: int = 0
    skipped: int = 0
    first_skipped: list[Skipped] = field(default_factory=list)

    def skip(self, row: Skipped) -> None:
        """Counts a row that was left out."""
        self.skipped += 1
        if len(self.first_skipped) < SKIPPED_KEPT:
            self.first_skipped.append(row)


def write_file(entries: Iterable[tuple[int, Record] | Skipped], to: Target, out: Path, *, force: bool) -> Written:
    """Writes records in the format `to`; the ending of `out` decides between a list, lines and (for texts) plain text.

    The file appears as a whole. Raises DataError when it exists and not `force`, cannot be written or would be empty.
    """
    path = _checked(out, to, force=force)
    written = Written(path)
    half = path.with_name(f"{half_name()}{path.suffix}")
    try:
        with half.open("w", encoding="utf-8", newline="\n") as file:
            _write(file, _rows(entries, to, written), path.suffix.lower())
            file.flush()
            os.fsync(file.fileno())
        if not written.rows:
            raise DataError(_nothing(written, to), field=_FIELD)
        half.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        half.unlink(missing_ok=True)
    return written


def _checked(out: Path, to: Target, *, force: bool) -> Path:
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES or (suffix == ".txt") > (to == "text"):
        wanted = ".json, .jsonl or .txt" if to == "text" else ".json or .jsonl"
        raise DataError(f"{shown(out.name)} should end in {wanted}.", field=_FIELD)
    try:
        mode = out.stat().st_mode
    except FileNotFoundError:
        return out
    except (OSError, ValueError) as error:  # too long, a NUL, a file where a folder should be
        raise _unwritable(out, error) from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{shown(str(out), 120)} is a folder. Name a file.", field=_FIELD)
    if not force:
        raise DataError(f"{shown(str(out), 120)} exists already. Choose another name or add --force.", field=_FIELD)
    return out


def _rows(entries: Iterable[tuple[int, Record] | Skipped], to: Target, written: Written) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if isinstance(entry, Skipped):
            written.skip(entry)
            continue
        number, record = entry
        try:
            row = _converted(record, to)
        except RowError as error:
            written.skip(Skipped(number, str(error)))
            continue
        written.rows += 1
        yield row


def _converted(record: Record, to: Target) -> dict[str, Any]:
    if to != "text":
        return next(convert([record], to))
    if not isinstance(record, PlainText):
        raise RowError("it is a conversation, not a plain text")
    return {"text": record.text}


def _write(file: TextIO, rows: Iterator[dict[str, Any]], suffix: str) -> None:
    if suffix == ".txt":
        for number, row in enumerate(rows):
            file.write(f"\n{row['text'].rstrip()}\n" if number else f"{row['text'].rstrip()}\n")
    elif suffix == ".jsonl":
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        file.write("[")
        for number, row in enumerate(rows):
            file.write(("," if number else "") + "\n" + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def _unwritable(path: Path, error: Exception) -> DataError:
    reason = (error.strerror if isinstance(error, OSError) else None) or shown(str(error), 60)
    return DataError(f"{shown(str(path), 120)} cannot be written: {reason}. Choose another place.", field=_FIELD)


def _nothing(written: Written, to: Target) -> str:
    if not written.first_skipped:
        return "There is no row to write."
    first = written.first_skipped[0]
    return f"No row can be written as {to}: row {first.row}: {first.reason}."
