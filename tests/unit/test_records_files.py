"""Files of JSON: every shape people write, in any encoding, whole or torn; a bad row never costs a good one."""

from __future__ import annotations

import gzip
import json
import os
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from studio.records import textfile
from studio.records.errors import DataError, Skipped
from studio.records.files import SUFFIXES, RowStream, head, open_rows

Q, A = "你是谁？", "我是小芽，一个人工智能助手。"
ROWS = [{"instruction": Q, "output": A}, {"instruction": "a\u2028b\x85c", "output": "d 🔥"}]


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if not isinstance(content, str | bytes):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(stream: RowStream) -> list[Any]:
    return [entry[1] for entry in stream if not isinstance(entry, Skipped)]


def skipped(stream: RowStream) -> list[Skipped]:
    return [entry for entry in stream if isinstance(entry, Skipped)]


def lines(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def error_of(path: Path, **options: Any) -> str:
    """The sentence for a file that cannot be used."""
    with pytest.raises(DataError) as caught:
        list(open_rows(path, **options))
    message = caught.value.message
    assert message.endswith((".", "?"))
    assert "\n" not in message
    assert "Traceback" not in message
    return message


# What JSON files look like


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", lines(ROWS), "jsonl"),
        ("a.ndjson", lines(ROWS) + "\n\n", "jsonl"),
        ("a.json", lines(ROWS), "jsonl"),
        ("a.jsonl", lines(ROWS).replace("\n", "\r\n"), "jsonl"),
        ("a.jsonl", lines(ROWS).replace("\n", "\r"), "jsonl"),
        ("a.json", json.dumps(ROWS), "json"),
        ("a.jsonl", json.dumps(ROWS, indent=2, ensure_ascii=False), "json"),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), "json"),
        ("a.json", json.dumps({"version": 1, "data": ROWS}), "json"),
        ("a.json", json.dumps({"rows": ROWS, "note": "x"}, indent=4), "json"),
        ("a.json", "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + ",\n]\n", "json"),
    ],
)
def test_shapes_of_json(tmp_path: Path, name: str, content: str, kind: str) -> None:
    stream = open_rows(write(tmp_path, name, content))
    assert (values(stream), stream.kind, stream.encoding) == (ROWS, kind, "utf-8")
    assert values(stream) == ROWS  # may be iterated again
    assert stream.done == stream.total > 0
    assert stream.columns is None


def test_a_list_inside_an_object_is_said(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.json", {"train": ROWS, "test": ROWS}))
    assert values(stream) == ROWS
    assert "list 'train'" in stream.notes[0]
    assert "second list, 'test'" in stream.notes[1]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
def test_one_conversation_is_one_row(tmp_path: Path, key: str, indent: int | None) -> None:
    row = {"id": 1, key: [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert values(open_rows(write(tmp_path, "a.json", json.dumps(row, indent=indent)))) == [row]


def test_lines_that_hold_lists_or_wrapped_lists_stay_lines(tmp_path: Path) -> None:
    for rows in ([[{"a": 1}], [{"a": 2}]], [{"data": [{"a": 1}]}, {"data": []}], [1, 2], [None, "x"]):
        assert values(open_rows(write(tmp_path, "a.jsonl", lines(rows)))) == rows


def test_row_numbers_are_lines_or_items(tmp_path: Path) -> None:
    by_line = open_rows(write(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}'))
    by_item = open_rows(write(tmp_path, "a.json", '\n[{"a": 1},\n\n{"a": 2}]'))
    assert [list(by_line), list(by_item)] == [[(2, {"a": 1}), (4, {"a": 2})], [(1, {"a": 1}), (2, {"a": 2})]]


def test_every_suffix_that_is_promised_has_a_reader(tmp_path: Path) -> None:
    needs_more = (".xlsx", ".xlsm", ".parquet", ".arrow", ".feather", ".gz")
    for suffix in SUFFIXES:
        path = write(tmp_path, f"x{suffix.upper()}", b"q,a\n1,2")
        if suffix.endswith(needs_more):
            assert any(word in error_of(path) for word in ("but text. Rename", "not packed with gzip"))
        else:
            assert list(open_rows(path))


# Broken rows


def test_a_broken_line_costs_only_itself(tmp_path: Path) -> None:
    text = '{"a": 1}\n{"a": ,}\n{"a": 3} x\n{"a": 4,}\nnonsense\n{"a": 6}\n{"a": "se'
    stream = open_rows(write(tmp_path, "a.jsonl", text))
    assert values(stream) == [{"a": 1}, {"a": 6}]
    reasons = {entry.row: entry.reason for entry in skipped(stream)}
    assert "not valid JSON (Expecting value) at line 2, column 7" in reasons[2]
    assert "more behind the end of the row at line 3, column 10" in reasons[3]
    assert "at line 4, column 9" in reasons[4]
    assert "at line 5, column 1" in reasons[5]
    assert "breaks off at line 7, column 7" in reasons[7]


def test_a_torn_first_line_does_not_turn_lines_into_one_object(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.jsonl", '{"a": "x",\n{"a": 2}\n{"a": 3}\n'))
    assert values(stream) == [{"a": 2}, {"a": 3}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.77, 0.99])
def test_a_list_that_breaks_off_keeps_the_items_before(tmp_path: Path, share: float, indent: int | None) -> None:
    rows = [{"n": n, "text": f"row {n} 字"} for n in range(20)]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    text = text[: int(len(text) * share)]
    stream = open_rows(write(tmp_path, "a.json", text))
    entries = list(stream)
    good = values(stream)
    assert good == rows[: len(good)]
    assert len(good) >= int(20 * share) - 1
    assert isinstance(entries[-1], Skipped)
    assert entries[-1].row == len(good) + 1
    assert "cut short" in entries[-1].reason
    text = text.rstrip()
    line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    assert f"line {line}, column " in entries[-1].reason
    assert column >= int(entries[-1].reason.rpartition("column ")[2])
    assert "was cut short" in stream.notes[-1]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ('"MIDDLE"', "MIDDLE"),
        ('"MIDDLE"', '"MIDDLE" "x"'),
        ('"MIDDLE"', '"MIDDLE",,'),
        ('"MIDDLE"', "9" * 5000),
        ('"MIDDLE"', '"\\ud800"'),
        ('"MIDDLE"', '"\\x"'),
        ('"MIDDLE"', "[" * 3000 + "]" * 3000),
    ],
)
def test_a_bad_item_costs_only_itself(tmp_path: Path, good: str, bad: str, indent: int | None) -> None:
    rows = [{"a": "first"}, {"a": "MIDDLE", "b": ["]", "}", '"']}, {"a": "last"}]
    text = json.dumps(rows, indent=indent).replace(good, bad)
    stream = open_rows(write(tmp_path, "a.json", text))
    assert values(stream) == [rows[0], rows[2]]
    assert [entry.row for entry in skipped(stream)] == [2]
    assert "at line " in skipped(stream)[0].reason


def test_a_missing_quotation_mark_in_a_list_over_lines(tmp_path: Path) -> None:
    rows = [{"a": f"row {n}", "b": [{"c": "d"}]} for n in range(5)]
    text = json.dumps(rows, indent=2).replace('"row 2"', '"row 2')
    stream = open_rows(write(tmp_path, "a.json", text))
    assert values(stream) == [*rows[:2], *rows[3:]]


def test_a_missing_bracket_ends_the_list_with_the_place(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.json", '[{"a": 1},\n{"a": [1, }, {"a": 3}]'))
    assert values(stream)[0] == {"a": 1}
    assert "line 2, column 11" in skipped(stream)[0].reason
    assert any("could not be read behind" in note or "was cut short" in note for note in stream.notes)


def test_missing_commas_and_more_behind_the_list(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.json", '[{"a": 1}\n{"a": 2}]\n[{"a": 3}]'))
    assert values(stream) == [{"a": 1}, {"a": 2}]
    assert "goes on at line 3, column 1" in stream.notes[0]


@pytest.mark.parametrize("block", [7, 8, 13, 16, 31, 64])
def test_where_the_blocks_end_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rows = [
        {"a": -1.5e-10, "b": True, "c": None, "t": 'x\\"\n\u2028é字🔥' * (n % 5), "l": [[], {}, [n]]} for n in range(30)
    ]
    plain: list[Any] = [10, 123456, -0.5, "a", None, True, *rows]
    bad = json.dumps(rows[:3])[:-1] + ', {"a": tru}, {"a": 1}]'
    for name, text in {
        "lines.jsonl": lines(rows),
        "list.json": json.dumps(plain, ensure_ascii=False),
        "spread.json": json.dumps(rows, indent=3),
        "objects.json": "\n".join(json.dumps(row, indent=1) for row in rows),
        "bad.json": bad,
        "torn.json": json.dumps(rows)[:-40],
    }.items():
        stream = open_rows(write(tmp_path, name, text))
        expected = list(stream)
        assert len(expected) > 3
        again = open_rows(tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(textfile, "BLOCK_BYTES", block)
            assert list(again) == expected
        assert again.notes == stream.notes


def test_numbers_that_json_does_not_know_are_read_as_nothing(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.jsonl", '{"a": NaN}\n{"a": -Infinity}\n{"a": 1}'))
    assert values(stream) == [{"a": None}, {"a": None}, {"a": 1}]
    assert "NaN" in stream.notes[0]


def test_half_characters_are_skipped_and_whole_ones_kept(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.jsonl", '{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}\n{"\\udc00": 1}'))
    assert values(stream) == [{"a": "😀"}]
    assert [entry.row for entry in skipped(stream)] == [2, 3]
    assert "surrogate" in skipped(stream)[0].reason


def test_zero_bytes_between_rows(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.jsonl", b'{"a": 1}\n' + b"\x00" * 5000 + b'\n{"a": 2}\n'))
    assert values(stream) == [{"a": 1}, {"a": 2}]
    assert skipped(stream)[0].row == 2


# Size


def test_memory_is_bounded_for_lists_and_lines(tmp_path: Path) -> None:
    row = {"instruction": "q" * 300, "output": "a" * 700}
    for name, text in {"a.jsonl": lines([row] * 12_000), "a.json": json.dumps([row] * 12_000)}.items():
        stream = open_rows(write(tmp_path, name, text))
        assert stream.total > 11 * 2**20
        del text
        tracemalloc.start()
        assert sum(1 for _ in stream) == 12_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * 2**20


def test_a_row_that_is_too_long_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("textfile", "json_window", "files_json"):
        monkeypatch.setattr(f"studio.records.{module}.LONGEST_ROW", 3 * 2**20)
    long = '{"a": "' + "x" * (20 * 2**20)
    cases = {
        "a.jsonl": ('{"a": 1}\n' + long + '"}\n{"a": 3}\n', [{"a": 1}, {"a": 3}]),
        "b.jsonl": (long, []),
        "c.json": ('[{"a": 1},\n' + long + '"}]', [{"a": 1}]),
        "d.jsonl": (long + '"}', []),
    }
    for name, (text, good) in cases.items():
        stream = open_rows(write(tmp_path, name, text))
        tracemalloc.start()
        assert values(stream) == good
        first = next(entry for entry in stream if isinstance(entry, Skipped))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "is longer than" in first.reason
        assert f"line {2 if good else 1}" in first.reason
        assert peak < 24 * 2**20


def test_progress_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "BLOCK_BYTES", 1000)
    for name in ("a.jsonl", "a.json"):
        text = lines(ROWS * 200) if name == "a.jsonl" else json.dumps(ROWS * 200)
        stream = open_rows(write(tmp_path, name, text))
        seen = [stream.done for _ in stream]
        assert seen == sorted(seen)
        assert seen[0] < stream.total / 4 < seen[-1] <= stream.total == stream.done


def test_head_reads_no_further(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.jsonl", '{"a": 1}\nbroken\n{"a": 3}'))
    assert [type(entry) for entry in head(stream, 2)] == [tuple, Skipped]
    assert len(head(stream, 99)) == 3


# Encodings


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("encoding", "found", "label", "text"),
    [
        ("utf-8", "utf-8", "", Q + A),
        ("utf-16", "utf-16", "UTF-16", Q + A),
        ("utf-16-le", "utf-16-le", "UTF-16", Q + A + "一一一"),
        ("utf-16-be", "utf-16-be", "UTF-16", Q + A + "一一一"),
        ("utf-32", "utf-32", "UTF-32", Q + A),
        ("gbk", "gb18030", "GBK", Q + A),
        ("gb18030", "gb18030", "GBK", Q + A + "㐀𠀀€"),
        ("gbk", "gb18030", "GBK", "芙蓉花开"),
        ("gbk", "gb18030", "GBK", "Wer bist du? 我叫露娜, I am Luna"),
        ("big5", "cp950", "Big5", "你是誰？我是一個人工智慧助手，可以回答問題。"),
        ("shift_jis", "cp932", "Shift_JIS", "あなたは誰ですか？私はアシスタントです。"),
        ("euc_jp", "euc_jp", "EUC-JP", "あなたは誰ですか？私はアシスタントです。"),
        ("euc_kr", "cp949", "EUC-KR", "당신은 누구입니까? 저는 인공지능 도우미입니다."),
        ("cp1252", "cp1252", "Windows-1252", "Où est le café? “Là-bas” – déjà vu"),
        ("latin-1", "cp1252", "Windows-1252", "Grüße aus Köln, mañana"),
        ("cp1251", "cp1251", "Windows-1251", "Привет, как тебя зовут? Меня зовут Нова."),
    ],
)
def test_encodings_are_read_and_said(
    tmp_path: Path, name: str, encoding: str, found: str, label: str, text: str
) -> None:
    rows = [{"instruction": text, "output": "x"}, {"instruction": "y", "output": text}]
    content = lines(rows) if name == "a.jsonl" else json.dumps(rows, ensure_ascii=False, indent=1)
    stream = open_rows(write(tmp_path, name, content.encode(encoding)))
    assert values(stream) == rows
    assert stream.encoding == found
    assert stream.notes == ([] if not label else stream.notes)
    assert not label or f"encoded as {label}" in stream.notes[0]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": lines(ROWS), "a.json": json.dumps(ROWS)}.items():
        stream = open_rows(write(tmp_path, name, content.encode("utf-8-sig")))
        assert values(stream) == ROWS
        assert "byte order mark" in stream.notes[0]


@pytest.mark.parametrize("encoding", ["gbk", "utf-8", "big5"])
def test_the_first_foreign_byte_may_come_late(tmp_path: Path, encoding: str) -> None:
    text = "你是谁我是助手" if encoding != "big5" else "你是誰我是一個助手"
    rows = [{"a": "plain " * 10}] * 20_000 + [{"a": text}] * 3
    for name, content in {"a.jsonl": lines(rows), "a.json": json.dumps(rows, ensure_ascii=False)}.items():
        stream = open_rows(write(tmp_path, name, content.encode(encoding)))
        assert values(stream)[-3:] == rows[-3:]
        assert stream.encoding == {"gbk": "gb18030", "utf-8": "utf-8", "big5": "cp950"}[encoding]


@pytest.mark.parametrize("first", [True, False])
def test_a_few_bad_bytes_cost_one_row(tmp_path: Path, first: bool) -> None:
    good = [f'{{"a": "{Q} {n}"}}'.encode() for n in range(5)]
    bad = b'{"a": "\xe4\xbd\xff"}'
    parts = [bad, *good] if first else [*good, bad]
    for name, content in {"a.jsonl": b"\n".join(parts), "a.json": b"[" + b",\n".join(parts) + b"]"}.items():
        stream = open_rows(write(tmp_path, name, content))
        assert len(values(stream)) == 5
        place = "line 1" if first else "line 6"
        assert [place in entry.reason for entry in skipped(stream)] == [True]
        assert "not valid" in skipped(stream)[0].reason
        assert stream.encoding == "utf-8"


def test_bad_bytes_in_other_encodings_cost_one_row_too(tmp_path: Path) -> None:
    good = f'{{"a": "{Q}{A}"}}'.encode("gbk")
    stream = open_rows(write(tmp_path, "a.jsonl", b"\n".join([good] * 20 + [b'{"a": "\xff\xff"}'] + [good] * 20)))
    assert (len(values(stream)), stream.encoding) == (40, "gb18030")
    assert "line 21, column 8 is not valid GBK (byte 0xff)" in skipped(stream)[0].reason
    wide = '{"a": "你"}\n'.encode("utf-16-le")
    broken = wide.replace("你".encode("utf-16-le"), b"\x00\xd8")
    stream = open_rows(write(tmp_path, "b.jsonl", b"\xff\xfe" + wide + broken + wide))
    assert values(stream) == [{"a": "你"}] * 2
    assert skipped(stream)[0].row == 2


# Faults of files


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "none.json")
    assert "does not exist" in error_of(tmp_path / "none" / "x.json")
    assert "does not exist" in error_of(Path("nul\x00.json"))
    assert "0 bytes" in error_of(write(tmp_path, "a.json", ""))
    for text in (" \n\t\r\n", "\ufeff", "\ufeff \n"):
        assert "is empty" in error_of(write(tmp_path, "a.jsonl", text))
    for text in ("[]", " [ \n ]", '{"data": []}\n'[:0] + "[\n]\n"):
        assert "holds an empty list" in error_of(write(tmp_path, "a.json", text))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xls", b"\xd0\xcf\x11\xe0", "old Excel format"),
        ("a.docx", b"PK\x03\x04", "Word document"),
        ("a.pdf", b"%PDF-1.4", "is a PDF"),
        ("a.zip", b"PK\x03\x04", "Unpack it"),
        ("a.exe", b"MZ", "is of a kind that is not read"),
        ("noending", b"x", "has no suffix"),
        ("a.json", b"PK\x03\x04[Content_Types].xml xl/workbook.xml", "an Excel workbook. Rename it"),
        ("a.jsonl", b"PAR1\x15\x00", "but a Parquet file. Rename"),
        ("a.json", b"\x1f\x8b\x08", "packed with gzip"),
        ("a.json", b"%PDF-1.7", "but a PDF"),
        ("a.json", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.json.gz", b'{"a": 1}', "not packed with gzip"),
        ("a.parquet", "名字,答案".encode(), "but text. Rename it so that it ends in .csv"),
        ("a.parquet", bytes(range(256)), "but something else or damaged"),
    ],
)  # fmt: skip
def test_wrong_kinds_of_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    message = error_of(write(tmp_path, name, content))
    assert expected in message
    assert name in message


def test_folders_links_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    assert "has no files that can be read" in error_of(inner)
    target = write(tmp_path, "secret.json", [{"a": 1}])
    (inner / "link.json").symlink_to(target)
    assert values(open_rows(inner / "link.json")) == [{"a": 1}]
    assert "leads out of the folder inner" in error_of(inner / "link.json", inside=inner)
    assert "leads out of the folder inner" in error_of(inner / ".." / "secret.json", inside=inner)
    assert values(open_rows(target, inside=tmp_path)) == [{"a": 1}]
    (inner / "dangling.json").symlink_to(inner / "gone.json")
    assert "does not exist" in error_of(inner / "dangling.json")
    (inner / "loop.json").symlink_to(inner / "loop.json")
    assert "loop.json" in error_of(inner / "loop.json")
    os.mkfifo(inner / "pipe.jsonl")
    assert "a pipe, socket or device" in error_of(inner / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(inner)  # the path of a socket must be short
        unix.bind("s.json")
    assert "a pipe, socket or device" in error_of(inner / "s.json")
    (inner / "device.json").symlink_to("/dev/zero")
    assert "a pipe, socket or device" in error_of(inner / "device.json")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.json", [{"a": 1}])

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read everything
    assert error_of(path) == "a.json cannot be read: Permission denied. Check the file and its permissions."


def test_a_file_that_vanishes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", [{"a": 1}])
    stream = open_rows(path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.json cannot be read: No such file"):
        list(stream)


# Packed files


def test_packed_files_are_streamed(tmp_path: Path) -> None:
    packed = gzip.compress(lines(ROWS * 50).encode())
    stream = open_rows(write(tmp_path, "a.jsonl.gz", packed))
    assert values(stream) == ROWS * 50
    assert stream.done == stream.total == len(packed)
    numbered = gzip.compress(lines([{"n": n * n % 997, "t": Q} for n in range(2000)]).encode())
    torn = open_rows(write(tmp_path, "b.jsonl.gz", numbered[: len(numbered) // 2]))
    entries = list(torn)
    assert isinstance(entries[-1], Skipped)
    assert 300 < len(entries) < 1900
    assert "cannot be read from here on" in entries[-1].reason
    assert "breaks off behind row" in torn.notes[-1]


def test_the_name_of_a_link_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").symlink_to(write(tmp_path, "blob", gzip.compress(lines(ROWS).encode())))
    stream = open_rows(tmp_path / "a.jsonl.gz")
    assert (values(stream), stream.name) == (ROWS, "a.jsonl.gz")


def test_a_packed_trap_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "MOST_UNPACKED", 3 * 2**20)
    trap = gzip.compress(b'{"a": 1}\n' + b" " * (30 * 2**20), 9)
    assert len(trap) < 40_000
    entries = list(open_rows(write(tmp_path, "a.jsonl.gz", trap)))
    assert entries[0] == (1, {"a": 1})
    assert isinstance(entries[-1], Skipped)
    assert "unpacks to far more" in entries[-1].reason
