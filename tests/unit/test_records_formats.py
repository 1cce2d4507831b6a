"""Reading files: formats are recognised, rows are accounted for, faults are sentences with a place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, read_file, store
from studio.records.cells import table_cell
from studio.records.conversation import PlainText
from studio.records.formats import STORED, ReadOptions, Skipped, open_records, to_row
from studio.records.places import DATA

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
        assert to_row(result.conversations[0])["messages"][1]["loss"] is False
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


def test_other_encodings_are_read_and_said(tmp_path: Path) -> None:
    chinese = '{"messages": [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是小芽"}]}'
    for encoding, named in (("gb18030", "GBK"), ("utf-16", "UTF-16")):
        result = read_file(write(tmp_path, (chinese + "\n" + chinese).encode(encoding)))
        assert result.conversations[1].messages[1].content == "我是小芽"
        assert result.encoding.startswith(encoding)
        assert named in " ".join(result.warnings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        (" \n\t\r\n", "is empty"),
        ("\ufeff", "is empty"),
        ("[]", "empty list"),
        ("hello", "not valid JSON"),
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


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ('\n{"messages": [{"role"', "line 2"),
        (',\n {"mess', "line 2"),
        (',\n {"a": 1,}]', "line 2"),
    ],
)
def test_what_stands_before_a_break_is_kept(tmp_path: Path, tail: str, expected: str) -> None:
    result = read_file(write(tmp_path, ("[" if tail[0] == "," else "") + json.dumps(GOOD) + tail))
    assert len(result.conversations) == 1
    assert len(result.skipped) == 1
    assert expected in result.skipped[0].reason


def test_unknown_columns_name_columns_formats_and_the_nearest(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, [{"mesages": [], "id": 1}]))
    for part in ("'mesages', 'id'", "Alpaca", "Conversation (XTuner)", "Did you mean 'messages'?"):
        assert part in message


def test_wrong_files(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "none.json")
    assert error_of(write(tmp_path, "a,b", "set.docx"))
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
    assert reasons[9] == "the column 'messages' is missing; it has 'x'"
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


def test_a_table_has_numbers_where_json_has_faults(tmp_path: Path) -> None:
    table = read_file(write(tmp_path, "question,answer\nq,42\nr,\ns,yes\n", "t.csv"))
    assert [record.messages[1].content for record in table.conversations] == ["42", "yes"]
    assert [(entry.row, entry.reason.split(" is ")[0]) for entry in table.skipped] == [(3, "'answer'")]
    rows = [{"question": "q", "answer": value} for value in ("42", 42)]
    json_rows = read_file(write(tmp_path, rows))
    assert [entry.reason for entry in json_rows.skipped] == ["'answer' is a number (42), not text; put it in quotes"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [(42, "42"), (42.0, "42"), (0.1, "0.1"), (True, "true"), (None, None), (float("nan"), None), ("x", "x"),
     ([1], [1]), (1e300, "1e+300"), (b"x", b"x")],
)  # fmt: skip
def test_table_cells(cell: Any, expected: Any) -> None:
    assert table_cell(cell) == expected


def test_the_mapping_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, [{"frage": "q", "antwort": "a", "question": "x", "answer": "y"}] * 2)
    assert read_file(path).conversations[0].messages[0].content == "x"
    chosen = read_file(path, ReadOptions(mapping="instruction=frage, output=antwort"))
    assert chosen.format == "columns"
    assert [m.content for m in chosen.conversations[0].messages] == ["q", "a"]
    assert read_file(path, ReadOptions(mapping="text=frage")).conversations[0].text == "q"
    with pytest.raises(DataError, match="the column 'gone' is missing; it has 'frage', 'antwort'"):
        read_file(path, ReadOptions(mapping="instruction=frage, output=gone"))


def test_strict_reading_names_the_first_faults_and_how_many(tmp_path: Path) -> None:
    bad = {"messages": []}
    path = write(tmp_path, [GOOD, bad, GOOD, bad, {"x": 1}, bad])
    assert len(read_file(path).conversations) == 2
    with pytest.raises(DataError) as caught:
        read_file(path, ReadOptions(strict=True))
    assert caught.value.message.startswith(
        "set.jsonl has 4 rows that cannot be used: row 2: it has no messages; row 4: "
    )
    assert "row 6" not in caught.value.message
    assert read_file(write(tmp_path, [GOOD]), ReadOptions(strict=True)).rows_read == 1


def test_a_limit_counts_rows(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD, {"messages": []}, GOOD, GOOD])
    result = read_file(path, ReadOptions(limit=3))
    assert (result.rows_read, result.rows) == (3, [1, 3])


def test_a_stream_can_be_read_again_and_reads_no_further_than_asked(tmp_path: Path) -> None:
    stream = open_records(write(tmp_path, [GOOD, {"messages": []}, GOOD]))
    first, again = list(stream), list(stream)
    assert first == again
    assert [entry.row if isinstance(entry, Skipped) else entry[0] for entry in first] == [1, 2, 3]
    assert (stream.rows_read, stream.done) == (3, stream.total)
    assert "1 row was skipped" in stream.notes[0]
    assert next(iter(stream)) == first[0]
    assert stream.rows_read == 1


def test_a_stream_stops_at_a_placeholder(tmp_path: Path) -> None:
    row = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "I am {{ name }}"}]}
    stream = open_records(write(tmp_path, [GOOD, row]))
    with pytest.raises(DataError, match="Row 2 still contains"):
        list(stream)
    assert len(list(open_records(write(tmp_path, [{"text": "Dear {{name}},"}])))) == 1


def test_tool_calls_do_not_break_the_warnings(tmp_path: Path) -> None:
    result = read_file(DATA / "examples" / "tools.jsonl")
    assert len(result.conversations[0].messages[1].tool_calls) == 1


def test_a_saved_dataset_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Its plain texts may look like another format, and its conversations may come late: nothing is guessed."""
    texts = [{"text": f"### Human: {number} ### Assistant: x", "origin": "upload"} for number in range(300)]
    path = write(tmp_path, [*texts, {**GOOD, "origin": "upload"}], STORED[0])
    assert read_file(path).format == "guanaco"
    (tmp_path / STORED[1]).write_text("{}", encoding="utf-8")
    result = read_file(path)
    assert (len(result.conversations), result.skipped) == (301, [])
    assert result.conversations[0] == PlainText(text=texts[0]["text"])
    assert STORED == (store.ROWS, store.INFO)
