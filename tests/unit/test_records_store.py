"""Datasets on disk: whole or not at all, found by name or path, never outside their folder."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from studio.records import DataError, DatasetInfo, DatasetStore, IdentitySpec, read_file, store
from studio.records.naming import slug

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
    for outside in (str(tmp_path), "../datasets", str(path) + "/x.json", str(path.with_suffix(".txt"))):
        with pytest.raises(DataError):
            datasets.resolve(outside)


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

    monkeypatch.setattr(store.os, "fsync", full)
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
