"""How long a process waits for the others: what passes between its last own gradient and the end of the backward.

The processes exchange gradients while they are computed; whoever is done first waits there for the slowest. On a GPU
the same is measured on the card's own clock, for the processor has long gone on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from studio.engine import ranks


class Waits:
    """Adds the waiting up, batch by batch. Where a process is alone it measures nothing."""

    def __init__(self) -> None:
        self._mark: Any = None
        self._seconds = 0.0
        self._pairs: list[tuple[Any, Any]] = []
        self._known = False

    def watch(self, model: Any) -> None:
        """Learn of every gradient of `model`, whose weights must be those the optimizer has."""
        if ranks.world() == 1 or self._known:
            return
        self._known = True
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._gradient)

    def _gradient(self, weight: torch.Tensor) -> None:
        self._mark = _now(weight.is_cuda)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Inside is the forward and backward of a batch."""
        self._mark = None
        yield
        if isinstance(self._mark, float):
            self._seconds += time.monotonic() - self._mark
        elif self._mark is not None:
            self._pairs.append((self._mark, _now(True)))

    def read(self) -> float:
        """Seconds since the last reading."""
        pairs, self._pairs = self._pairs, []
        if pairs:
            pairs[-1][1].synchronize()
        seconds, self._seconds = self._seconds, 0.0
        return seconds + sum(float(first.elapsed_time(last)) for first, last in pairs) / 1000


def _now(on_gpu: bool) -> Any:
    if not on_gpu:
        return time.monotonic()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
