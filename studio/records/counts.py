"""From token tables to training examples, and every number on the way: rows -> packs -> optimizer updates.

The form promises these numbers and the engine trains on exactly these examples. Everything here is arrays with one
entry per example; the tokens themselves stay on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from studio.config import RunConfig
from studio.records.errors import DataError, Skipped
from studio.records.order import Indices, draw, training_order
from studio.records.packing import Packs, one_each, pack
from studio.records.token_table import SKIPPED_KEPT, TEXT, TokenTable, distinct

PACKING_FROM = 2000
"""Fewer examples are not packed unless asked for."""
PACKED_UPDATES_FROM = 50
"""A set that would give fewer optimizer updates when packed is not packed unless asked for."""


@dataclass(frozen=True)
class Numbers:
    """The settings the counts depend on; names as in RunConfig. `packing` None: decided by the size of the set."""

    max_length: int
    packing: bool | None = None
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 1.0
    max_steps: int = -1
    devices: int = 1
    seed: int = 42
    validation_share: float = 0.0


def numbers_of(config: RunConfig) -> Numbers:
    """The settings of a configuration that the counts depend on."""
    train = config.train
    return Numbers(
        max_length=config.data.max_length,
        packing=config.data.packing,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        devices=config.data_parallel_size,
        seed=train.seed,
        validation_share=config.data.validation_share,
    )


@dataclass(frozen=True)
class Mixed:
    """One source of a run: its table, and how often each of its rows is seen in one epoch.

    No row of a source that is not `validated` is kept for the evaluation loss.
    """

    table: TokenTable
    weight: float = 1.0
    validated: bool = True


@dataclass(frozen=True)
class Examples:
    """Training examples: `length` tokens from `start` of row `index` of table `source`; arrays of equal length."""

    source: Indices
    index: Indices
    start: Indices
    length: Indices

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class Prepared:
    """What is trained on. `validation` rows are never trained; `dropped` rows have no answer within max_length.

    `validation_sources` are empty where the validation rows are some of `sources`' own.
    """

    sources: tuple[Mixed, ...]
    examples: Examples
    packs: Packs
    packing: bool
    validation: Examples
    validation_sources: tuple[Mixed, ...]
    dropped: list[Skipped]
    dropped_total: int
    truncated: int


@dataclass(frozen=True)
class Counts:
    """What a run will train on. `packs` equals the number of examples when nothing is packed.

    `distinct` counts different rows, `padding` is the share of filler tokens in the batches of the first epoch,
    `self_replay` rows the base model has yet to write (already among the examples, packs and updates).
    """

    rows_read: int
    rows_skipped: int
    conversations: int
    tokens: int
    trained_tokens: int
    truncated: int
    packs: int
    updates: int
    distinct: int = 0
    padding: float = 0.0
    validation: int = 0
    self_replay: int = 0
    packed: bool = False

    @property
    def updates_per_distinct(self) -> float:
        """Optimizer updates per different row: how hard each one is pressed in."""
        return self.updates / self.distinct if self.distinct else 0.0


def prepare(sources: Sequence[Mixed], numbers: Numbers, validation: Sequence[Mixed] = ()) -> Prepared:
    """Mixes, keeps validation rows apart, cuts at max_length, packs. Raises DataError if nothing is left to train on.

    `validation`: sources of their own for the evaluation loss; then `validation_share` is not looked at.
    """
    taken: list[Examples] = []
    held: list[Examples] = []
    dropped: list[Skipped] = []
    lost_total = truncated = 0
    usable = [_usable(source.table, np.arange(len(source.table)), numbers.max_length) for source in sources]
    share = 0.0 if validation else numbers.validation_share
    kinds = _held_out(sources, [rows for rows, _ in usable], share, numbers.seed)
    for number, (source, (rows, lost)) in enumerate(zip(sources, usable, strict=True)):
        held_out = np.isin(source.table.digests[rows], kinds)
        apart, rows = rows[held_out], rows[~held_out]
        dropped += [_too_long(source, int(row), numbers.max_length) for row in lost[:SKIPPED_KEPT]]
        lost_total += len(lost)
        truncated += _count_truncated(source.table, rows, numbers.max_length)
        taken.append(_cut(source.table, _weighted(rows, source.weight, numbers.seed, number), numbers, number))
        held.append(_cut(source.table, apart, numbers, number))
    for number, source in enumerate(validation):
        rows, _ = _usable(source.table, np.arange(len(source.table)), numbers.max_length)
        held.append(_cut(source.table, rows, numbers, number))
    examples = _joined(taken)
    if not len(examples):
        raise _nothing_left(sources, numbers)
    packs, packing = choose_packing(examples.length, numbers)
    return Prepared(
        sources=tuple(sources),
        examples=examples,
        packs=packs,
        packing=packing,
        validation=_joined(held),
        validation_sources=tuple(validation),
        dropped=dropped,
        dropped_total=lost_total,
        truncated=truncated,
    )


def unpacked(prepared: Prepared) -> Prepared:
    """The same examples, each in a row of its own."""
    return replace(prepared, packs=one_each(len(prepared.examples)), packing=False)


def choose_packing(lengths: Indices, numbers: Numbers) -> tuple[Packs, bool]:
    """The packs, and whether anything is packed: as asked, else only where a set is large enough to gain by it."""
    alone = one_each(len(lengths))
    if numbers.packing is False or (numbers.packing is None and len(lengths) < PACKING_FROM):
        return alone, False
    packs = pack(lengths, numbers.max_length)
    gains = len(packs) < len(alone)
    if numbers.packing is None:
        gains = gains and updates(len(packs), replace(numbers, max_steps=-1)) >= PACKED_UPDATES_FROM
    return (packs, True) if gains else (alone, False)


def updates(packs: int, numbers: Numbers) -> int:
    """Optimizer updates, as transformers' Trainer 5.23 computes max_steps (drop_last off)."""
    if numbers.max_steps > 0:
        return numbers.max_steps
    batches = math.ceil(packs / numbers.per_device_train_batch_size)
    batches = math.ceil(batches / numbers.devices)
    per_epoch = max(math.ceil(batches / numbers.gradient_accumulation_steps), 1)
    return math.ceil(numbers.num_train_epochs * per_epoch)


def counts_of(prepared: Prepared, numbers: Numbers, self_replay: int = 0) -> Counts:
    """All numbers of prepared examples; `self_replay` rows still to be written count as one example each."""
    examples, facts = prepared.examples, [source.table.facts for source in prepared.sources]
    used = [np.unique(examples.index[examples.source == n]) for n in range(len(prepared.sources))]
    packs = len(prepared.packs) + self_replay
    return Counts(
        rows_read=sum(fact.rows_read for fact in facts),
        rows_skipped=sum(fact.skipped_total for fact in facts) + prepared.dropped_total,
        conversations=len(examples) + self_replay,
        tokens=int(examples.length.sum()),
        trained_tokens=_trained(prepared),
        truncated=prepared.truncated,
        packs=packs,
        updates=updates(packs, numbers),
        distinct=distinct([s.table.digests[u] for s, u in zip(prepared.sources, used, strict=True)]) + self_replay,
        padding=padding(prepared.packs.sums(examples.length), numbers),
        validation=len(prepared.validation),
        self_replay=self_replay,
        packed=prepared.packing,
    )


def order_of(sizes: Indices, numbers: Numbers) -> Indices:
    """The order in which rows of these sizes are trained on in the first epoch."""
    batch, rounds = numbers.per_device_train_batch_size, numbers.gradient_accumulation_steps
    return training_order(sizes, numbers.seed, 0, batch * rounds * numbers.devices)


def places(ordered: Indices, batch: int) -> Indices:
    """Tokens of each batch, filler included, when rows of these sizes come in this order."""
    starts = np.arange(0, len(ordered), batch)
    widths = np.maximum.reduceat(ordered, starts)
    return widths * np.diff(np.append(starts, len(ordered)))


def padding(sizes: Indices, numbers: Numbers) -> float:
    """Share of filler tokens when rows of these sizes are batched in the order of the first epoch."""
    if not len(sizes):
        return 0.0
    total = int(places(sizes[order_of(sizes, numbers)], numbers.per_device_train_batch_size).sum())
    return float(1 - sizes.sum() / max(total, 1))


# ---- from rows to examples -------------------------------------------------------------------------------------------


def _held_out(
    sources: Sequence[Mixed], usable: Sequence[Indices], share: float, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Digests of the rows kept for the evaluation loss, about `share` of each source.

    Equal rows have equal ranks, in whichever source they stand, so none of them is on both sides.
    """
    found = [np.zeros(0, dtype=np.uint64)]
    for source, rows in zip(sources, usable, strict=True):
        kinds = np.unique(source.table.digests[rows])
        if not share or not source.validated or len(kinds) < 2:
            continue
        wanted = min(max(round(len(kinds) * share), 1), len(kinds) - 1)
        ranks = (kinds ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)  # wraps around: a mix, not a number
        found.append(kinds[np.argsort(ranks)[:wanted]])
    return np.unique(np.concatenate(found))


def _usable(table: TokenTable, rows: Indices, max_length: int) -> tuple[Indices, Indices]:
    """Rows with a trained token within `max_length`, and the others. A plain text is cut into pieces: always usable."""
    good = (table.first_trained()[rows] < max_length) | ((table.flags[rows] & TEXT) > 0)
    return rows[good], rows[~good]


def _count_truncated(table: TokenTable, rows: Indices, max_length: int) -> int:
    return int(((table.lengths[rows] > max_length) & ((table.flags[rows] & TEXT) == 0)).sum())


def _weighted(rows: Indices, weight: float, seed: int, salt: int) -> Indices:
    """Each row as often as its weight says; what is left of the weight draws some rows once more."""
    whole, part = divmod(weight, 1)
    extra = rows[draw(len(rows), round(len(rows) * part), seed, 1000 + salt)]
    return np.concatenate([np.tile(rows, int(whole)), extra])


def _cut(table: TokenTable, rows: Indices, numbers: Numbers, source: int) -> Examples:
    """One example per conversation, cut at the end; one per piece of a plain text, so that none of it is lost."""
    lengths, limit = table.lengths[rows], numbers.max_length
    pieces = np.where((table.flags[rows] & TEXT) > 0, -(-lengths // limit), 1)
    index = np.repeat(rows, pieces)
    number = np.arange(len(index)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = number * limit
    length = np.minimum(np.repeat(lengths, pieces) - start, limit)
    return Examples(np.full(len(index), source, dtype=np.int64), index, start, length)


def _joined(parts: Sequence[Examples]) -> Examples:
    names = ("source", "index", "start", "length")
    columns = [np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0, np.int64)]) for name in names]
    return Examples(*columns)


def _trained(prepared: Prepared) -> int:
    """Tokens that carry loss, in all examples."""
    total = 0
    for number, source in enumerate(prepared.sources):
        mine = prepared.examples.source == number
        index, length = (getattr(prepared.examples, name)[mine] for name in ("index", "length"))
        text = (source.table.flags[index] & TEXT) > 0
        total += int(length[text].sum())
        total += int(_trained_within(source.table, int(length[~text].max(initial=0)))[index[~text]].sum())
    return total


def _trained_within(table: TokenTable, limit: int) -> Indices:
    """Trained tokens among the first `limit` of each row."""
    per_row = np.diff(table.span_ends)
    clipped = np.minimum(np.asarray(table.spans).reshape(-1, 2), limit)
    owner = np.repeat(np.arange(len(table)), per_row)
    return np.bincount(owner, weights=clipped[:, 1] - clipped[:, 0], minlength=len(table)).astype(np.int64)


def _too_long(source: Mixed, row: int, max_length: int) -> Skipped:
    return Skipped(int(source.table.rows[row]), f"no answer is left after cutting at {max_length} tokens")


def _nothing_left(sources: Sequence[Mixed], numbers: Numbers) -> DataError:
    read = [source for source in sources if len(source.table)]
    if any(len(_usable(source.table, np.arange(len(source.table)), numbers.max_length)[0]) for source in read):
        return DataError(
            "The weights of the sources are so small that no row is taken. Raise data.weight.", field="data.weight"
        )
    if read:
        return DataError(
            f"No conversation has an answer within {numbers.max_length} tokens. Raise data.max_length.",
            field="data.max_length",
        )
    reasons = [reason for source in sources for reason in source.table.facts.reasons]
    first = f" Row {reasons[0].row}: {reasons[0].reason}." if reasons else ""
    return DataError(f"Nothing in the data can be trained on.{first} Correct the file and try again.")
