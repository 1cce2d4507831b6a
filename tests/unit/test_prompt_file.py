"""Files of prompts in the shapes people have them, and what is left out with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from studio.records.errors import DataError
from studio.records.prompt_file import LONGEST, PromptFile, read_prompts

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who are you?"},
]


def of(path: Path, content: str | bytes) -> PromptFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompts(path)


def rows(tmp_path: Path, *values: Any) -> PromptFile:
    return of(tmp_path / "p.jsonl", "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_a_text_has_a_prompt_a_line(tmp_path: Path, encoding: str) -> None:
    found = of(tmp_path / "p.txt", "你是谁？请用一句话回答我。\r\n\n  Who are you? \n\t\n".encode(encoding))
    assert [(row.row, row.question) for row in found.rows] == [(1, "你是谁？请用一句话回答我。"), (3, "Who are you?")]


def test_tables_have_a_column_of_prompts_and_perhaps_more(tmp_path: Path) -> None:
    found = of(tmp_path / "p.csv", 'id,Question,Answer,system\n1,"a, b",x,S\n2,,y,\n3,c,,\n')
    assert [(row.row, row.messages, row.reference) for row in found.rows] == [
        (2, ({"role": "system", "content": "S"}, {"role": "user", "content": "a, b"}), "x"),
        (4, ({"role": "user", "content": "c"},), ""),
    ]
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for line in (["提问", "答案"], ["你是谁？", "诺娃"], [12, None]):
        sheet.append(line)
    book.save(tmp_path / "p.xlsx")
    assert [(row.question, row.reference) for row in read_prompts(tmp_path / "p.xlsx").rows] == [
        ("你是谁？", "诺娃"),
        ("12", ""),
    ]


def test_a_single_column_is_the_prompts_whatever_it_is_called(tmp_path: Path) -> None:
    assert [row.question for row in of(tmp_path / "p.csv", "things to ask\na\nb\n").rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "messages", "reference"),
    [
        ("Hi", [("user", "Hi")], ""),
        ({"prompt": "Hi", "expected": "Ho"}, [("user", "Hi")], "Ho"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, [("user", "Add\n1 2")], "3"),
        ({"messages": TALK}, [(turn["role"], turn["content"]) for turn in TALK], ""),
        (
            {"messages": [*TALK, {"role": "assistant", "content": "Nova"}]},
            [(turn["role"], turn["content"]) for turn in TALK],
            "Nova",
        ),
        (
            {"conversation": [{"system": "S", "input": "Hi", "output": "Hello"}, {"input": "Who?", "output": "Nova"}]},
            [("system", "S"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")],
            "Nova",
        ),
        (
            {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Nova"}]},
            [("user", "Who?")],
            "Nova",
        ),
    ],
)
def test_rows_of_many_shapes(tmp_path: Path, row: Any, messages: list[tuple[str, str]], reference: str) -> None:
    (found,) = rows(tmp_path, row).rows
    assert [(turn["role"], turn["content"]) for turn in found.messages] == messages
    assert found.reference == reference


def test_calls_of_tools_stay_in_a_conversation(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "Thanks"},
    ]
    (found,) = rows(tmp_path, {"messages": talk}).rows
    assert found.messages[1]["tool_calls"] == [call]
    assert found.messages[2]["tool_call_id"] == "c"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, "neither a text nor an object"),
        ({"a": 1, "b": 2}, "none of its columns is known as a prompt (a, b)"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "it has no question"),
        ({"messages": [{"role": "king", "content": "x"}]}, "message 1 has no role of"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1 is no text"),
        ("x" * (LONGEST + 1), "longer than"),
        ("a\x00b", "NUL"),
    ],
)
def test_what_cannot_be_asked_is_left_out_with_its_reason(tmp_path: Path, row: Any, reason: str) -> None:
    found = rows(tmp_path, "Hi", row)
    assert [row.question for row in found.rows] == ["Hi"]
    assert [entry.row for entry in found.skipped] == [2]
    assert reason in found.skipped[0].reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", "\n\n", "has no prompts"),
        ("p.jsonl", '{"a": 1, "b": 2}\n', "Row 1: none of its columns"),
        ("p.jsonl", "", "is empty"),
        ("p.pdf", "%PDF-1.7", "p.pdf"),
        ("p.xlsx", "no book", "p.xlsx"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as refused:
        of(tmp_path / name, content)
    assert refused.value.field == "prompts"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("p.txt", "p.jsonl"):
        with pytest.raises(DataError, match="does not exist"):
            read_prompts(tmp_path / name)
