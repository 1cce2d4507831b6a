"""From conversations to training examples, and every number on the way: rows -> packs -> optimizer updates.

The form promises these numbers and the engine trains on exactly these examples.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from studio.config import RunConfig
from studio.records.chat_tokenizer import Encoded
from studio.records.conversation import Conversation
from studio.records.errors import DataError
from studio.records.formats import ReadResult, Skipped

Encode = Callable[[Conversation], Encoded]
PACKING_FROM = 2000
"""Smaller sets are not packed unless asked for: packing would leave too few updates."""


@dataclass(frozen=True)
class Numbers:
    """The settings the counts depend on; names as in RunConfig. `packing` None: on from 2,000 conversations."""

    max_length: int
    packing: bool | None = None
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 1.0
    max_steps: int = -1
    devices: int = 1


def numbers_of(config: RunConfig, devices: int = 1) -> Numbers:
    """The settings of a configuration that the counts depend on."""
    train = config.train
    return Numbers(
        max_length=config.data.max_length,
        packing=config.data.packing,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        devices=devices,
    )


@dataclass(frozen=True)
class Counts:
    """What a run will train on. `packs` equals the number of conversations when nothing is packed."""

    rows_read: int
    rows_skipped: int
    conversations: int
    tokens: int
    trained_tokens: int
    truncated: int
    packs: int
    updates: int


@dataclass(frozen=True)
class Prepared:
    """Examples no longer than max_length, each with a trained token; `packs` are lists of example numbers.

    `positions[i]` is the number of example i in the list of conversations.
    """

    examples: list[Encoded]
    positions: list[int]
    packs: list[list[int]]
    truncated: int
    dropped: list[Skipped]
    packing: bool


def prepare(
    conversations: Sequence[Conversation], encode: Encode, numbers: Numbers, rows: Sequence[int] = ()
) -> Prepared:
    """Encodes, cuts at max_length, drops what has no trained token left, packs.

    `rows` are the conversations' row numbers in their file, for the reasons; without it they are counted from 1.
    Raises DataError if nothing is left.
    """
    examples: list[Encoded] = []
    positions: list[int] = []
    dropped: list[Skipped] = []
    truncated = 0
    for position, conversation in enumerate(conversations):
        full = encode(conversation)
        cut = Encoded(full.ids[: numbers.max_length], full.mask[: numbers.max_length])
        if any(cut.mask):
            truncated += len(full.ids) > numbers.max_length
            examples.append(cut)
            positions.append(position)
        else:
            reason = f"no answer is left after cutting at {numbers.max_length} tokens"
            dropped.append(Skipped(rows[position] if rows else position + 1, reason))
    if not examples:
        raise DataError(
            f"No conversation has an answer within {numbers.max_length} tokens. Raise data.max_length.",
            field="data.max_length",
        )
    packing = len(examples) >= PACKING_FROM if numbers.packing is None else numbers.packing
    lengths = [len(example.ids) for example in examples]
    packs = pack(lengths, numbers.max_length) if packing else [[index] for index in range(len(examples))]
    return Prepared(examples, positions, packs, truncated, dropped, packing)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: lists of row numbers, each at most `capacity` tokens together; no row is lost."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack number), ascending
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(room, (lengths[row], -1))
        if place < len(room):
            left, number = room.pop(place)
        else:
            left, number = capacity, len(packs)
            packs.append([])
        packs[number].append(row)
        insort(room, (left - lengths[row], number))
    return packs


def updates(packs: int, numbers: Numbers) -> int:
    """Optimizer updates, as transformers' Trainer 5.23 computes max_steps (drop_last off)."""
    if numbers.max_steps > 0:
        return numbers.max_steps
    batches = math.ceil(packs / numbers.per_device_train_batch_size)
    batches = math.ceil(batches / numbers.devices)
    per_epoch = max(math.ceil(batches / numbers.gradient_accumulation_steps), 1)
    return math.ceil(numbers.num_train_epochs * per_epoch)


def counts_of(prepared: Prepared, numbers: Numbers) -> Counts:
    """The numbers of prepared examples; rows_read counts conversations only."""
    return Counts(
        rows_read=len(prepared.examples) + len(prepared.dropped),
        rows_skipped=len(prepared.dropped),
        conversations=len(prepared.examples),
        tokens=sum(len(example.ids) for example in prepared.examples),
        trained_tokens=sum(sum(example.mask) for example in prepared.examples),
        truncated=prepared.truncated,
        packs=len(prepared.packs),
        updates=updates(len(prepared.packs), numbers),
    )


def count(read: ReadResult, encode: Encode, numbers: Numbers) -> Counts:
    """All numbers of a file that was read. Raises DataError when nothing is left to train on."""
    found = counts_of(prepare(read.conversations, encode, numbers, read.rows), numbers)
    return replace(found, rows_read=read.rows_read, rows_skipped=len(read.skipped) + found.rows_skipped)
