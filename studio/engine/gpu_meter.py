"""What the GPU of this process is doing: how busy it is, what it draws, and what of its arithmetic is put to use.

The driver's readings cover a moment, so a thread takes them while the steps run and the mean is told. PyTorch asks the
driver (through the package nvidia-ml-py) and knows which of its cards is ours; what it cannot say stays None.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch

from studio.activations import Load
from studio.config import RunConfig
from studio.devices import card_of
from studio.engine.model import Loaded
from studio.model_shape import ModelShape
from studio.records.counts import Prepared
from studio.speed import useful_flops

PERIOD_S = 0.5


@dataclass(frozen=True)
class Usage:
    """`utilization`: share of the time in which the GPU computed, 0 to 1; `watts`: what it drew."""

    utilization: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class Arithmetic:
    """Operations that training on one token needs, and those the cards could do in a second, all together."""

    per_token: float
    peak: float


class Meter:
    """Means of a GPU's readings between two questions. `look` takes one; None where there is no GPU."""

    def __init__(self, look: Callable[[], Usage] | None = None, arithmetic: Arithmetic | None = None) -> None:
        self.look, self.arithmetic = look, arithmetic
        self._seen: list[Usage] = []
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, in a thread of its own; it ends with the process or with `stop`."""
        if self.look is not None:
            self._thread = threading.Thread(target=self._run, name="gpu-meter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self.take() and not self._ended.wait(PERIOD_S):
            pass

    def take(self) -> bool:
        """Look once; False where that is of no use."""
        assert self.look is not None
        usage = self.look()
        with self._lock:
            self._seen.append(usage)
        return usage != Usage()

    def read(self) -> Usage:
        """The means since the last question; of the last reading if there was none since."""
        with self._lock:
            seen, self._seen = self._seen, self._seen[-1:]
        fresh = seen[1:] or seen
        return Usage(
            _mean([usage.utilization for usage in fresh if usage.utilization is not None]),
            _mean([usage.watts for usage in fresh if usage.watts is not None]),
        )

    def mfu(self, tokens_per_second: float | None) -> float | None:
        """Share of the peak arithmetic that so many tokens a second put to use; None where the peak is not known."""
        if self.arithmetic is None or tokens_per_second is None:
            return None
        return tokens_per_second * self.arithmetic.per_token / self.arithmetic.peak


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def look_at_gpu() -> Usage:
    """One reading of the current CUDA device."""
    busy = watts = None
    with contextlib.suppress(Exception):  # no nvidia-ml-py, a slice of a card, a driver under Windows: not told
        busy = torch.cuda.utilization() / 100
    with contextlib.suppress(Exception):
        watts = torch.cuda.power_draw() / 1000
    return Usage(busy, watts)


def meter_of(config: RunConfig, loaded: Loaded, examples: Prepared, processes: int = 1) -> Meter:
    """The meter of a training; without a GPU it knows nothing."""
    if loaded.precision.device != "cuda":
        return Meter()
    return Meter(look_at_gpu, arithmetic_of(config, loaded, examples, processes))


def arithmetic_of(config: RunConfig, loaded: Loaded, examples: Prepared, processes: int = 1) -> Arithmetic | None:
    """What training `examples` needs and the cards can do; None for a card or a model that is not known."""
    if loaded.precision.dtype is torch.float32:  # the list of cards has their 16-bit throughput
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    card = card_of(properties.name, properties.total_memory)
    try:
        shape = ModelShape.from_config(loaded.model.config.to_dict())
    except ValueError:
        return None
    if card is None:
        return None
    lengths = examples.examples.length
    seen = float((lengths.astype(float) ** 2).sum() / lengths.sum())  # the row length as a token sees it
    load = Load(config, shape, "cuda", 2, max(round(seen), 1), masked=True)
    return Arithmetic(useful_flops(load) / load.tokens, card.tflops * 1e12 * processes)
