"""Examples, packs and updates: nothing is lost, and the numbers are the Trainer's."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studio.records.batches import IGNORED, Shape, collate, first_batches, training_rows, validation_rows
from studio.records.chat_tokenizer import Encoded
from studio.records.counts import Mixed, Numbers, counts_of, prepare, unpacked, updates
from studio.records.errors import DataError, Skipped
from studio.records.order import draw, epoch_order, training_order
from studio.records.packing import Packs, pack
from studio.records.token_table import (
    DOUBLE_BOS,
    FACTS,
    IDS,
    OPEN_END,
    Ends,
    Facts,
    TableWriter,
    TokenTable,
    open_table,
    table_of,
)


def encoded(question: int, answer: int, first: int = 10) -> Encoded:
    """`question` tokens of context, `answer` trained ones; ids count up from `first`."""
    return Encoded(list(range(first, first + question + answer)), [0] * question + [1] * answer)


def table(folder: Path, *rows: Encoded, texts: bool = False) -> TokenTable:
    return table_of(enumerate(rows, 1), folder, texts=texts)


def varied(folder: Path, count: int, seed: int = 0) -> TokenTable:
    rng = random.Random(seed)
    return table(folder, *(encoded(rng.randint(1, 9), rng.randint(1, 9), 100 * n) for n in range(1, count + 1)))


# ---- token tables ----------------------------------------------------------------------------------------------------


def test_a_table_gives_back_what_was_written(tmp_path: Path) -> None:
    rows = [
        Encoded([5, 6, 7, 8, 9], [0, 1, 1, 0, 1]),
        Encoded([1], [1]),
        Encoded([2**31 - 1, 0, 3], [0, 0, 1]),
    ]
    found = table(tmp_path / "t", *rows)
    assert [found.encoded(n) for n in range(3)] == rows
    assert found.lengths.tolist() == [5, 1, 3]
    assert found.first_trained().tolist() == [1, 0, 2]
    assert found.trained(0).tolist() == [[1, 3], [4, 5]]
    assert found.rows.tolist() == [1, 2, 3]
    assert found.digests[0] != found.digests[1]
    again = open_table(tmp_path / "t")
    assert [again.encoded(n) for n in range(3)] == rows


def test_a_row_without_loss_is_not_written(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t")
    assert not writer.add(1, Encoded([1, 2], [0, 0]))
    assert not writer.add(2, Encoded([], []))
    assert writer.add(3, Encoded([1, 2], [0, 1]))
    writer.close(Facts(rows_read=3))
    assert open_table(tmp_path / "t").rows.tolist() == [3]
    writer = TableWriter(tmp_path / "none")
    writer.close(Facts())
    assert len(open_table(tmp_path / "none")) == 0


def test_flags_tell_a_double_begin_and_an_open_end(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t", Ends(bos_id=1, ends=frozenset({2})))
    rows = ([1, 5, 2], [1, 1, 5, 2], [1, 5, 6])
    for number, ids in enumerate(rows, 1):
        writer.add(number, Encoded(ids, [0] * (len(ids) - 2) + [1, 1]))
    writer.close(Facts())
    assert open_table(tmp_path / "t").flags.tolist() == [0, DOUBLE_BOS, OPEN_END]


def test_torn_tables_are_refused(tmp_path: Path) -> None:
    found = varied(tmp_path / "t", 5)
    place = tmp_path / "t"
    (place / IDS).write_bytes((place / IDS).read_bytes()[:-4])
    with pytest.raises(ValueError, match="bytes"):
        open_table(place)
    (place / FACTS).unlink()
    with pytest.raises(FileNotFoundError):
        open_table(place)
    assert len(found) == 5


# ---- examples --------------------------------------------------------------------------------------------------------


def test_counts_of_a_small_set(tmp_path: Path) -> None:
    found = table(tmp_path / "t", encoded(4, 6), encoded(4, 20, 50), encoded(30, 5, 90))
    numbers = Numbers(max_length=16, per_device_train_batch_size=2, num_train_epochs=3)
    prepared = prepare([Mixed(found)], numbers)
    counts = counts_of(prepared, numbers)
    assert (counts.rows_read, counts.rows_skipped, counts.conversations) == (3, 1, 2)
    assert (counts.tokens, counts.trained_tokens, counts.truncated) == (10 + 16, 6 + 12, 1)
    assert (counts.packs, counts.updates, counts.distinct) == (2, 3, 2)
    assert counts.padding == pytest.approx(1 - 26 / 32)
    assert counts.updates_per_distinct == 1.5


def test_dropped_rows_have_a_reason_and_all_dropped_is_an_error(tmp_path: Path) -> None:
    short, long = encoded(3, 3), encoded(30, 5)
    numbers = Numbers(max_length=16)
    prepared = prepare([Mixed(table_of([(4, short), (9, long)], tmp_path / "a"))], numbers)
    assert prepared.dropped == [Skipped(9, "no answer is left after cutting at 16 tokens")]
    with pytest.raises(DataError, match=r"Raise data\.max_length") as caught:
        prepare([Mixed(table(tmp_path / "b", long))], numbers)
    assert caught.value.field == "data.max_length"


def test_nothing_usable_names_the_first_reason(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t")
    writer.close(Facts(rows_read=1, skipped_total=1, skipped=((7, "it is empty"),)))
    with pytest.raises(DataError, match="Row 7: it is empty"):
        prepare([Mixed(open_table(tmp_path / "t"))], Numbers(max_length=16))


def test_plain_texts_are_cut_into_pieces_and_lose_nothing(tmp_path: Path) -> None:
    texts = [Encoded(list(range(n)), [1] * n) for n in (16, 17, 50, 3)]
    numbers = Numbers(max_length=16)
    prepared = prepare([Mixed(table(tmp_path / "t", *texts, texts=True))], numbers)
    rows = [training_rows(prepared)[n] for n in range(len(prepared.packs))]
    assert [len(row["input_ids"]) for row in rows] == [16, 16, 1, 16, 16, 16, 2, 3]
    assert [row["labels"] for row in rows] == [row["input_ids"] for row in rows]
    counts = counts_of(prepared, numbers)
    assert (counts.tokens, counts.trained_tokens, counts.truncated) == (86, 86, 0)
    assert counts.rows_read == 4


def test_weights_repeat_and_thin_out(tmp_path: Path) -> None:
    one, two = varied(tmp_path / "a", 10, 1), varied(tmp_path / "b", 20, 2)
    examples = prepare([Mixed(one, 2.5), Mixed(two, 0.25)], Numbers(max_length=64)).examples
    of_one = np.bincount(examples.index[examples.source == 0], minlength=10)
    assert sorted(of_one.tolist()) == [2] * 5 + [3] * 5
    of_two = np.bincount(examples.index[examples.source == 1], minlength=20)
    assert sorted(of_two.tolist()) == [0] * 15 + [1] * 5
    again = prepare([Mixed(one, 2.5), Mixed(two, 0.25)], Numbers(max_length=64)).examples
    assert again.index.tolist() == examples.index.tolist()
    other = prepare([Mixed(one, 2.5), Mixed(two, 0.25)], Numbers(max_length=64, seed=7)).examples
    assert other.index.tolist() != examples.index.tolist()


def test_a_weight_that_takes_no_row_is_said(tmp_path: Path) -> None:
    source = varied(tmp_path / "t", 10)
    with pytest.raises(DataError, match="weights") as caught:
        prepare([Mixed(source, 0.001)], Numbers(max_length=64))
    assert caught.value.field == "data.weight"
    both = prepare([Mixed(source, 0.001), Mixed(varied(tmp_path / "u", 4))], Numbers(max_length=64))
    assert both.examples.source.tolist() == [1] * 4


def test_trained_tokens_of_a_table_with_texts_and_conversations(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t")
    writer.add(1, Encoded(list(range(50)), [1] * 50), text=True)
    writer.add(2, encoded(4, 40))
    writer.close(Facts(rows_read=2))
    numbers = Numbers(max_length=16)
    prepared = prepare([Mixed(open_table(tmp_path / "t"))], numbers)
    labels = [label for row in training_rows(prepared) for label in row["labels"]]
    assert counts_of(prepared, numbers).trained_tokens == 50 + 12 == sum(label != IGNORED for label in labels)


def test_a_row_without_an_answer_in_reach_is_not_kept_for_validation(tmp_path: Path) -> None:
    rows = [encoded(40, 5, 100), encoded(4, 5, 200), encoded(4, 5, 300)]
    for seed in range(10):
        numbers = Numbers(max_length=16, validation_share=0.5, seed=seed)
        prepared = prepare([Mixed(table(tmp_path / str(seed), *rows))], numbers)
        assert (len(prepared.examples), len(prepared.validation), prepared.dropped_total) == (1, 1, 1)


def test_validation_rows_are_never_trained_on(tmp_path: Path) -> None:
    rows = [encoded(2, 3, 100 * (n % 30)) for n in range(60)]  # each twice
    numbers = Numbers(max_length=64, validation_share=0.2)
    prepared = prepare([Mixed(table(tmp_path / "t", *rows))], numbers)
    kept = {tuple(validation_rows(prepared)[n]["input_ids"]) for n in range(len(prepared.validation))}
    trained = {tuple(training_rows(prepared)[n]["input_ids"]) for n in range(len(prepared.packs))}
    assert len(kept) == 6
    assert len(trained) == 24
    assert not kept & trained
    assert counts_of(prepared, numbers).validation == 12


def test_equal_rows_of_two_sources_are_on_one_side(tmp_path: Path) -> None:
    rows = [encoded(2, 3, 100 * n) for n in range(40)]
    one, two = table(tmp_path / "a", *rows[:30]), table(tmp_path / "b", *rows[10:])
    prepared = prepare([Mixed(one), Mixed(two, 2.0)], Numbers(max_length=64, validation_share=0.2))
    kept = {tuple(validation_rows(prepared)[n]["input_ids"]) for n in range(len(prepared.validation))}
    trained = {tuple(training_rows(prepared)[n]["input_ids"]) for n in range(len(prepared.packs))}
    assert 6 <= len(kept) <= 12
    assert not kept & trained
    assert len(kept | trained) == 40
    same = prepare([Mixed(table(tmp_path / "c", *rows[:2])), Mixed(table(tmp_path / "d", *rows[:2]))],
                   Numbers(max_length=64, validation_share=0.5))  # fmt: skip
    assert len(same.examples) == len(same.validation) == 2


def test_a_validation_dataset_of_its_own(tmp_path: Path) -> None:
    numbers = Numbers(max_length=64, validation_share=0.5)
    own = varied(tmp_path / "v", 4, 9)
    prepared = prepare([Mixed(varied(tmp_path / "t", 10))], numbers, [Mixed(own)])
    assert len(prepared.examples) == 10
    assert validation_rows(prepared)[0]["input_ids"] == own.encoded(0).ids
    assert len(prepared.validation) == 4


def test_rows_still_to_be_written_are_counted(tmp_path: Path) -> None:
    numbers = Numbers(max_length=64, per_device_train_batch_size=5)
    prepared = prepare([Mixed(varied(tmp_path / "t", 10))], numbers)
    counts = counts_of(prepared, numbers, self_replay=10)
    assert (counts.packs, counts.updates, counts.conversations, counts.self_replay) == (20, 4, 20, 10)


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_small_sets_are_not_packed_unless_asked(tmp_path: Path) -> None:
    found = table(tmp_path / "t", *(encoded(2, 2, n) for n in range(10)))
    assert not prepare([Mixed(found)], Numbers(max_length=16)).packing
    asked = prepare([Mixed(found)], Numbers(max_length=16, packing=True))
    assert (asked.packing, len(asked.packs)) == (True, 3)
    assert len(unpacked(asked).packs) == 10
    many = Mixed(found, 200)
    assert len(prepare([many], Numbers(max_length=16)).packs) == 500
    assert len(prepare([many], Numbers(max_length=16, packing=False)).packs) == 2000
    # 2,000 rows, but packed they would give 4 updates only
    few = replace(Numbers(max_length=16), per_device_train_batch_size=16, gradient_accumulation_steps=8)
    assert not prepare([many], few).packing


def test_nothing_is_packed_where_nothing_fits_together(tmp_path: Path) -> None:
    found = table(tmp_path / "t", *(encoded(5, 5, n) for n in range(4)))
    assert not prepare([Mixed(found)], Numbers(max_length=16, packing=True)).packing


def as_lists(packs: Packs) -> list[list[int]]:
    return [packs[n].tolist() for n in range(len(packs))]


@pytest.mark.parametrize("seed", range(20))
def test_packing_loses_nothing_and_fits(seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.randint(1, 64)
    lengths = [rng.randint(1, capacity) for _ in range(rng.randint(1, 300))]
    packs = pack(lengths, capacity)
    rows = as_lists(packs)
    assert sorted(row for members in rows for row in members) == list(range(len(lengths)))
    fill = [sum(lengths[row] for row in members) for members in rows]
    assert packs.sums(np.array(lengths)).tolist() == fill
    assert max(fill) <= capacity
    assert sum(2 * tokens <= capacity for tokens in fill) <= 1  # two half-empty packs would have been one


def test_packing_takes_the_tightest_gap() -> None:
    assert as_lists(pack([7, 6, 3, 4], 10)) == [[0, 2], [1, 3]]
    assert as_lists(pack([], 10)) == []


def test_the_packed_tokens_are_the_unpacked_ones(tmp_path: Path) -> None:
    found = varied(tmp_path / "t", 50)
    prepared = prepare([Mixed(found)], Numbers(max_length=32, packing=True))
    assert len(prepared.packs) < 50
    seen = []
    for number in range(len(prepared.packs)):
        row = training_rows(prepared)[number]
        start = 0
        for length in row["seq_lengths"]:
            seen.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
        assert start == len(row["input_ids"])
    expected = []
    for number in range(50):
        ids, mask = found.encoded(number).ids, found.encoded(number).mask
        expected.append((ids, [token if flag else IGNORED for token, flag in zip(ids, mask, strict=True)]))
    assert sorted(seen) == sorted(expected)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_cut_rows_have_cut_labels(tmp_path: Path) -> None:
    prepared = prepare([Mixed(table(tmp_path / "t", encoded(4, 20, 50)))], Numbers(max_length=16))
    row = training_rows(prepared)[0]
    assert row["input_ids"] == list(range(50, 66))
    assert row["labels"] == [IGNORED] * 4 + list(range(54, 66))


def test_batches_are_padded_on_the_right() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORED, 6, 7, 8, 9], "seq_lengths": [3, 2]},
        {"input_ids": [4, 3], "labels": [4, 3], "seq_lengths": [2]},
    ]
    plain = collate(rows, Shape(0))
    assert plain["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert plain["labels"].tolist() == [[IGNORED, 6, 7, 8, 9], [4, 3, *[IGNORED] * 3]]
    assert plain["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    packed = collate(rows, Shape(0, packed=True))
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert packed["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED, 3, *[IGNORED] * 3]]


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    orders = [epoch_order(100, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(100, 1, 0).tolist() == orders[0]
    assert draw(100, 30, 1).tolist() == sorted(set(draw(100, 30, 1).tolist()))
    numbers = Numbers(max_length=64, per_device_train_batch_size=3)
    prepared = prepare([Mixed(varied(tmp_path / "t", 10))], numbers)
    batches = first_batches(prepared, numbers, 2)
    assert [len(batch) for batch in batches] == [3, 3]
    assert batches[0] + batches[1] == training_order(prepared.examples.length, 42, 0, 3)[:6].tolist()


@pytest.mark.parametrize(("seed", "per_update"), [(1, 4), (2, 4), (3, 1), (4, 8), (5, 100), (6, 1000)])
def test_the_longest_rows_head_the_first_two_updates_and_all_else_stays_in_place(seed: int, per_update: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 60, 100)
    plain, order = epoch_order(100, seed, 0), training_order(sizes, seed, 0, per_update)
    longest = sorted(sizes.tolist(), reverse=True)
    assert sizes[order[0]] == longest[0]
    if per_update < 100:
        assert sizes[order[per_update]] == longest[1]
    assert sorted(order.tolist()) == list(range(100))
    assert int((order != plain).sum()) <= 4
    assert training_order(sizes, seed, 1, per_update).tolist() == epoch_order(100, seed, 1).tolist()
    assert training_order(sizes, seed, 0, per_update).tolist() == order.tolist()


def test_rows_of_one_length_keep_their_order() -> None:
    assert training_order(np.full(20, 7), 3, 0, 4).tolist() == epoch_order(20, 3, 0).tolist()


@pytest.mark.parametrize(
    ("packs", "batch", "accumulation", "epochs", "max_steps", "devices", "expected"),
    [
        (10, 1, 1, 1, -1, 1, 10),
        (10, 4, 1, 1, -1, 1, 3),
        (10, 4, 2, 3, -1, 1, 6),
        (10, 4, 16, 3, -1, 1, 3),
        (10, 4, 2, 0.3, -1, 1, 1),
        (10, 4, 2, 2.5, -1, 1, 5),
        (392, 8, 1, 3, -1, 1, 147),
        (392, 8, 1, 3, 100, 1, 100),
        (10, 1, 1, 1, -1, 4, 3),
        (1, 8, 8, 1, -1, 8, 1),
    ],
)
def test_updates(  # noqa: PLR0913
    packs: int, batch: int, accumulation: int, epochs: float, max_steps: int, devices: int, expected: int
) -> None:
    numbers = Numbers(16, None, batch, accumulation, epochs, max_steps, devices)
    assert updates(packs, numbers) == expected
