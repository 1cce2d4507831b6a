"""Files and pasted text become datasets; paths of the server are opened only where that is allowed; files come out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, DatasetStore
from studio.records.conversation import Conversation
from studio.records.formats import ReadOptions, open_records
from studio.records.importing import allowed_folders, allowed_path, import_file, import_text, suffix_of
from studio.records.outfile import write_file

TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "你好"}]}


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- files ----


def test_a_file_becomes_a_dataset(store: DatasetStore, tmp_path: Path) -> None:
    path = tmp_path / "My file.csv"
    path.write_bytes("question,answer\n1+1?,2\nempty,\n你好,再见\n".encode("gb18030"))
    found = import_file(store, path)
    info = found.info
    assert (info.name, info.title, info.kind, info.source) == ("my-file", "My file", "import", "My file.csv")
    assert (info.rows, info.conversations, info.skipped, info.encoding) == (2, 2, 1, "gb18030")
    assert [entry.row for entry in found.skipped] == [3]
    assert any("GB" in note.upper() for note in found.notes)
    assert [row["messages"][-1]["content"] for row in store.rows(info.name)] == ["2", "再见"]
    assert store.list() == [info]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", "Once upon a time.", "text"),
        ("p.jsonl", lines({"prompt": "q", "chosen": "good", "rejected": "bad"}), "preference"),
        ("m.jsonl", lines(TALK, {"text": "and a text"}), "import"),
    ],
)
def test_the_kind_follows_from_the_rows(
    store: DatasetStore, tmp_path: Path, name: str, content: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    saved = import_file(store, path, title="Set").info
    assert saved.kind == kind
    assert list(open_records(path))[0][1] == next(iter(open_records(store.resolve("set"))))[1]


def test_how_a_file_is_read_can_be_said(store: DatasetStore, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*({"q": f"{n}?", "a": str(n)} for n in range(9)), {"q": "", "a": ""}), encoding="utf-8")
    heard: list[tuple[int, int]] = []
    options = ReadOptions(mapping="instruction=q, output=a", limit=4)
    assert import_file(store, path, options, "four", lambda done, total: heard.append((done, total))).info.rows == 4
    with pytest.raises(DataError, match="cannot be used"):
        import_file(store, path, ReadOptions(mapping="instruction=q, output=a", strict=True))
    with pytest.raises(DataError, match="columns"):
        import_file(store, path)
    assert [path.name for path in store.folder.iterdir()] == ["four"]


def test_progress_is_told_in_the_files_own_unit(store: DatasetStore, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*[TALK] * 1000), encoding="utf-8")
    heard: list[tuple[int, int]] = []
    import_file(store, path, progress=lambda done, total: heard.append((done, total)))
    assert len(heard) == 5
    assert {total for _, total in heard} == {path.stat().st_size}
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


@pytest.mark.parametrize("content", ["", "[]", '{"messages": []}', lines(*[{"messages": []}] * 3), "\x00\x01\x02"])
def test_what_cannot_be_used_leaves_nothing(store: DatasetStore, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError):
        import_file(store, path)
    assert not store.folder.exists() or list(store.folder.iterdir()) == []


# ---- pasted text ----


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("  \n[1]", ".json"),
        (lines(TALK), ".jsonl"),
        (lines(TALK, TALK), ".jsonl"),
        (json.dumps(TALK, indent=2), ".json"),
        ('{"messages": [', ".json"),
        ("a\tb\n1\t2\n", ".tsv"),
        ("a,b\n1,2\n", ".csv"),
        ('a,b\n"1, or\none",2\n', ".csv"),
        ("Well, hello.\nAnd, so on.\nThat is all, folks, or not.", ".txt"),
        ("A title, of a text\n\nOnce upon a time.", ".txt"),
        ("a,a\n1,2", ".txt"),
        ("a,b", ".txt"),
        ('"', ".txt"),
        ("{" * 100_000, ".json"),
    ],
)
def test_pasted_text_is_recognised(text: str, suffix: str) -> None:
    assert suffix_of(text) == suffix


@pytest.mark.parametrize(
    "text", [lines(TALK), json.dumps([TALK]), "question,answer\nhi,你好\n", "question\tanswer\r\nhi\t你好\r\n"]
)
def test_pasted_text_becomes_a_dataset(store: DatasetStore, text: str) -> None:
    info = import_text(store, text, title="Pasted!").info
    assert (info.name, info.rows, info.source) == ("pasted", 1, "pasted text")
    assert store.load("pasted").rows == [TALK | {"origin": "upload"}]


@pytest.mark.parametrize("text", ["", "  \n", "a\x00b", "\ud800", '{"messages": [', "[]"])
def test_pasted_nonsense_is_refused(store: DatasetStore, text: str) -> None:
    with pytest.raises(DataError) as caught:
        import_text(store, text)
    assert "/" not in caught.value.message  # the temporary file is nobody's business
    assert list(store.list()) == []


# ---- paths ----


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("workspace", "start", "extra", "home", "other")}
    for folder in found.values():
        folder.mkdir()
        (folder / "a.jsonl").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("HOME", str(found["home"]))
    monkeypatch.setenv("CRUCIBLE_DATA", f"{found['extra']}{os.pathsep} {os.pathsep}{tmp_path / 'missing'}")
    monkeypatch.chdir(found["start"])
    return found


def test_allowed_paths(places: dict[str, Path]) -> None:
    workspace = places["workspace"]
    for name in ("workspace", "start", "extra"):
        assert allowed_path(str(places[name] / "a.jsonl"), workspace) == places[name] / "a.jsonl"
    assert allowed_path("a.jsonl", workspace) == workspace / "a.jsonl"
    assert allowed_path(f" {places['extra']} ", workspace) == places["extra"]
    (places["start"] / "link.jsonl").symlink_to(places["extra"] / "a.jsonl")
    assert allowed_path("link.jsonl", workspace) == places["extra"] / "a.jsonl"


def test_refused_paths(places: dict[str, Path]) -> None:
    workspace = places["workspace"]
    (workspace / "out.jsonl").symlink_to(places["other"] / "a.jsonl")
    (workspace / "up").symlink_to(places["other"])
    (workspace / "loop").symlink_to(workspace / "loop")
    (workspace / ".secret").write_text("x", encoding="utf-8")
    (places["start"] / ".hidden").mkdir()
    (places["start"] / ".hidden" / "a.jsonl").write_text("{}", encoding="utf-8")
    refused = [
        str(places["other"] / "a.jsonl"), "../other/a.jsonl", "out.jsonl", "up/a.jsonl", "loop", "~/a.jsonl", ".secret",
        ".hidden/a.jsonl", "missing.jsonl", "/etc/passwd", "/", "..", "\x00", "x" * 5000, "~nobody-here/a",
        "file:///etc/passwd", str(workspace) + "2/a.jsonl",
    ]  # fmt: skip
    for text in refused:
        with pytest.raises(DataError, match="in the folders that may be read here: .*CRUCIBLE_DATA") as caught:
            allowed_path(text, workspace)
        assert caught.value.field == "path"


def test_a_start_in_the_home_folder_opens_none_of_it(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (places["home"], places["home"].parent, Path("/")):
        monkeypatch.chdir(folder)
        assert allowed_folders(places["workspace"])[:2] == (places["workspace"], places["extra"])


# ---- out ----

MIXED = [
    (1, TALK),
    (2, {"text": "Once.\nTwice. "}),
    (4, {"messages": [*TALK["messages"], {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}),
]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.jsonl"
    path.write_text(lines(MIXED[0][1], MIXED[1][1], {"messages": []}, MIXED[2][1]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("to", "name", "rows", "left"),
    [
        ("messages", "out.jsonl", 3, [3]),
        ("messages", "out.JSON", 3, [3]),
        ("conversation", "out.json", 3, [3]),
        ("alpaca", "out.json", 2, [2, 3]),
        ("text", "out.jsonl", 1, [1, 3, 4]),
    ],
)
def test_files_of_other_formats(mixed: Path, tmp_path: Path, to: Any, name: str, rows: int, left: list[int]) -> None:
    out = tmp_path / name
    written = write_file(open_records(mixed), to, out, force=False)
    assert (written.rows, written.skipped, [entry.row for entry in written.first_skipped]) == (rows, len(left), left)
    kept = [entry[1] for entry in open_records(mixed) if isinstance(entry, tuple) and entry[0] not in left]
    if to == "conversation":  # a text among conversations is written, but nobody can tell that it is one
        kept = [record for record in kept if isinstance(record, Conversation)]
    assert [entry[1] for entry in open_records(out) if isinstance(entry, tuple)] == kept


def test_texts_as_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines({"text": "One\n"}, {"text": "Two"}), encoding="utf-8")
    write_file(open_records(path), "text", tmp_path / "out.txt", force=False)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "One\n\nTwo\n"


@pytest.mark.parametrize(
    ("to", "name", "words"),
    [
        ("messages", "mixed.jsonl", "exists already"),
        ("messages", "out.txt", r"should end in \.json or \.jsonl"),
        ("text", "out.csv", r"should end in \.json, \.jsonl or \.txt"),
        ("messages", "folder.json", "is a folder"),
        ("messages", "nowhere/out.json", "cannot be written: No such file"),
        ("messages", "x" * 300 + ".json", "cannot be written|name too long"),
        ("messages", "a\x00.json", "cannot be written"),
    ],
)
def test_files_that_cannot_be_written(mixed: Path, tmp_path: Path, to: Any, name: str, words: str) -> None:
    (tmp_path / "folder.json").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match=words) as caught:
        write_file(open_records(mixed), to, tmp_path / name, force=False)
    assert caught.value.field == "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_may_be_replaced_by_itself_converted(mixed: Path, tmp_path: Path) -> None:
    write_file(open_records(mixed), "conversation", mixed, force=True)
    assert open_records(mixed).mapping.name == "conversation"
    path = tmp_path / "talks.jsonl"
    path.write_text(lines(TALK), encoding="utf-8")
    with pytest.raises(DataError, match="No row can be written as text: row 1"):
        write_file(open_records(path), "text", path, force=True)
    assert path.read_text(encoding="utf-8") == lines(TALK)
