"""The order in which rows are seen: the same for the same seed, on every machine, with or without torch.

The trainer's sampler and the preview in the browser both ask here, so the first batches shown are the first trained.
"""

from __future__ import annotations

import numpy as np

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """The numbers 0 … count-1 in the order of epoch number `epoch` (from 0)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def draw(count: int, wanted: int, seed: int, salt: int = 0) -> Indices:
    """`wanted` of the numbers 0 … count-1, none twice, ascending; `salt` keeps several draws of one seed apart."""
    chosen = np.random.default_rng([seed, 1_000_003, salt]).permutation(count)[:wanted]
    return np.sort(chosen)
