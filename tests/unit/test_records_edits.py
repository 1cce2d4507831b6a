"""Whole datasets split, merged, deduplicated, shuffled, sampled, filtered, copied: exact, seeded, in bounded memory."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, DatasetInfo, DatasetStore, IdentitySpec, edits, rowfile
from studio.records.edits import Making, parse_share, picks, shuffled, within_length, without_duplicates

IDENTITY = IdentitySpec(name="Nova", author="Rui")
INFO = DatasetInfo(kind="identity", languages=("en",), identity=IDENTITY)


def talk(text: str, answer: str = "ok", origin: str = "upload") -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "origin": origin}


def question(text: str) -> dict[str, Any]:
    return {"prompt": text, "kind": "who", "lang": "en", "expect": ["Nova"]}


@pytest.fixture
def datasets(tmp_path: Path) -> DatasetStore:
    store = DatasetStore(tmp_path / "datasets")
    store.save("ten", [talk(f"row {n}") for n in range(10)], [question("Who?")], INFO)
    return store


def said(store: DatasetStore, name: str) -> list[str]:
    return [row["messages"][0]["content"] for row in store.rows(name)]


# ---- over rows ----


@pytest.mark.parametrize(("total", "wanted"), [(0, 0), (1, 1), (10, 0), (10, 10), (10, 7), (5000, 1234)])
def test_exactly_so_many_are_picked(total: int, wanted: int) -> None:
    flags = list(picks(total, wanted, seed=3))
    assert (len(flags), sum(flags)) == (total, wanted)
    assert flags == list(picks(total, wanted, seed=3))


def test_every_row_is_picked_equally_often() -> None:
    times = [0] * 10
    for seed in range(3000):
        for number, flag in enumerate(picks(10, 3, seed)):
            times[number] += flag
    assert all(750 < count < 1050 for count in times)  # 900 expected, sigma 25


def test_orders_are_permutations_that_follow_the_seed() -> None:
    assert sorted(shuffled(1000, 1)) == list(range(1000))
    assert list(shuffled(1000, 1)) == list(shuffled(1000, 1)) != list(shuffled(1000, 2))
    assert list(shuffled(1000, 1)) != list(range(1000))


def test_duplicates() -> None:
    rows = [
        talk("Hello there"),
        talk("Hello there", origin="replay"),
        talk("hello  THERE\n"),
        talk("hello there", "OK"),
        talk("hellothere", "no"),
        {"text": "Hello there"},
        {"messages": talk("Hello there")["messages"], "tools": [{"type": "function"}], "origin": "upload"},
    ]
    assert [rows.index(row) for row in without_duplicates(rows)] == [0, 2, 3, 4, 5, 6]
    assert [rows.index(row) for row in without_duplicates(rows, loose=True)] == [0, 4, 5, 6]


def test_parts_of_different_messages_are_no_duplicates() -> None:
    """What is joined loosely must still tell where one text ends and the next begins."""
    rows = [talk("a b", "c"), talk("a", "b c"), talk('a","b', "c"), talk("ab", "c")]
    assert [rows.index(row) for row in without_duplicates(rows, loose=True)] == [0, 1, 2]


def test_lengths_count_what_is_said() -> None:
    rows = [talk("  a  ", "b"), talk("a" * 10, "b"), {"text": "x " * 50}]
    assert list(within_length(rows, longest=11)) == rows[:2]
    assert list(within_length(rows, shortest=11, longest=11)) == rows[1:2]
    assert list(within_length(rows, shortest=12)) == rows[2:]


@pytest.mark.parametrize(
    ("text", "share"), [("7:3", 0.7), ("0.25", 0.25), ("70%", 0.7), (" 1 : 1 ", 0.5), ("9：1", 0.9), ("2:6", 0.25)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["", "0", "1", "3:0", "0:3", "-1", "1.5", "x", "7:3:1", "nan", "inf", "0:0", "7:", "150%"]
)
def test_no_shares(text: str) -> None:
    with pytest.raises(DataError, match="is no share. Write it as") as caught:
        parse_share(text)
    assert caught.value.field == "share"


# ---- over datasets ----


def test_split(datasets: DatasetStore) -> None:
    first, second = edits.split(datasets, "ten")
    assert (first.name, first.rows, second.name, second.rows) == ("ten-70", 7, "ten-30", 3)
    one, two = said(datasets, "ten-70"), said(datasets, "ten-30")
    assert sorted(one + two) == sorted(said(datasets, "ten"))
    assert one == sorted(one)  # the order of the rows stays
    for part in (first, second):
        assert (part.kind, part.identity, part.languages) == ("identity", IDENTITY, ("en",))
        assert datasets.heldout(part.name) == [question("Who?")]
    assert first.source == "70 % of ten, seed 42"
    again, _ = edits.split(datasets, "ten", making=Making("Again"))
    assert (again.name, again.sha256) == ("again-70", first.sha256)
    other, _ = edits.split(datasets, "ten", making=Making(seed=1))
    assert other.sha256 != first.sha256


def test_a_split_that_fails_half_way_leaves_no_half(datasets: DatasetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = rowfile.RowWriter.add, []

    def full(self: rowfile.RowWriter, row: dict[str, Any]) -> None:
        calls.append(row)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, row)

    monkeypatch.setattr(rowfile.RowWriter, "add", full)
    with pytest.raises(DataError, match="No space left"):
        edits.split(datasets, "ten")
    assert [path.name for path in datasets.folder.iterdir()] == ["ten"]


def test_merge(datasets: DatasetStore) -> None:
    datasets.save(
        "b", [talk("other"), {"text": "a text"}], [question("Who?"), question("And you?")], DatasetInfo(kind="import")
    )
    merged = edits.merge(datasets, ["ten", "b", "ten"])
    assert (merged.rows, merged.texts, merged.kind, merged.identity) == (22, 1, "derived", IDENTITY)
    assert merged.title == "ten + b + ten"
    assert datasets.heldout(merged.name) == [question("Who?"), question("And you?")]
    assert [row.get("text") for row in datasets.rows(merged.name)][11] == "a text"


def test_what_the_model_is_to_answer_itself_is_shared_out(datasets: DatasetStore) -> None:
    datasets.save("own", [talk(f"{n}") for n in range(10)], [], INFO.model_copy(update={"self_replay": 20}))
    assert [part.self_replay for part in edits.split(datasets, "own")] == [14, 6]
    assert edits.sample(datasets, "own", 5).self_replay == 10
    assert edits.shuffle(datasets, "own").self_replay == 20
    assert edits.merge(datasets, ["own", "own", "ten"]).self_replay == 40


def test_two_identities_in_one_dataset_are_none(datasets: DatasetStore) -> None:
    other = INFO.model_copy(update={"identity": IdentitySpec(name="Ada", author="Rui"), "languages": ("zh",)})
    datasets.save("ada", [talk("x")], [], other)
    merged = edits.merge(datasets, ["ten", "ada"])
    assert (merged.identity, merged.kind, merged.languages) == (None, "identity", ("en", "zh"))


def test_deduplicate_shuffle_sample_filter_copy(datasets: DatasetStore) -> None:
    doubled = edits.merge(datasets, ["ten", "ten"], Making("Double"))
    once = edits.deduplicate(datasets, doubled.name)
    assert (once.rows, once.sha256) == (10, datasets.info("ten").sha256)
    mixed = edits.shuffle(datasets, "ten", Making("Mixed", seed=5))
    assert said(datasets, "mixed") != said(datasets, "ten")
    assert sorted(said(datasets, "mixed")) == said(datasets, "ten")
    assert mixed.source == "ten shuffled, seed 5"
    few = edits.sample(datasets, "ten", 4)
    assert (few.rows, said(datasets, few.name)) == (4, sorted(said(datasets, few.name)))
    assert edits.sample(datasets, "ten", 0.3).rows == 3
    assert edits.sample(datasets, "ten", 10).sha256 == datasets.info("ten").sha256
    short = edits.keep_lengths(datasets, doubled.name, Making("Short"), longest=6)
    assert short.rows == 20
    copy = edits.save_as(datasets, "ten", Making("Copy of it"))
    assert (copy.name, copy.sha256, copy.source, copy.kind) == ("copy-of-it", once.sha256, "copy of ten", "identity")
    for name in ("mixed", few.name, once.name, copy.name):
        assert datasets.heldout(name) == [question("Who?")]
    assert datasets.info("ten").rows == 10


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda store: edits.split(store, "ten", 0.01), "one part would have none"),
        (lambda store: edits.split(store, "ten", 1.5), "between 0 and 1"),
        (lambda store: edits.split(store, "nothing"), "there is no dataset"),
        (lambda store: edits.merge(store, ["ten"]), "at least two"),
        (lambda store: edits.merge(store, ["ten", "nothing"]), "there is no dataset"),
        (lambda store: edits.sample(store, "ten", 11), "has 10 rows; 11 cannot be drawn"),
        (lambda store: edits.sample(store, "ten", 0.01), "0 cannot be drawn"),
        (lambda store: edits.sample(store, "ten", -1), "Give a number of rows"),
        (lambda store: edits.sample(store, "ten", 2.5), "Give a number of rows"),
        (lambda store: edits.sample(store, "ten", float("nan")), "Give a number of rows"),
        (lambda store: edits.sample(store, "ten", float("inf")), "Give a number of rows"),
        (lambda store: edits.keep_lengths(store, "ten", longest=1), "No row is left"),
        (lambda store: edits.shuffle(store, "../ten"), "there is no dataset"),
    ],
)
def test_what_cannot_be_done_changes_nothing(datasets: DatasetStore, work: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        work(datasets)
    assert [path.name for path in datasets.folder.iterdir()] == ["ten"]


def test_damaged_rows_are_blamed_on_their_dataset(datasets: DatasetStore) -> None:
    datasets.resolve("ten").write_text('{"messages": [\n', encoding="utf-8")
    for work in (edits.shuffle, edits.deduplicate, edits.save_as):
        with pytest.raises(DataError, match="The dataset ten is damaged"):
            work(datasets, "ten")
    assert [path.name for path in datasets.folder.iterdir()] == ["ten"]


def test_big_datasets_are_not_held_in_memory(datasets: DatasetStore) -> None:
    datasets.save_stream("big", (talk(f"{n}" + "x" * 20_000) for n in range(600)), [], DatasetInfo(kind="import"))
    tracemalloc.start()
    edits.split(datasets, "big")
    edits.shuffle(datasets, "big")
    edits.deduplicate(datasets, "big", loose=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (datasets.folder / "big" / "rows.jsonl").stat().st_size > 12_000_000
    assert peak < 2_000_000
