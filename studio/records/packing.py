"""Packing: short examples joined into rows of at most `capacity` tokens. No example is lost or cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studio.records.order import Indices


@dataclass(frozen=True)
class Packs:
    """Pack number p holds the examples `members[ends[p] : ends[p + 1]]`, in ascending order."""

    members: Indices
    ends: Indices

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> Indices:
        return self.members[self.ends[number] : self.ends[number + 1]]

    def sums(self, lengths: Indices) -> Indices:
        """Tokens of each pack, given those of each example."""
        return np.add.reduceat(lengths[self.members], self.ends[:-1]) if len(self) else np.zeros(0, dtype=np.int64)


def one_each(count: int) -> Packs:
    """Every example alone in its row: nothing is packed."""
    return Packs(np.arange(count, dtype=np.int64), np.arange(count + 1, dtype=np.int64))


def pack(lengths: Sequence[int] | Indices, capacity: int) -> Packs:
    """Best fit, longest example first. Every length must be at most `capacity`; linear in the number of examples."""
    sizes = np.asarray(lengths, dtype=np.int64)
    place = np.empty(len(sizes), dtype=np.int64)
    waiting: defaultdict[int, list[int]] = defaultdict(list)  # room left -> packs with just that room
    rooms = 0  # bit r is set while a pack has room for exactly r more tokens
    count = 0
    for row in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[row])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1  # the smallest room that is large enough
            number = waiting[room].pop()
            rooms ^= 0 if waiting[room] else 1 << room
        else:
            room, number = capacity, count
            count += 1
        place[row] = number
        if room > size:
            waiting[room - size].append(number)
            rooms |= 1 << (room - size)
    counts = np.bincount(place, minlength=count)
    return Packs(np.argsort(place, kind="stable").astype(np.int64), np.concatenate([[0], np.cumsum(counts)]))
