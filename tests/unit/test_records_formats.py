"""Reading files: formats are recognised, rows are accounted for, faults are sentences with a place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, read_file
from studio.records.places import DATA
from studio.records.store import to_rows

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def write(folder: Path, content: Any, name: str = "set.jsonl") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="")
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in content), encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert caught.value.field == "data.dataset"
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [("messages.jsonl", "messages", 4), ("conversation.json", "conversation", 3), ("alpaca.json", "alpaca", 3)],
)
def test_examples_are_recognised(name: str, kind: str, rows: int) -> None:
    result = read_file(DATA / "examples" / name)
    assert (result.format, result.rows_read, len(result.conversations)) == (kind, rows, rows)
    assert result.skipped == []
    assert result.warnings == []


def test_contents_of_the_formats(tmp_path: Path) -> None:
    alpaca = read_file(write(tmp_path, [{"instruction": "Add", "input": "1 and 2", "output": "3"}]))
    assert [m.content for m in alpaca.conversations[0].messages] == ["Add\n1 and 2", "3"]
    turns = {
        "conversation": [{"system": "s", "input": "q", "output": "a"}, {"system": "s", "input": "r", "output": "b"}]
    }
    xtuner = read_file(write(tmp_path, [turns]))
    assert [m.role for m in xtuner.conversations[0].messages] == ["system", "user", "assistant", "user", "assistant"]


def test_loss_flags_in_both_spellings(tmp_path: Path) -> None:
    for off in (False, "False"):
        first = [*GOOD["messages"][:1], {"role": "assistant", "content": "no", "loss": off}]
        result = read_file(write(tmp_path, [{"messages": first + GOOD["messages"]}]))
        assert result.conversations[0].trained == (False, False, False, True)
        assert to_rows(result.conversations)[0]["messages"][1]["loss"] is False
    turn = {"input": "q", "output": "a"}
    result = read_file(write(tmp_path, [{"conversation": [{**turn, "output_with_loss": False}, turn]}]))
    assert result.conversations[0].trained == (False, False, False, True)
    assert "not true or false" in error_of(write(tmp_path, [{"conversation": [{**turn, "output_with_loss": 2}]}]))


def test_bom_crlf_list_and_single_object(tmp_path: Path) -> None:
    line = json.dumps(GOOD)
    for content in (
        b"\xef\xbb\xbf" + line.encode(),
        (line + "\r\n\r\n" + line + "\r\n").encode(),
        json.dumps([GOOD, GOOD], indent=2).encode(),
        json.dumps(GOOD, indent=2).encode(),
    ):
        assert read_file(write(tmp_path, content)).conversations[0].messages[1].content == "hello"


def test_line_separators_inside_a_text_do_not_cut_the_line(tmp_path: Path) -> None:
    row = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a\u2028b\x85c"}]}
    assert read_file(write(tmp_path, [row, GOOD])).conversations[0].messages[1].content == "a\u2028b\x85c"


def test_one_row_is_allowed_and_said(tmp_path: Path) -> None:
    assert "only one conversation" in " ".join(read_file(write(tmp_path, [GOOD])).warnings)
    other = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "hey"}]}
    assert read_file(write(tmp_path, [GOOD, other])).warnings == []


def test_encodings_are_named(tmp_path: Path) -> None:
    chinese = '{"messages": [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是小芽"}]}'
    gbk = error_of(write(tmp_path, chinese.encode("gbk")))
    assert "GBK" in gbk
    assert "UTF-8" in gbk
    assert "UTF-16" in error_of(write(tmp_path, chinese.encode("utf-16")))
    assert "0xe9 in line 2" in error_of(write(tmp_path, b"{}\n" + "é".encode("latin-1") + b" caf"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        (" \n\t\r\n", "is empty"),
        ("\ufeff", "is empty"),
        ("[]", "empty list"),
        ('{"messages": []}\n{"messages": [{"role"', "breaks off at line 2, column"),
        ('[{"messages": []},\n {"mess', "breaks off at line 2, column 3"),
        ('[{"messages": []},\n {"a": 1,}]', "not valid JSON at line 2"),
        ("hello", "not valid JSON at line 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "number that cannot be read"),
        ("[1, 2, 3]", "no JSON objects, but a number"),
        ("null", "no JSON objects, but null"),
        ('"text"', "no JSON objects, but text"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_of(write(tmp_path, text))


def test_unknown_columns_name_columns_formats_and_the_nearest(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, [{"mesages": [], "id": 1}]))
    for part in ("'mesages', 'id'", "Alpaca", "Conversation (XTuner)", "Did you mean 'messages'?"):
        assert part in message


def test_wrong_files(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "none.json")
    assert "is a folder" in error_of(tmp_path)
    assert "not a .json or .jsonl" in error_of(write(tmp_path, "a,b", "set.csv"))
    assert "does not exist" in error_of(Path("nul\x00.json"))


def test_skipped_rows_have_number_and_reason(tmp_path: Path) -> None:
    def answer(content: Any) -> dict[str, Any]:
        return {"messages": [GOOD["messages"][0], {"role": "assistant", "content": content}]}

    rows: list[Any] = [
        GOOD, answer(None), answer(""), answer(["x"]), answer({"a": 1}), 7, None, [], {"x": 1},
        {"messages": "hi"}, {"messages": [1]}, {"messages": [{"role": "user"}]}, {"messages": []},
        {"messages": [{"role": 3, "content": "x"}]}, {"messages": [{"role": "boss", "content": "x"}]}, GOOD,
    ]  # fmt: skip
    result = read_file(write(tmp_path, rows))
    assert (len(result.conversations), len(result.skipped), result.rows_read) == (2, 14, 16)
    assert [entry.row for entry in result.skipped] == list(range(2, 16))
    assert result.rows == [1, 16]
    reasons = {entry.row: entry.reason for entry in result.skipped}
    assert reasons[2] == "message 2 has a null 'content'"
    assert reasons[4] == "'content' of message 2 is a list, not text"
    assert reasons[6] == "the row is a number, not an object"
    assert reasons[9] == "the column 'messages' is missing"
    assert "role 'boss'" in reasons[15]
    assert "14 rows were skipped; the first is row 2" in result.warnings[0]


def test_all_rows_skipped_is_an_error(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, [{"messages": []}, {"messages": None}]))
    assert "all 2 rows had to be skipped; row 1: it has no messages" in message


def test_unfilled_placeholders_are_refused_unless_the_import_fills_them(tmp_path: Path) -> None:
    row = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "I am {{NAME}}"}]}
    path = write(tmp_path, [GOOD, row])
    assert "Row 2 still contains the placeholder {{NAME}}" in error_of(path)
    assert len(read_file(path, allow_placeholders=True).conversations) == 2


def test_alpaca_history_and_system(tmp_path: Path) -> None:
    row = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    messages = read_file(write(tmp_path, [row])).conversations[0].messages
    assert "".join(message.content for message in messages) == "sabcd"
    for wrong in ("x", [["a"]], [["a", 1]], [None]):
        assert "history" in error_of(write(tmp_path, [{**row, "history": wrong}]))


def test_repeated_rows_are_pointed_out(tmp_path: Path) -> None:
    other = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "hey"}]}
    assert "Only 2 of the 100 conversations differ" in read_file(write(tmp_path, [GOOD, other] * 50)).warnings[0]
    assert read_file(write(tmp_path, [GOOD, other, GOOD])).warnings == []


def test_control_tokens_are_pointed_out(tmp_path: Path) -> None:
    row = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "<|im_end|> more"}]}
    assert "Row 2 contains <|im_end|>" in " ".join(read_file(write(tmp_path, [GOOD, row])).warnings)
