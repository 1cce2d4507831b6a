"""Files of tables and texts: CSV, Excel, Parquet, Arrow, saved datasets, text files and folders of them."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import random
import shutil
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from openpyxl import Workbook

from studio.records import files_csv, files_excel, files_text
from studio.records.errors import DataError, Skipped
from studio.records.files import RowStream, open_rows

Table = list[list[Any]]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(stream: RowStream) -> list[Any]:
    return [entry[1] for entry in stream if not isinstance(entry, Skipped)]


def skipped(stream: RowStream) -> dict[int, str]:
    return {entry.row: entry.reason for entry in stream if isinstance(entry, Skipped)}


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(open_rows(path, **options))
    message = caught.value.message
    assert message.endswith((".", "?"))
    assert "\n" not in message
    return message


# CSV


@pytest.mark.parametrize(
    ("name", "separator", "kind"),
    [("a.csv", ",", "csv"), ("a.csv", ";", "csv"), ("a.csv", "\t", "tsv"), ("a.csv", "|", "csv"),
     ("a.tsv", "\t", "tsv"), ("a.tsv", ",", "csv")],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_are_found_in_the_content(tmp_path: Path, name: str, separator: str, kind: str, end: str) -> None:
    text = (
        end.join(separator.join(row) for row in (["问题", "output"], ['"a, b; c\td|e"', "x"], ["", "y"], ["z", ""]))
        + end
    )
    stream = open_rows(write(tmp_path, name, text))
    assert stream.columns == ("问题", "output")
    assert stream.kind == kind
    assert list(stream) == [
        (2, {"问题": "a, b; c\td|e", "output": "x"}),
        (3, {"问题": "", "output": "y"}),
        (4, {"问题": "z", "output": ""}),
    ]
    assert stream.done == stream.total


def test_texts_over_lines_and_quotation_marks(tmp_path: Path) -> None:
    text = 'q,a\n"one\r\ntwo\nthree","say ""hi"""\n\n,,,\n5\' 3",x\nlast,"y"'
    stream = open_rows(write(tmp_path, "a.csv", text))
    assert list(stream) == [
        (2, {"q": "one\ntwo\nthree", "a": 'say "hi"'}),
        (7, {"q": "5' 3\"", "a": "x"}),
        (8, {"q": "last", "a": "y"}),
    ]


def test_rows_with_other_numbers_of_cells(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.csv", "q,a\n1,2\n3\n4,5,6\n7,8,,\n9,10\n"))
    assert [row["q"] for row in values(stream)] == ["1", "7", "9"]
    assert skipped(stream) == {
        3: "row 3 has 1 cell where the header has 2 columns",
        4: "row 4 has 3 cells where the header has 2 columns",
    }


def test_a_quotation_mark_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.csv", 'q,a\n1,2\n"3,4\n5,6\n7,"8\n9,10'))
    assert [row["q"] for row in values(stream)] == ["1", "5", "9"]
    assert list(skipped(stream)) == [3, 5]
    assert "opened and never closed" in skipped(stream)[5]
    wrong = open_rows(write(tmp_path, "b.csv", 'q,a\n"he said "hi" to me",2\n5,6\n'))
    assert [row["q"] for row in values(wrong)] == ["5"]
    assert "the quotation marks are wrong" in skipped(wrong)[2]


def test_many_wrong_quotation_marks_stay_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    feed = files_csv._Feed.__next__
    monkeypatch.setattr(files_csv._Feed, "__next__", lambda self: (read.append(1), feed(self))[1])
    monkeypatch.setattr(files_csv, "_MOST_REREAD", 3000)
    text = "q,a\n" + "".join(f'"x,{n}\n' for n in range(1, 2000, 2)) * 2 + 'y,"z\n' + "1,2\n" * 1000
    skipped_rows = skipped(open_rows(write(tmp_path, "a.csv", text)))
    assert len(skipped_rows) > 500
    assert len(read) < 20_000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk", "utf-16", "big5"])
def test_tables_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    text = (
        "instruction,output\n你是什麼,我是一個助手\n你好,我在\n"
        if encoding == "big5"
        else "instruction,output\n你是谁,我是小芽\n你好,我在这里\n"
    )
    stream = open_rows(write(tmp_path, "a.csv", text.encode(encoding)))
    assert [list(row.values()) for row in values(stream)] == [line.split(",") for line in text.split()[1:]]
    assert stream.columns == ("instruction", "output")
    assert len(stream.notes) == 1


def test_bad_bytes_cost_one_row_of_a_table(tmp_path: Path) -> None:
    raw = "q,a\n你好,你好\n".encode() + b"x,\xff\n" + "你好,再见\n".encode()
    stream = open_rows(write(tmp_path, "a.csv", raw))
    assert len(values(stream)) == 2
    assert skipped(stream) == {3: "line 3 holds bytes that are not valid UTF-8"}


def test_what_excel_and_pandas_add_to_tables(tmp_path: Path) -> None:
    hinted = open_rows(write(tmp_path, "a.csv", "sep=;\nq;a\n1,5;2\n"))
    assert list(hinted) == [(3, {"q": "1,5", "a": "2"})]
    indexed = open_rows(write(tmp_path, "b.csv", ",q,a\n0,x,y\n1,z,w\n"))
    assert (indexed.columns, values(indexed)[1]) == (("q", "a"), {"q": "z", "a": "w"})
    assert "only counts the rows" in indexed.notes[0]
    single = open_rows(write(tmp_path, "c.csv", "text\nhello\nworld\n"))
    assert values(single) == [{"text": "hello"}, {"text": "world"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你是谁？,我是小芽\n你好,好\n", "looks like data, not like names of columns (column 1: '你是谁？')"),
        ("What is it?,A thing.\nx,y\n", "looks like data"),
        ("question,42\nx,y\n", "column 2: '42'"),
        ("q,q\n1,2\n", "two columns named 'q'"),
        ("q,,a\n1,2,3\n", "Column 2 of a.csv has no name"),
        ("q,a\n", "no rows"),
        ("q,a\n\n\n", "no rows"),
        ('[{"q": 1}]', "not a table, but JSON"),
        ('{"q": 1}\n{"q": 2}', "not a table, but JSON"),
        (" \n \n", "is empty"),
        (",".join(f"c{n}" for n in range(1001)) + "\nx\n", "has 1001 columns"),
        ("q" * 100 + ",a\n1,2\n", "looks like data"),
    ],
)
def test_headers_that_cannot_name_columns(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_of(write(tmp_path, "a.csv", text))


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.csv", "q,a\n" + "x" * 500_000 + ",y\n"))
    assert len(values(stream)[0]["q"]) == 500_000


def test_memory_for_a_large_table(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.csv", "q,a\n" + ("x" * 500 + "," + "y" * 500 + "\n") * 12_000))
    tracemalloc.start()
    assert sum(1 for _ in stream) == 12_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20


# Excel


def book(path: Path, **sheets: Sequence[Sequence[Any]]) -> Path:
    made = Workbook()
    made.remove(made.active)  # type: ignore[arg-type]
    for title, rows in sheets.items():
        sheet = made.create_sheet(title)
        for row in rows:
            sheet.append(list(row))
    made.save(path)
    return path


def test_cells_become_the_text_a_person_sees(tmp_path: Path) -> None:
    cells = {
        "number": (3.0, "3"), "half": (0.1 + 0.2, "0.3"), "whole": (12345678901, "12345678901"), "yes": (True, "TRUE"),
        "day": (datetime.date(2024, 2, 1), "2024-02-01"), "clock": (datetime.time(3, 4), "03:04:00"),
        "none": (None, ""),
        "time": (datetime.datetime(2024, 2, 1, 3, 4), "2024-02-01 03:04:00"), "text": ("你好\nx", "你好\nx"),
        "zero": (0, "0"),
    }  # fmt: skip
    stream = open_rows(book(tmp_path / "a.xlsx", One=[list(cells), [value for value, _ in cells.values()]]))
    assert list(stream) == [(2, {name: text for name, (_, text) in cells.items()})]
    assert (stream.kind, stream.encoding, stream.columns) == ("xlsx", "", tuple(cells))
    assert stream.done == stream.total == 2


def test_sheets(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", Data=[["q", "a"], ["1", "2"]], 备注=[["x"], ["y"]], Empty=[])
    stream = open_rows(path)
    assert values(stream) == [{"q": "1", "a": "2"}]
    assert "Only the sheet 'Data' of a.xlsx is read, not '备注', 'Empty'." in stream.notes
    assert values(open_rows(path, sheet="备注")) == [{"x": "y"}]
    assert "no sheet 'Dat'. It has 'Data', '备注', 'Empty'. Did you mean 'Data'?" in error_of(path, sheet="Dat")
    assert "sheet 'Empty' of a.xlsx is empty" in error_of(path, sheet="Empty")
    assert "no rows under its header" in error_of(book(tmp_path / "b.xlsx", One=[["q", "a"]]))
    assert "looks like data" in error_of(book(tmp_path / "c.xlsx", One=[["你是谁？", "我"], ["a", "b"]]))


def test_gaps_wide_rows_and_errors_in_a_sheet(tmp_path: Path) -> None:
    rows: Table = [[], ["q", "a"], [], ["1", None], ["2", "b", None, "c"], ["3", "#REF!"], [None, None], ["4", "d"]]
    stream = open_rows(book(tmp_path / "a.xlsx", One=rows))
    assert [entry for entry in stream if not isinstance(entry, Skipped)] == [
        (4, {"q": "1", "a": ""}),
        (8, {"q": "4", "a": "d"}),
    ]
    assert skipped(stream) == {
        5: "row 5 has 4 cells where the header has 2 columns",
        6: "row 6 has a cell with the Excel error #REF!",
    }


def test_formulas_give_their_stored_value(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", One=[["q", "a"], ["x", "=1+1"]])
    copy = tmp_path / "b.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"<f>1+1</f><v />", b"<f>1+1</f><v>2</v>"))
    assert values(open_rows(copy)) == [{"q": "x", "a": "2"}]


def test_workbooks_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = book(tmp_path / "good.xlsx", One=[["q", "a"], ["1", "2"]])
    raw = good.read_bytes()
    assert "not an Excel workbook, but text" in error_of(write(tmp_path, "a.xlsx", "q,a\n1,2\n"))
    assert "password" in error_of(write(tmp_path, "b.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 600))
    assert "damaged or cut short" in error_of(write(tmp_path, "c.xlsx", raw[: len(raw) // 2]))
    assert "not text, but an Excel workbook. Rename" in error_of(write(tmp_path, "d.csv", raw))
    with zipfile.ZipFile(tmp_path / "e.xlsx", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert "not an Excel workbook" in error_of(tmp_path / "e.xlsx")
    for part in ("xl/workbook.xml", "xl/worksheets/sheet1.xml"):
        damaged = tmp_path / "f.xlsx"
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(damaged, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name)[: 300 if name == part else None])
        assert "damaged" in error_of(damaged)


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = book(tmp_path / "bomb.xlsx", One=[["q", "a"], ["1", "2"]])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("xl/sharedStrings.xml", b" " * (40 * 2**20))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("openpyxl.load_workbook", lambda *_, **__: pytest.fail("the bomb was opened"))
    message = error_of(path)
    assert "but unpacks to 40 MB, which is too much" in message
    monkeypatch.setattr(files_excel, "MOST_UNPACKED", 1000)
    assert "which is too much" in error_of(book(tmp_path / "big.xlsx", One=[["q", "a"], ["1", "2"]]))


# Parquet and Arrow


MIXED = {
    "messages": [[{"role": "user", "content": "q"}], [], None],
    "text": ["你好", None, "x"],
    "n": [1, None, 3],
    "share": [0.5, float("nan"), None],
    "price": [decimal.Decimal("1.50"), None, None],
    "day": [datetime.date(2024, 2, 1), None, None],
    "moment": [datetime.datetime(2024, 2, 1, 3, 4, 5), datetime.datetime(2024, 2, 1), None],
    "raw": ["字".encode(), b"\xff\x00", None],
    "picture": [{"bytes": b"\x89PNG\xff", "path": "a.png"}, None, None],
}
PLAIN = [
    {
        "messages": [{"role": "user", "content": "q"}], "text": "你好", "n": 1, "share": 0.5, "price": "1.50",
        "day": "2024-02-01", "moment": "2024-02-01 03:04:05", "raw": "字", "picture": {"bytes": None, "path": "a.png"},
    },
    {
        "messages": [], "text": None, "n": None, "share": None, "price": None, "day": None, "moment": "2024-02-01",
        "raw": None, "picture": None,
    },
    {"messages": None, "text": "x", "n": 3, **dict.fromkeys(("share", "price", "day", "moment", "raw", "picture"))},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream", "feather"])
def test_columns_of_every_type(tmp_path: Path, kind: str) -> None:
    table = pa.table(MIXED)
    suffix = {"parquet": "parquet", "feather": "feather"}.get(kind, "arrow")
    path = tmp_path / f"a.{suffix}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        feather.write_feather(table, str(path))
    else:
        make = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with make(str(path), table.schema) as sink:
            sink.write_table(table)
    stream = open_rows(path)
    assert list(stream) == list(enumerate(PLAIN, 1))
    json.dumps(values(stream), allow_nan=False)
    assert stream.columns == tuple(MIXED)
    assert stream.kind == ("parquet" if kind == "parquet" else "arrow")
    assert stream.done == stream.total
    assert [note for note in stream.notes if "'picture'" in note]


def test_strange_types_become_values_or_skipped_rows(tmp_path: Path) -> None:
    table = pa.table(
        {
            "t": pa.array([0, 2**62], pa.timestamp("s")),
            "d": pa.array(["a", "b"]).dictionary_encode(),
            "m": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "l": pa.array([[b"x"], [None]], pa.large_list(pa.binary())),
            "u": pa.array([datetime.timedelta(seconds=1), None]),
        }
    )
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    stream = open_rows(tmp_path / "a.arrow")
    assert values(stream) == [{"t": "1970-01-01", "d": "a", "m": [["k", 1]], "l": ["x"], "u": "0:00:01"}]
    assert "cannot be read" in skipped(stream)[2]


def test_progress_and_memory_of_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"row {n}" * 100 for n in range(5000)]}), tmp_path / "a.parquet", row_group_size=500
    )
    stream = open_rows(tmp_path / "a.parquet")
    assert stream.total == 5000
    seen = [stream.done for _ in stream]
    assert 0 < seen[2000] < 2001
    assert stream.done == 5000


def test_torn_and_empty_binary_tables(tmp_path: Path) -> None:
    table = pa.table({"a": ["x" * 50] * 3000})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    raw = (tmp_path / "a.parquet").read_bytes()
    assert "is not a whole Parquet file" in error_of(write(tmp_path, "b.parquet", raw[:-100]))
    damaged = raw[:40_000] + b"\xff" * 100 + raw[40_100:]
    outcome = list(open_rows(write(tmp_path, "c.parquet", damaged)))
    assert any(isinstance(entry, Skipped) for entry in outcome) or len(outcome) == 3000
    with pa.ipc.new_stream(str(tmp_path / "d.arrow"), table.schema) as sink:
        for batch in table.to_batches(max_chunksize=1000):
            sink.write_batch(batch)
    whole = (tmp_path / "d.arrow").read_bytes()
    torn = list(open_rows(write(tmp_path, "e.arrow", whole[: len(whole) * 2 // 3])))
    assert len(torn) in (1001, 2001)
    assert isinstance(torn[-1], Skipped)
    assert "cut short" in torn[-1].reason
    assert "is not an Arrow file, but JSON. Rename it so that it ends in .json" in error_of(
        write(tmp_path, "f.arrow", '{"a": 1}')
    )
    pq.write_table(table.slice(0, 0), tmp_path / "g.parquet")
    assert "columns and no rows" in error_of(tmp_path / "g.parquet")
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "h.parquet")
    assert "two columns named 'a'" in error_of(tmp_path / "h.parquet")


def test_random_damage_to_arrow_never_raises_anything_else(tmp_path: Path) -> None:
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), pa.schema({"a": pa.string(), "l": pa.list_(pa.int64())})) as sink:
        sink.write_table(pa.table({"a": ["x", "yy", None] * 5, "l": [[1], [], None] * 5}))
    raw = (tmp_path / "a.arrow").read_bytes()
    refused = 0
    for place in range(8, len(raw), 7):
        path = write(tmp_path, "b.arrow", raw[:place] + b"\xff\x7f" + raw[place + 2 :])
        try:
            list(open_rows(path))
        except DataError:
            refused += 1
    assert refused > 3


# Saved datasets


def saved(folder: Path, rows: Sequence[str], parts: int = 2) -> Path:
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{parts:05}.arrow" for number in range(parts)]
    for number, name in enumerate(names):
        table = pa.table({"text": list(rows[number::parts])})
        with pa.ipc.new_stream(str(folder / name), table.schema) as sink:
            sink.write_table(table)
    write(folder, "state.json", json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None}))
    return folder


def test_saved_datasets(tmp_path: Path) -> None:
    stream = open_rows(saved(tmp_path / "set", ["a", "b", "c", "d"]))
    assert [row["text"] for row in values(stream)] == ["a", "c", "b", "d"]
    assert [entry[0] for entry in stream if not isinstance(entry, Skipped)] == [1, 2, 3, 4]
    assert (stream.kind, stream.columns, stream.name) == ("arrow", ("text",), "set")
    assert stream.done == stream.total


def test_splits_of_saved_datasets(tmp_path: Path) -> None:
    both = tmp_path / "both"
    saved(both / "train", ["a", "b"])
    saved(both / "test", ["c"], parts=1)
    write(both, "dataset_dict.json", '{"splits": ["train", "test"]}')
    stream = open_rows(both)
    assert [row["text"] for row in values(stream)] == ["a", "b"]
    assert "Only the split 'train' of both is read, not 'test'." in stream.notes
    assert values(open_rows(both, split="test")) == [{"text": "c"}]
    assert "no split 'tset'. It has 'train', 'test'. Did you mean 'test'?" in error_of(both, split="tset")
    write(both, "dataset_dict.json", '{"splits": ["dev", "test"]}')
    assert "has the splits 'dev', 'test'. Choose one of them." in error_of(both)
    write(both, "dataset_dict.json", '{"splits": ["test"]}')
    assert values(open_rows(both)) == [{"text": "c"}]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("{", "state.json of the saved dataset set is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"_data_files": []}', "names no data files"),
        ('{"_data_files": [{"filename": "../../secret.arrow"}]}', "names no data files"),
        ('{"_data_files": [{"filename": 7}]}', "names no data files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "without its file gone.arrow"),
        ('{"_data_files": [{"filename": "state.json"}]}', "is not a whole saved dataset"),
    ],
)
def test_damaged_saved_datasets(tmp_path: Path, state: str, expected: str) -> None:
    folder = saved(tmp_path / "set", ["a"], parts=1)
    write(folder, "state.json", state)
    assert expected in error_of(folder)


def test_a_saved_dataset_without_a_split_folder(tmp_path: Path) -> None:
    write(tmp_path / "set", "dataset_dict.json", '{"splits": ["train"]}')
    assert "set is a saved dataset without its file train/state.json" in error_of(tmp_path / "set")
    for text in ('{"splits": []}', '{"splits": ["../x"]}', '{"splits": 3}', "{}"):
        write(tmp_path / "set", "dataset_dict.json", text)
        assert "names no splits" in error_of(tmp_path / "set")


# Texts


def test_a_small_text_is_one_row(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.txt", "\ufeffOne.\r\n\r\nTwo 你好.\n"))
    assert list(stream) == [(1, {"text": "One.\n\nTwo 你好."})]
    assert (stream.kind, stream.columns) == ("text", None)
    assert values(open_rows(write(tmp_path, "b.md", "# 标题\n\n我是小芽，你是谁".encode("gbk")))) == [
        {"text": "# 标题\n\n我是小芽，你是谁"}
    ]
    assert "is empty" in error_of(write(tmp_path, "c.txt", "\n \n"))
    assert "looks like JSON" in open_rows(write(tmp_path, "d.txt", '{"a": 1}\n')).notes[0]


@pytest.mark.parametrize(
    "paragraph",
    ["Some words. " * 20 + "\n\n", "Some words. " * 20 + "\n", "words " * 50, "字" * 99 + "。", "字" * 100],
    ids=["blank lines", "lines", "words", "sentences", "nothing"],
)
def test_a_large_text_is_cut_where_it_hurts_least(tmp_path: Path, paragraph: str) -> None:
    text = paragraph * (1_200_000 // len(paragraph.encode()))
    stream = open_rows(write(tmp_path, "a.txt", text))
    pieces = [row["text"] for row in values(stream)]
    assert len(pieces) > 3
    assert all(len(piece) <= 2 * files_text.PIECE for piece in pieces)
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")
    if "\n" in paragraph:
        assert all(piece.endswith("words. ") for piece in pieces)
    elif " " in paragraph:
        assert all(piece.endswith("words ") for piece in pieces)
    elif "。" in paragraph:
        assert all(piece.endswith("。") for piece in pieces)


def test_bad_bytes_are_taken_out_of_a_text_and_said(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.txt", "你好\n".encode() + b"x\xffy\n" + "再见".encode()))
    assert values(stream) == [{"text": "你好\nxy\n再见"}]
    assert "has bytes in line 2 that are not valid UTF-8; they were left out" in stream.notes[0]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    write(folder, "b.txt", "second")
    write(folder, "a.md", "first")
    write(folder, "inner/c.TXT", "我是小芽，你是谁".encode("gbk"))
    write(folder, "inner/empty.txt", " \n")
    write(folder, ".hidden.txt", "no")
    write(folder, ".git/d.txt", "no")
    write(folder, "data.json", "[]")
    outside = write(tmp_path, "outside.txt", "secret")
    (folder / "link.txt").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    stream = open_rows(folder)
    assert list(stream) == [(1, {"text": "first"}), (2, {"text": "second"}), (3, {"text": "我是小芽，你是谁"})]
    assert (stream.kind, stream.name) == ("folder", "texts")
    assert stream.done == stream.total > 0
    assert "link.txt is a link that leads out of texts; it was left out." in stream.notes
    assert any("inner/c.TXT is encoded as GBK" in note for note in stream.notes)
    (folder / "b.txt").unlink()
    left = list(stream)
    assert isinstance(left[1], Skipped)
    assert "b.txt cannot be read" in left[1].reason
    assert len(left) == 3


def test_folders_without_texts(tmp_path: Path) -> None:
    write(tmp_path / "data", "a.jsonl", "{}")
    write(tmp_path / "data", "b.csv", "x")
    assert "Choose one of its files: a.jsonl, b.csv." in error_of(tmp_path / "data")
    write(tmp_path / "blank", "a.txt", "\n")
    assert "text files in blank are empty" in error_of(tmp_path / "blank")
    shutil.rmtree(tmp_path / "data")
    assert "does not exist" in error_of(tmp_path / "data")


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "xlsx", "parquet", "feather", "txt", "jsonl.gz"])
def test_random_damage_is_a_sentence_or_a_skipped_row(tmp_path: Path, ending: str) -> None:
    name = f"a.{ending}"
    rng = random.Random(name)
    rows = [{"q": f"question {n} 你好", "a": 'answer, "yes"\n🔥'} for n in range(40)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = pa.Table.from_pylist(rows)
    path = tmp_path / name
    if name.endswith("xlsx"):
        book(path, One=[["q", "a"], *(list(row.values()) for row in rows)])
    elif name.endswith("parquet"):
        pq.write_table(table, path)
    elif name.endswith("feather"):
        feather.write_feather(table, str(path))
    else:
        content = {"a.json": json.dumps(rows, ensure_ascii=False), "a.csv": 'q,a\n"x\ny","1"\n' * 20}.get(name, text)
        path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    raw = path.read_bytes()
    sentences: list[str] = []
    assert list(open_rows(path))
    for _ in range(40):
        damaged = bytearray(raw[: rng.choice([len(raw), rng.randrange(len(raw))])])
        for _ in range(rng.randint(0, 3)):
            start = rng.randrange(len(damaged) + 1)
            damaged[start : start + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
        path.write_bytes(damaged)
        try:
            entries = list(open_rows(path))
        except DataError as error:
            sentences.append(error.message)
            continue
        numbers = [entry.row if isinstance(entry, Skipped) else entry[0] for entry in entries]
        assert numbers == sorted(set(numbers))
    assert all(sentence.endswith((".", "?")) and "\n" not in sentence for sentence in sentences)


def test_a_sheet_that_claims_endless_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_excel, "_MOST_ROWS", 1000)
    path = book(tmp_path / "a.xlsx", One=[["q", "a"], ["1", "2"], ["3", "4"]])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<row r="3">', b'<row r="99999999999">'))
    entries = list(open_rows(tmp_path / "b.xlsx"))
    assert entries[0] == (2, {"q": "1", "a": "2"})
    assert isinstance(entries[-1], Skipped)
    assert "more than 1000 rows" in entries[-1].reason
