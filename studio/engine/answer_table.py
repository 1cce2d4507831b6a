"""Answers on disk: a line each while they come, and at the end a table, as JSON Lines or as an Excel sheet."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from studio.durable import write_atomic
from studio.engine.output_folder import taken_already
from studio.records.prompt_file import PromptRow

SUFFIXES = (".jsonl", ".xlsx")
LONGEST_CELL = 32_767  # what Excel holds


class KeptAnswers:
    """The answers of a run so far, one JSON object a line; a last line that was torn is written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[int, str], dict[str, Any]] = {}
        for answer in _lines(path):
            self._found[answer["row"], answer["column"]] = answer
        write_atomic(path, "".join(map(_line, self._found.values())))

    def __len__(self) -> int:
        return len(self._found)

    def has(self, row: int, column: str) -> bool:
        """Whether that question has its answer."""
        return (row, column) in self._found

    def get(self, row: int, column: str) -> dict[str, Any]:
        """An answer; empty when there is none."""
        return self._found.get((row, column), {})

    def add(self, answer: dict[str, Any]) -> None:
        """Keep an answer."""
        self._found[answer["row"], answer["column"]] = answer
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(answer))

    def report(self, rows: Sequence[PromptRow], columns: Sequence[str]) -> dict[str, Any]:
        """Counts, for report.json."""
        found = [self.get(row.row, column) for row in rows for column in columns]
        errors = [str(answer["error"]) for answer in found if answer.get("error")]
        report: dict[str, Any] = {
            "prompts": len(rows),
            "columns": list(columns),
            "answers": sum("answer" in answer for answer in found),
            "refused": len(errors),
            "first_error": errors[0] if errors else "",
            "cut": sum(bool(answer.get("cut")) for answer in found),
            "tokens": sum(int(answer.get("tokens") or 0) for answer in found),
        }
        if len(columns) == 2:
            pairs = [[self.get(row.row, column).get("answer") for column in columns] for row in rows]
            report["changed"] = sum(None not in pair and pair[0] != pair[1] for pair in pairs)
        return report


def _line(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # a text may hold other breaks of lines
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and isinstance(answer.get("row"), int) and isinstance(answer.get("column"), str):
            yield answer


def write_table(out: Path, rows: Sequence[PromptRow], columns: Sequence[str], kept: KeptAnswers) -> None:
    """Write the table whole or not at all. Raises EngineError when its name was taken meanwhile, OSError."""
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        (_write_sheet if out.suffix.lower() == ".xlsx" else _write_lines)(part, rows, columns, kept)
        part.chmod(0o644)
        if out.exists() or out.is_symlink():
            raise taken_already(out)
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)


def _write_lines(path: Path, rows: Sequence[PromptRow], columns: Sequence[str], kept: KeptAnswers) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            asked: Any = row.question if len(row.messages) == 1 else list(row.messages)
            found: dict[str, Any] = {"row": row.row, "prompt": asked}
            for column in columns:
                answer = kept.get(row.row, column)
                found[column] = answer.get("answer")
                found |= {f"{column}_{key}": answer[key] for key in ("cut", "error") if answer.get(key)}
            if row.reference:
                found["reference"] = row.reference
            file.write(_line(found))


def _write_sheet(path: Path, rows: Sequence[PromptRow], columns: Sequence[str], kept: KeptAnswers) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    from openpyxl.styles import Alignment, Font

    book = Workbook(write_only=True)
    sheet = book.create_sheet("answers")
    headings = ["row", "prompt", *columns, *(["reference"] if any(row.reference for row in rows) else [])]
    for number in range(len(headings)):
        sheet.column_dimensions[chr(ord("A") + number)].width = 8 if number == 0 else 60
    sheet.freeze_panes = "A2"

    def cell(value: str | int, *, bold: bool = False) -> Any:
        made = WriteOnlyCell(sheet)
        if isinstance(value, int):
            made.value = value
            return made
        made.value = ILLEGAL_CHARACTERS_RE.sub("", value)[:LONGEST_CELL]
        made.data_type = "s"  # a text, also where it begins like a formula
        made.alignment, made.font = Alignment(wrap_text=True, vertical="top"), Font(bold=bold)
        return made

    sheet.append([cell(heading, bold=True) for heading in headings])
    for row in rows:
        told = [_told(kept.get(row.row, column)) for column in columns]
        ends = [row.reference] if len(headings) > 2 + len(columns) else []
        sheet.append([cell(row.row), *map(cell, [_as_text(row), *told, *ends])])
    book.save(path)


def _told(answer: dict[str, Any]) -> str:
    return f"[{answer['error']}]" if answer.get("error") else str(answer.get("answer") or "")


def _as_text(row: PromptRow) -> str:
    """A question as it is, a conversation with its roles."""
    if len(row.messages) == 1:
        return row.question
    return "\n".join(f"{message['role']}: {message['content']}" for message in row.messages)
