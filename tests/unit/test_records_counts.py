"""Examples, packs and updates: nothing is lost, and the numbers are the Trainer's."""

from __future__ import annotations

import random

import pytest

from studio.records.chat_tokenizer import Encoded
from studio.records.conversation import Conversation, Message
from studio.records.counts import Numbers, count, pack, prepare, updates
from studio.records.errors import DataError
from studio.records.formats import ReadResult, Skipped


def conversation(question: int, answer: int) -> Conversation:
    return Conversation(
        messages=(Message(role="user", content="q" * question), Message(role="assistant", content="a" * answer))
    )


def encode(item: Conversation) -> Encoded:
    """One token per character."""
    ids = [ord(char) for message in item.messages for char in message.content]
    return Encoded(ids, [int(char == ord("a")) for char in ids])


def test_counts_of_a_small_set() -> None:
    items = [conversation(4, 6), conversation(4, 20), conversation(30, 5)]
    read = ReadResult(items, [Skipped(9, "bad")], "messages", 4)
    found = count(read, encode, Numbers(max_length=16, per_device_train_batch_size=2, num_train_epochs=3))
    assert (found.rows_read, found.rows_skipped, found.conversations) == (4, 2, 2)
    assert (found.tokens, found.trained_tokens, found.truncated) == (10 + 16, 6 + 12, 1)
    assert (found.packs, found.updates) == (2, 3)


def test_dropped_rows_have_a_reason_and_all_dropped_is_an_error() -> None:
    prepared = prepare([conversation(3, 3), conversation(30, 5)], encode, Numbers(max_length=16))
    assert prepared.positions == [0]
    assert prepared.dropped == [Skipped(2, "no answer is left after cutting at 16 tokens")]
    numbered = prepare([conversation(3, 3), conversation(30, 5)], encode, Numbers(max_length=16), rows=[4, 9])
    assert [entry.row for entry in numbered.dropped] == [9]
    with pytest.raises(DataError, match="Raise data.max_length") as caught:
        prepare([conversation(30, 5)], encode, Numbers(max_length=16))
    assert caught.value.field == "data.max_length"


def test_small_sets_are_not_packed_unless_asked() -> None:
    items = [conversation(2, 2)] * 10
    assert len(prepare(items, encode, Numbers(max_length=16)).packs) == 10
    assert len(prepare(items, encode, Numbers(max_length=16, packing=True)).packs) == 3
    assert len(prepare(items * 200, encode, Numbers(max_length=16)).packs) == 500
    assert len(prepare(items * 200, encode, Numbers(max_length=16, packing=False)).packs) == 2000


@pytest.mark.parametrize("seed", range(20))
def test_packing_loses_nothing_and_fits(seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.randint(1, 64)
    lengths = [rng.randint(1, capacity) for _ in range(rng.randint(1, 300))]
    packs = pack(lengths, capacity)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    fill = [sum(lengths[row] for row in rows) for rows in packs]
    assert max(fill) <= capacity
    assert sum(2 * tokens <= capacity for tokens in fill) <= 1  # two half-empty packs would have been one


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
