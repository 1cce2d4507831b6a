"""Datasets on disk: whole or not at all, found by name or path, never outside their folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.records import DataError, DatasetInfo, DatasetStore, IdentitySpec, read_file, rowfile, store, unfinished
from studio.records.conversation import Conversation, Message, PlainText, Record
from studio.records.naming import clean_title, slug
from studio.records.rowcheck import record_of

USER = {"role": "user", "content": "hi"}
ROW = {"messages": [USER, {"role": "assistant", "content": "你好"}], "origin": "identity"}
HELD = {"prompt": "Who?", "kind": "who", "lang": "en", "expect": ["Nova"]}
INFO = DatasetInfo(kind="identity", languages=("en",), identity=IdentitySpec(name="Nova", author="Rui"))


@pytest.fixture
def datasets(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


def test_save_load_list_resolve(datasets: DatasetStore) -> None:
    saved = datasets.save("My Set", [ROW, ROW], [HELD], INFO)
    loaded = datasets.load(saved.name)
    assert (saved.name, saved.title, saved.rows) == ("my-set", "My Set", 2)
    assert (loaded.rows, loaded.heldout, loaded.info) == ([ROW, ROW], [HELD], saved)
    assert list(datasets.list()) == [saved]
    assert datasets.problems() == []
    path = datasets.resolve("my-set")
    assert len(read_file(path).conversations) == 2
    assert store.read_heldout(path) == [HELD]
    assert store.read_info(path) == saved
    assert saved.identity is not None
    assert saved.identity.author == "Rui"
    assert saved.created_at.endswith("+00:00")


def test_names_are_unique_and_safe(datasets: DatasetStore) -> None:
    names = [
        datasets.save(title, [ROW], [], INFO).name
        for title in ("小芽!", "小芽?", "../../etc", "", "CON", "..", "a/b\\c")
    ]
    assert names == ["小芽", "小芽-2", "etc", "dataset", "con-data", "dataset-2", "a-b-c"]
    assert {path.name for path in datasets.folder.iterdir()} == set(names)


@pytest.mark.parametrize("title", ["x" * 500, "字" * 500, "a.b.json", "-rf", "__", "e\u0301té", "ＦＵＬＬ", "हिन्दी"])
def test_slugs(title: str) -> None:
    name = slug(title)
    assert 0 < len(name) <= 48
    assert len(name.encode()) < 200
    assert not set(name) & set("./\\: \n")
    assert not name.startswith("-")


def test_replacing_rows_changes_the_fingerprint(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [ROW], [HELD], INFO)
    other = {**ROW, "messages": [ROW["messages"][0], {"role": "assistant", "content": "bye"}]}
    changed = datasets.replace_rows("set", [ROW, other])
    assert changed.rows == 2
    assert changed.sha256 != saved.sha256
    assert datasets.load("set").info == changed
    assert datasets.load("set").heldout == [HELD]
    assert datasets.replace_rows("set", [ROW]).sha256 == saved.sha256


def test_hand_edited_rows_are_counted_as_they_are(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [ROW, ROW], [], INFO)
    datasets.resolve("set").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    now = datasets.load("set").info
    assert now.rows == 1
    assert now.sha256 != saved.sha256


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        ([ROW, {"messages": []}], "Row 2 cannot be saved: it has no messages"),
        ([ROW, {"x": 1}], "Row 2 cannot be saved: the column 'messages' is missing"),
        (
            [{"messages": [ROW["messages"][0], {"role": "assistant", "content": "I am {{name}}"}]}],
            "placeholder {{name}}",
        ),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_left(datasets: DatasetStore, rows: list, words: str) -> None:
    with pytest.raises(DataError, match=words.replace("{", r"\{")):
        datasets.save("set", rows, [], INFO)
    assert not datasets.folder.exists() or list(datasets.folder.iterdir()) == []


def test_missing_datasets_name_the_nearest(datasets: DatasetStore) -> None:
    with pytest.raises(DataError, match="No dataset is saved yet"):
        datasets.resolve("identity")
    datasets.save("identity-nova", [ROW], [], INFO)
    with pytest.raises(DataError, match="Did you mean 'identity-nova'") as caught:
        datasets.resolve("identity-nowa")
    assert caught.value.field == "data.dataset"
    assert caught.value.message.startswith("data.dataset: ")


def test_a_path_is_taken_when_no_dataset_has_that_name(datasets: DatasetStore, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(ROW), encoding="utf-8")
    assert datasets.resolve(str(path)) == path
    assert store.read_heldout(path) == []
    assert store.read_info(path) is None
    assert datasets.resolve(str(tmp_path)) == tmp_path
    for missing in ("../datasets", str(path) + "/x.json", str(path.with_suffix(".txt")), "", "\x00", "~nobody/x.json"):
        with pytest.raises(DataError, match="there is no dataset or file"):
            datasets.resolve(missing)


def test_a_link_keeps_the_name_that_says_what_it_is(datasets: DatasetStore, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text(json.dumps(ROW), encoding="utf-8")
    link = tmp_path / "rows.jsonl"
    link.symlink_to(tmp_path / "blob")
    assert datasets.resolve(str(link)) == link


def test_a_bare_word_is_no_folder(datasets: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    assert datasets.resolve("./texts") == tmp_path / "texts"
    with pytest.raises(DataError, match=r"write \./texts"):
        datasets.resolve("texts")
    saved = datasets.save("texts", [ROW], [], INFO)
    assert datasets.resolve("texts") == datasets.folder / saved.name / "rows.jsonl"
    assert datasets.resolve(str(datasets.folder / saved.name)) == datasets.resolve("texts")


def test_half_written_and_damaged_folders_are_ignored_and_reported(datasets: DatasetStore) -> None:
    datasets.save("good", [ROW], [], INFO)
    (datasets.folder / "half").mkdir()
    (datasets.folder / "half" / "rows.jsonl").write_text("{}", encoding="utf-8")
    datasets.save("torn", [ROW], [], INFO)
    (datasets.folder / "torn" / "dataset.json").write_text('{"kind": "iden', encoding="utf-8")
    (datasets.folder / ".half-0123").mkdir()
    (datasets.folder / "stray.txt").write_text("x", encoding="utf-8")
    assert [info.name for info in datasets.list()] == ["good"]
    said = " ".join(datasets.problems())
    assert len(datasets.problems()) == 3
    for name in ("half", "torn", ".half-0123"):
        assert name in said
    for name in ("half", "torn"):
        with pytest.raises(DataError, match=f"{name} is (half-written|damaged)"):
            datasets.resolve(name)


def test_torn_rows_are_one_sentence(datasets: DatasetStore) -> None:
    datasets.save("set", [ROW], [HELD], INFO)
    datasets.resolve("set").write_text('{"messages": [', encoding="utf-8")
    with pytest.raises(DataError, match="set is damaged"):
        datasets.load("set")


def test_a_full_disk_leaves_nothing_behind(datasets: DatasetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.save("kept", [ROW], [HELD], INFO)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for attempt in (lambda: datasets.save("new", [ROW], [], INFO), lambda: datasets.replace_rows("kept", [ROW, ROW])):
        with pytest.raises(DataError, match="No space left on device. Free some space") as caught:
            attempt()
        assert caught.value.field == "workspace"
    monkeypatch.undo()
    assert [path.name for path in datasets.folder.iterdir()] == ["kept"]
    assert sorted(path.name for path in (datasets.folder / "kept").iterdir()) == [
        "dataset.json",
        "heldout.jsonl",
        "rows.jsonl",
    ]
    assert datasets.load("kept").rows == [ROW]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    blocked = DatasetStore(tmp_path / "file" / "datasets")
    with pytest.raises(DataError, match="cannot be written"):
        blocked.save("set", [ROW], [], INFO)
    assert list(blocked.list()) == []


def test_delete(datasets: DatasetStore) -> None:
    datasets.save("set", [ROW], [], INFO)
    datasets.delete("set")
    assert list(datasets.folder.iterdir()) == []
    for name in ("set", "..", ".", "", "../datasets"):
        with pytest.raises(DataError):
            datasets.delete(name)


# ---- any size, any kind ----


def talk(number: int, text: str = "hi") -> dict:
    return {"messages": [{"role": "user", "content": f"{text} {number}"}, {"role": "assistant", "content": "ok"}]}


CALL = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
RECORDS: list[Record] = [
    PlainText(text="Once.\u2028Upon {{name}}"),
    Conversation(messages=(Message(role="user", content="hi"), Message(role="assistant", content="yo"))),
    Conversation(
        messages=(
            Message(role="system", content="s"),
            Message(role="user", content="1"),
            Message(role="assistant", content="2"),
            Message(role="user", content="3"),
            Message(role="assistant", content="4"),
        ),
        train=(False, False, False, False, True),
    ),
    Conversation(
        messages=(
            Message(role="user", content="<image>sum?"),
            Message(role="assistant", content="", tool_calls=(CALL,)),
            Message(role="tool", content="3", tool_call_id="1", name="sum"),
            Message(role="assistant", content="3"),
        ),
        tools=({"type": "function", "function": {"name": "sum"}},),
        images=("a.png",),
    ),
    Conversation(
        messages=(Message(role="user", content="q"), Message(role="assistant", content="good")),
        rejected=(Message(role="assistant", content="bad"),),
    ),
]


def test_records_of_every_kind_come_back_as_they_were(datasets: DatasetStore) -> None:
    saved = datasets.save_stream("All kinds", iter(RECORDS), [], DatasetInfo(kind="import", source="x.json"))
    assert (saved.rows, saved.conversations, saved.texts) == (5, 4, 1)
    assert [record_of(row) for row in datasets.rows(saved.name)] == RECORDS
    assert read_file(datasets.resolve(saved.name)).conversations == RECORDS
    again = datasets.save("again", list(datasets.rows(saved.name)), [], saved)
    assert again.sha256 == saved.sha256
    assert (again.kind, again.source) == ("import", "x.json")


def test_a_stream_is_written_in_bounded_memory(datasets: DatasetStore) -> None:
    heard: list[int] = []
    rows = (talk(n, "x" * 20_000) | {"origin": "upload"} for n in range(1500))
    tracemalloc.start()
    saved = datasets.save_stream("big", rows, [], DatasetInfo(kind="import"), heard.append)
    assert len(datasets.page(saved.name, 1490, 20).rows) == 10
    assert datasets.page(saved.name, 0, 1, query="X 1499").total == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (datasets.folder / saved.name / "rows.jsonl").stat().st_size > 30_000_000
    assert peak < 6_000_000
    assert heard == [500, 1000, 1500]


def test_info_is_asked_when_everything_was_written(datasets: DatasetStore) -> None:
    seen: list[int] = []

    def rows() -> Iterator[dict]:
        for number in range(3):
            seen.append(number)
            yield talk(number)

    saved = datasets.save_stream("late", rows(), [], lambda: DatasetInfo(kind="import", skipped=len(seen)))
    assert saved.skipped == 3


def test_what_stops_a_stream_leaves_nothing(datasets: DatasetStore) -> None:
    class Cancelled(Exception):
        pass

    def cancel(rows: int) -> None:
        raise Cancelled

    def torn() -> Iterator[dict]:
        yield talk(1)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(Cancelled):
        datasets.save_stream("a", map(talk, range(600)), [], INFO, cancel)
    with pytest.raises(DataError, match="The rows cannot be read: Input/output error"):
        datasets.save_stream("b", torn(), [], INFO)
    assert list(datasets.folder.iterdir()) == []


def test_a_disk_that_fills_up_half_way(datasets: DatasetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = datasets.save("kept", [talk(n) for n in range(5)], [], INFO)
    write = rowfile.RowWriter.add

    def full(self: rowfile.RowWriter, row: dict) -> None:
        if self.rows >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, row)

    monkeypatch.setattr(rowfile.RowWriter, "add", full)
    for attempt in (
        lambda: datasets.save_stream("new", map(talk, range(9)), [], INFO),
        lambda: datasets.add_row("kept", talk(9), saved.sha256),
        lambda: datasets.change_row("kept", 4, talk(9), saved.sha256),
    ):
        with pytest.raises(DataError, match="No space left on device") as caught:
            attempt()
        assert caught.value.field == "workspace"
    monkeypatch.undo()
    assert datasets.load("kept").info == saved
    assert [path.name for path in datasets.folder.iterdir()] == ["kept"]
    assert len(list((datasets.folder / "kept").iterdir())) == 3


KILLED = """
import sys, time
from studio.records import DatasetInfo, DatasetStore
def rows():
    for number in range(10**6):
        yield {"messages": [], "origin": "upload", "n": "x" * 9000}
        if number == 50:
            print("at work", flush=True)
            time.sleep(600)
DatasetStore(sys.argv[1]).save_stream("big", rows(), [], DatasetInfo(kind="import"))
"""


def test_what_a_killed_writer_leaves_is_told_and_removed_later(datasets: DatasetStore) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(datasets.folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"at work\n"
    (half,) = datasets.folder.iterdir()
    old = time.time() - 3600
    os.utime(half, (old, old))
    saved = datasets.save("meanwhile", [ROW], [], INFO)  # a writer at work is left alone
    assert half.is_dir()
    assert datasets.problems() == []
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert [info.name for info in datasets.list()] == [saved.name]
    assert [half.name in problem for problem in datasets.problems()] == [True]
    os.utime(half, (old, old))
    datasets.save("next", [ROW], [], INFO)
    assert not half.exists()
    assert datasets.problems() == []


def test_a_young_half_folder_is_not_removed(datasets: DatasetStore) -> None:
    (datasets.folder / ".half-0123").mkdir(parents=True)
    datasets.save("set", [ROW], [], INFO)
    assert (datasets.folder / ".half-0123").is_dir()


# ---- pages and single rows ----


def test_pages_and_search(datasets: DatasetStore) -> None:
    rows = [talk(n, "Grüße 你好") | {"origin": ("identity", "replay")[n % 2]} for n in range(1000)]
    rows[7] = {"text": 'He said "Ahoi"\nand left\\', "origin": "upload"}
    saved = datasets.save("set", rows, [], INFO)
    page = datasets.page("set", 990, 25)
    assert ([n for n, _ in page.rows], page.total, page.sha256) == ([*range(990, 1000)], 1000, saved.sha256)
    assert page.counts == {"identity": 500, "replay": 499, "upload": 1}
    assert [row["messages"][0]["content"] for _, row in page.rows][:1] == ["Grüße 你好 990"]
    replay = datasets.page("set", 2, 2, origin="replay")
    assert ([n for n, _ in replay.rows], replay.total) == ([5, 9], 499)
    assert datasets.page("set", 0, 5, query="GRÜSSE 你好 99").total == 11
    assert datasets.page("set", 0, 5, origin="identity", query="grüße 你好 99").total == 5
    for query in ('said "ahoi"', 'ahoi"\nAND', "left\\", "  ahoi  "):
        assert [n for n, _ in datasets.page("set", 0, 5, query=query).rows] == [7]
    for nothing in ("role", "assistant", "messages", "origin", '{"', "\\n", "nowhere"):
        assert datasets.page("set", 0, 5, query=nothing).total == 0
    assert datasets.page("set", 0, 5, origin="other").total == 0
    assert datasets.page("set", 5000, 5).rows == []
    assert [n for n, _ in datasets.page("set", -5, 1).rows] == [0]


def test_pages_of_a_file_somebody_edited(datasets: DatasetStore) -> None:
    datasets.save("set", [ROW], [], INFO)
    assert datasets.page("set", 0, 5).total == 1
    lines = [json.dumps(talk(1, "你好")), "", "  ", json.dumps({"origin": "mine", **talk(2, "grün")}, indent=None)]
    datasets.resolve("set").write_text("\n".join(lines), encoding="utf-8")
    page = datasets.page("set", 0, 5)
    assert ([n for n, _ in page.rows], page.counts) == ([0, 1], {"upload": 1, "mine": 1})
    assert [n for n, _ in datasets.page("set", 0, 5, query="你好").rows] == [0]
    changed = datasets.change_row("set", 1, talk(3), page.sha256)
    assert (changed.rows, datasets.load("set").rows[1]["messages"]) == (2, talk(3)["messages"])
    datasets.resolve("set").write_text(json.dumps(ROW) + "\n[1]\nnot json\n", encoding="utf-8")
    assert datasets.page("set", 0, 1).total == 3
    with pytest.raises(DataError, match="set is damaged"):
        datasets.page("set", 0, 3)
    assert datasets.page("set", 0, 3, query="hi").total == 1


def test_single_rows(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [talk(n) for n in range(4)], [HELD], INFO)
    changed = datasets.change_row("set", 2, talk(20) | {"origin": "identity"}, saved.sha256)
    added = datasets.add_row("set", {"text": "a text"}, changed.sha256)
    assert (added.rows, added.texts, added.conversations) == (5, 1, 4)
    gone = datasets.delete_rows("set", [0, 3], added.sha256)
    rows = datasets.load("set").rows
    assert [row.get("text") or row["messages"][0]["content"] for row in rows] == ["hi 1", "hi 20", "a text"]
    assert [row["origin"] for row in rows] == ["upload", "identity", "upload"]
    assert gone == datasets.load("set").info == datasets.info("set")
    assert gone.identity == INFO.identity
    assert datasets.load("set").heldout == [HELD]


def test_refused_edits_change_nothing(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [talk(n) for n in range(2)], [], INFO)
    sha = saved.sha256
    for attempt, words in (
        (lambda: datasets.change_row("set", 0, talk(5), "0" * 64), "has been changed meanwhile"),
        (lambda: datasets.delete_rows("set", [0], ""), "has been changed meanwhile"),
        (lambda: datasets.change_row("set", 2, talk(5), sha), "has no row 3; it has 2"),
        (lambda: datasets.delete_rows("set", [-1], sha), "has no row 0"),
        (lambda: datasets.delete_rows("set", [0, 1], sha), "no rows left"),
        (lambda: datasets.change_row("set", 1, {"messages": []}, sha), "Row 2 cannot be saved"),
        (lambda: datasets.add_row("set", talk(1, "I am {{name}}"), sha), "placeholder {{name}}"),
        (lambda: datasets.add_row("../set", talk(1), sha), "there is no dataset"),
    ):
        with pytest.raises(DataError, match=words.replace("{", r"\{")):
            attempt()
    assert datasets.load("set").info == saved


def test_of_two_writers_one_is_refused(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [talk(n) for n in range(200)], [], INFO)
    outcomes: list[str] = []

    def write(number: int) -> None:
        try:
            datasets.change_row("set", number, talk(1000 + number), saved.sha256)
            outcomes.append("written")
        except DataError as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("written") == 1
    assert all("changed meanwhile" in text for text in outcomes if text != "written")
    assert (
        sum("hi 10" in row["messages"][0]["content"] for row in datasets.rows("set")) == 12
    )  # 10, 100-109, the new one
    assert datasets.info("set") == datasets.list()[0]


def test_a_writer_that_waits_too_long_is_told(datasets: DatasetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = datasets.save("set", [ROW, ROW], [], INFO)
    monkeypatch.setattr(unfinished, "WAIT_S", 0.1)
    with unfinished.locked(datasets.folder / "set"):
        with pytest.raises(DataError, match="Another program is changing set"):
            datasets.delete_rows("set", [0], saved.sha256)
        assert datasets.load("set").info == saved


def test_what_a_killed_editor_left_is_swept_up(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [ROW, ROW], [], INFO)
    torn = datasets.folder / "set" / "rows.jsonl.half-0123"
    torn.write_text("{", encoding="utf-8")
    assert datasets.info("set") == saved
    datasets.delete_rows("set", [0], saved.sha256)
    assert not torn.exists()


# ---- names ----


def test_rename(datasets: DatasetStore) -> None:
    saved = datasets.save("Old name", [ROW], [HELD], INFO)
    datasets.save("taken", [ROW], [], INFO)
    renamed = datasets.rename("old-name", "Taken")
    assert (renamed.name, renamed.title, renamed.sha256) == ("taken-2", "Taken", saved.sha256)
    assert datasets.load("taken-2").heldout == [HELD]
    assert datasets.rename("taken-2", "../../etc/passwd").name == "etc-passwd"
    assert datasets.rename("etc-passwd", "ETC passwd!").name == "etc-passwd"
    assert datasets.info("etc-passwd").title == "ETC passwd!"
    with pytest.raises(DataError):
        datasets.rename("old-name", "x")
    assert {path.name for path in datasets.folder.iterdir()} == {"taken", "etc-passwd"}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("a\nb\tc", "a b c"),
        ("\ud800x\x00y\x1b[31m", "xy[31m"),
        ("abc\u202egpj", "abcgpj"),
        ("👩‍👩‍👧 你好", "👩‍👩‍👧 你好"),
        ("x" * 900, "x" * 200),
        ("\u202e", ""),
    ],
)
def test_titles_are_one_printable_line(datasets: DatasetStore, typed: str, kept: str) -> None:
    assert clean_title(typed) == kept
    saved = datasets.save(typed, [ROW], [], INFO)
    assert datasets.info(saved.name).title == kept


def test_infos_of_earlier_versions_are_read(datasets: DatasetStore) -> None:
    saved = datasets.save("set", [ROW], [], INFO)
    old = {"kind": "upload", "title": "Set", "rows": 1, "sha256": saved.sha256, "created_at": saved.created_at}
    (datasets.folder / "set" / "dataset.json").write_text(json.dumps(old), encoding="utf-8")
    found = datasets.info("set")
    assert (found.kind, found.title, found.conversations, found.source) == ("upload", "Set", 1, "")
    assert [info.name for info in datasets.list()] == ["set"]


@pytest.mark.parametrize("seed", range(6))
def test_edits_and_searches_agree_with_a_list(datasets: DatasetStore, seed: int) -> None:
    """Whatever is changed, page, search, index and counts are those of the rows read one by one."""
    rng = random.Random(seed)
    words = ["alpha", "BETA", "你好", "grün", 'q"uote', "new\nline", "role", "\\u4f60", "x" * 3000, "\x1b[0m", "𝔘"]
    rows = [talk(n, rng.choice(words)) | {"origin": rng.choice(["identity", "replay"])} for n in range(40)]
    saved = datasets.save("set", rows, [], INFO)
    path = datasets.resolve("set")
    if seed % 2:  # as an editor may leave it: escapes, blank lines, no line feed at the end
        text = "\n\n".join(json.dumps(row, ensure_ascii=seed % 3 == 0) for row in rows)
        path.write_text(text, encoding="utf-8")
        saved = datasets.info("set")
    for _ in range(12):
        kind, n = rng.choice(["change", "add", "delete"]), rng.randrange(len(rows))
        row = {"text": rng.choice(words), "origin": "mine"} if rng.random() < 0.3 else rng.choice(rows)
        if kind == "change":
            rows[n] = row
            saved = datasets.change_row("set", n, row, saved.sha256)
        elif kind == "add":
            rows.append(row)
            saved = datasets.add_row("set", row, saved.sha256)
        else:
            gone = set(rng.sample(range(len(rows)), 3))
            rows = [row for number, row in enumerate(rows) if number not in gone]
            saved = datasets.delete_rows("set", gone, saved.sha256)
        remembered = rowfile.index_of(path)
        rowfile.forget()
        assert rowfile.index_of(path).sha256 == saved.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert rowfile.index_of(path).starts == remembered.starts
        assert rowfile.index_of(path).counts == remembered.counts == Counter(row["origin"] for row in rows)
        assert saved.texts == sum("text" in row for row in rows)
        assert [row for _, row in datasets.page("set", 0, 99).rows] == rows
        for word in words:
            told = [
                n for n, row in enumerate(rows) if any(word.casefold() in t.casefold() for t in rowfile.texts_of(row))
            ]
            assert [n for n, _ in datasets.page("set", 0, 99, query=word).rows] == told, word
