"""The order in which rows are seen: the same for the same seed, on every machine, with or without torch.

The trainer's sampler and the preview in the browser both ask here, so the first batches shown are the first trained.
"""

from __future__ import annotations

import numpy as np

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """The numbers 0 … count-1 in the order of epoch number `epoch` (from 0)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def training_order(sizes: Indices, seed: int, epoch: int, per_update: int) -> Indices:
    """The order in which rows of these sizes are trained on: that of the epoch, the longest rows first at the start.

    A batch is as wide as its longest row. With the longest rows at the head of the first two updates (of `per_update`
    rows each), memory runs out at once if it runs out at all: in the second the optimizer's numbers are there too.
    """
    order = epoch_order(len(sizes), seed, epoch)
    if epoch:
        return order
    for rank, place in enumerate((0, per_update)):
        if place < len(order):
            longest = rank + int(np.argmax(sizes[order[rank:]]))
            if sizes[order[longest]] > sizes[order[place]]:
                order[[place, longest]] = order[[longest, place]]
    return order


def draw(count: int, wanted: int, seed: int, salt: int = 0) -> Indices:
    """`wanted` of the numbers 0 … count-1, none twice, ascending; `salt` keeps several draws of one seed apart."""
    chosen = np.random.default_rng([seed, 1_000_003, salt]).permutation(count)[:wanted]
    return np.sort(chosen)
