"""What can be done to whole datasets: split, merge, deduplicate, shuffle, sample, filter, copy, write to a file.

The functions over rows are streams: they hold at most a number per row. The functions over a store save a new dataset
and remember in its `source` how it was made; the dataset they start from stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from studio.records.errors import DataError, shown
from studio.records.rowfile import Progress, Row, texts_of
from studio.records.store import DatasetInfo, DatasetStore, Kind

SHARE = 0.7
SEED = 42
_NO_CONTENT = frozenset({"origin"})


@dataclass(frozen=True)
class Making:
    """How a new dataset is made: its title (empty: from the old one's), the seed of what is drawn, who hears of it."""

    title: str = ""
    seed: int = SEED
    progress: Progress | None = None


# ---- over rows -------------------------------------------------------------------------------------------------------


def picks(total: int, wanted: int, seed: int) -> Iterator[bool]:
    """One flag for each of `total` rows, exactly `wanted` of them True; every choice is equally likely."""
    rng, left = random.Random(seed), wanted
    for remaining in range(total, 0, -1):
        picked = rng.random() * remaining < left
        left -= picked
        yield picked


def picked(rows: Iterable[Row], flags: Iterable[bool], *, value: bool = True) -> Iterator[Row]:
    """The rows whose flag is `value`."""
    return (row for row, flag in zip(rows, flags, strict=False) if flag is value)


def without_duplicates(rows: Iterable[Row], *, loose: bool = False) -> Iterator[Row]:
    """The first of all rows with the same content; `loose` takes no notice of case and white space."""
    seen: set[bytes] = set()
    for row in rows:
        digest = _digest(row, loose=loose)
        if digest not in seen:
            seen.add(digest)
            yield row


def within_length(rows: Iterable[Row], shortest: int = 1, longest: int | None = None) -> Iterator[Row]:
    """The rows whose texts have at least `shortest` and at most `longest` characters together, white space aside."""
    for row in rows:
        length = sum(len("".join(text.split())) for text in texts_of(row))
        if length >= shortest and (longest is None or length <= longest):
            yield row


def shuffled(total: int, seed: int) -> Sequence[int]:
    """The numbers of `total` rows in an order drawn by the seed."""
    order = array("I", range(total))
    random.Random(seed).shuffle(order)
    return order


def _digest(row: Mapping[str, Any], *, loose: bool) -> bytes:
    content = {key: value for key, value in row.items() if key not in _NO_CONTENT}
    if loose:
        text = "".join(_loose(content).casefold().split())
    else:
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _loose(value: Any) -> str:
    """A value as text in which white space inside strings is no longer escaped, so that it can be left out."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_loose(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_loose, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else json.dumps(value)


# ---- over datasets ---------------------------------------------------------------------------------------------------


def save_as(store: DatasetStore, name: str, making: Making = Making()) -> DatasetInfo:
    """A copy under another name; it stays what it was. Raises DataError."""
    info = store.info(name)
    copy = info.model_copy(update={"source": info.source or f"copy of {name}"})
    title = making.title or f"{info.title} copy"
    return store.save_stream(title, store.rows(name), store.heldout(name), copy, making.progress)


def split(
    store: DatasetStore, name: str, share: float = SHARE, making: Making = Making()
) -> tuple[DatasetInfo, DatasetInfo]:
    """Two datasets: `share` of the rows, drawn by the seed, and the rest. Both keep the held-out questions.

    Raises DataError, also when one part would have no row.
    """
    info = store.info(name)
    first = round(info.rows * share)
    if not 0 < share < 1:
        raise DataError("The share of the first part must lie between 0 and 1, for example 0.7 or 7:3.", field="share")
    if not 0 < first < info.rows:
        raise DataError(
            f"The dataset {name} has {info.rows} rows: one part would have none. Choose another share.", field="share"
        )
    percent = round(share * 100)

    def part(percent: int, *, value: bool) -> DatasetInfo:
        rows = picked(store.rows(name), picks(info.rows, first, making.seed), value=value)
        title = f"{making.title or info.title} {percent}"
        source = f"{percent} % of {name}, seed {making.seed}"
        return _derive(store, [name], rows, (title, source), replace(making, title=""), percent / 100)

    one = part(percent, value=True)
    try:
        return one, part(100 - percent, value=False)
    except BaseException:
        store.delete(one.name)
        raise


def merge(store: DatasetStore, names: Sequence[str], making: Making = Making()) -> DatasetInfo:
    """All rows of several datasets, one after the other, with all their held-out questions. Raises DataError."""
    if len(names) < 2:
        raise DataError("Name at least two datasets to merge.", field="names")
    titles = [store.info(name).title for name in names]
    rows = chain.from_iterable(store.rows(name) for name in names)
    return _derive(store, names, rows, (" + ".join(titles), f"{', '.join(names)} merged"), making)


def deduplicate(store: DatasetStore, name: str, making: Making = Making(), *, loose: bool = False) -> DatasetInfo:
    """Every row once; `loose` takes no notice of case and white space. Raises DataError."""
    rows = without_duplicates(store.rows(name), loose=loose)
    words = f"{name} without duplicates" + (", ignoring case and white space" if loose else "")
    return _derive(store, [name], rows, (f"{store.info(name).title} distinct", words), making)


def shuffle(store: DatasetStore, name: str, making: Making = Making()) -> DatasetInfo:
    """The same rows in an order drawn by the seed. Raises DataError."""
    info = store.info(name)
    rows = store.rows(name, shuffled(info.rows, making.seed))
    words = (f"{info.title} shuffled", f"{name} shuffled, seed {making.seed}")
    return _derive(store, [name], rows, words, making)


def sample(store: DatasetStore, name: str, amount: float, making: Making = Making()) -> DatasetInfo:
    """`amount` rows (below 1: that share of them) drawn by the seed, in their old order. Raises DataError."""
    info = store.info(name)
    if not (0 < amount < 1 or (amount >= 1 and amount == amount // 1)):
        raise DataError("Give a number of rows, or a share between 0 and 1.", field="rows")
    wanted = round(amount * info.rows) if amount < 1 else int(amount)
    if not 0 < wanted <= info.rows:
        raise DataError(f"The dataset {name} has {info.rows} rows; {wanted} cannot be drawn from it.", field="rows")
    rows = picked(store.rows(name), picks(info.rows, wanted, making.seed))
    words = (f"{info.title} sample", f"{wanted} rows of {name}, seed {making.seed}")
    return _derive(store, [name], rows, words, making, wanted / info.rows)


def keep_lengths(
    store: DatasetStore, name: str, making: Making = Making(), *, shortest: int = 1, longest: int | None = None
) -> DatasetInfo:
    """The rows whose texts together have so many characters, white space aside. Raises DataError."""
    rows = within_length(store.rows(name), shortest, longest)
    words = f"{name}, rows of {shortest} to {longest or 'any number of'} characters"
    return _derive(store, [name], rows, (f"{store.info(name).title} filtered", words), making)


def _derive(
    store: DatasetStore,
    names: Sequence[str],
    rows: Iterable[Row],
    words: tuple[str, str],
    making: Making,
    share: float = 1.0,
) -> DatasetInfo:
    """Saves rows that came from datasets under a title, with a source; what all of them share is kept.

    `share` of their rows are taken: so much of what the base model is to answer itself belongs to them.
    """
    origins = [store.info(name) for name in names]
    title, source = words
    heldout = _distinct(chain.from_iterable(store.heldout(name) for name in names))
    info = DatasetInfo(
        kind=_kind(origins),
        source=source,
        format=_shared(origins, lambda info: info.format) or "",
        languages=tuple(dict.fromkeys(language for info in origins for language in info.languages)),
        identity=_only_identity(origins),
        self_replay=round(share * sum(info.self_replay for info in origins)),
    )
    try:
        first = next(stream := iter(rows))
    except StopIteration:
        raise DataError(f"No row is left of {', '.join(names)}. Change what is left out.") from None
    return store.save_stream(making.title or title, chain([first], stream), heldout, info, making.progress)


def _kind(infos: Sequence[DatasetInfo]) -> Kind:
    """What the rows are, if that is known and the same for all; else only that they were derived."""
    kind: Kind = _shared(infos, lambda info: info.kind) or "derived"
    return kind if kind in ("identity", "text", "preference") else "derived"


def _shared(infos: Sequence[DatasetInfo], read: Callable[[DatasetInfo], Any]) -> Any:
    values = {read(info) for info in infos}
    return values.pop() if len(values) == 1 else None


def _only_identity(infos: Sequence[DatasetInfo]) -> Any:
    """The identity that is taught, when it is one: two in one dataset would contradict each other."""
    found = [info.identity for info in infos if info.identity is not None]
    return found[0] if found and all(identity == found[0] for identity in found) else None


def _distinct(rows: Iterable[Row]) -> list[Row]:
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


def parse_share(text: str) -> float:
    """The first part's share from `7:3`, `0.7` or `70%`. Raises DataError."""
    first, colon, second = text.replace("：", ":").partition(":")
    try:
        share = float(first) / (float(first) + float(second)) if colon else float(first.rstrip("%"))
    except (ValueError, ZeroDivisionError):
        share = 0.0
    share = share / 100 if text.strip().endswith("%") else share
    if not 0 < share < 1:
        raise DataError(f"'{shown(text, 20)}' is no share. Write it as 7:3, 0.7 or 70%.", field="share")
    return share
