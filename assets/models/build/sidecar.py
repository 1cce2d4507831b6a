"""A second process that adds gradients from another core's idle time, without slowing its owner.

It copies the published weights, computes the gradient of its own rows and leaves it in shared memory;
the trainer merges it, weighted by the number of targets, whenever one is ready. The process runs with
the idle scheduling class, so any other work on that core goes first, and the trainer never waits for it.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

READY, TARGETS, PUBLISHED, WEIGHTS, USED = range(5)
#: A gradient from weights older than this many steps is thrown away.
OLDEST = 3


class Sidecar:
    """The trainer's end: shared weights, gradients and a small control vector."""

    def __init__(self, model: nn.Module, counts: Tensor) -> None:
        self.parameters = list(model.parameters())
        self.weights = [p.detach().clone().share_memory_() for p in self.parameters]
        self.gradients = [torch.zeros_like(w).share_memory_() for w in self.weights]
        self.control = torch.zeros(5, dtype=torch.int64).share_memory_()
        self.counts = counts
        self.lock: Any = mp.get_context("spawn").Lock()
        self.merged = 0

    def start(self, tokenizer_folder: Path, batch: int, seed: int, core: int) -> None:
        """Start the worker; it ends with this process."""
        shared = (self.weights, self.gradients, self.control, self.counts, self.lock)
        arguments = (shared, tokenizer_folder, batch, seed, core)
        mp.get_context("spawn").Process(target=_work, args=arguments, daemon=True).start()

    def merge(self, own_targets: int) -> None:
        """Mix a finished worker gradient into the model's gradients."""
        if not self.control[READY] or not self.lock.acquire(block=False):
            return
        try:
            self.control[READY] = 0
            if self.control[PUBLISHED] - self.control[USED] > OLDEST:
                return
            share = float(self.control[TARGETS]) / float(self.control[TARGETS] + own_targets)
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                if parameter.grad is not None:
                    parameter.grad.lerp_(gradient, share)
            self.merged += 1
        finally:
            self.lock.release()

    def publish(self) -> None:
        """Hand out the weights after a step, unless the worker is just reading or writing."""
        self.control[PUBLISHED] += 1
        if not self.lock.acquire(block=False):
            return
        try:
            for shared, parameter in zip(self.weights, self.parameters, strict=True):
                shared.copy_(parameter.detach())
            self.control[WEIGHTS] = self.control[PUBLISHED]
        finally:
            self.lock.release()


def _work(shared: Any, tokenizer_folder: Path, batch: int, seed: int, core: int) -> None:
    """The worker: weights in, gradient out, until the trainer is gone."""
    # Imported here because the trainer imports this module.
    from assets.models.build.pretrain import Progress, Stream, batch_loss, new_model
    from assets.models.build.vocabulary import load_or_train

    parent = os.getppid()
    _stand_back(core)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    weights, gradients, control, counts, lock = shared
    tokenizer = load_or_train(tokenizer_folder)
    stream = Stream(tokenizer, batch, seed, counts)
    model, progress = new_model(tokenizer, seed), Progress()
    parameters = list(model.parameters())
    while os.getppid() == parent:
        with lock, torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
            used = int(control[WEIGHTS])
        rows = stream.next(progress)
        model.zero_grad()
        batch_loss(model, rows).backward()
        while control[READY] and os.getppid() == parent:
            time.sleep(0.01)
        with lock:
            for gradient, parameter in zip(gradients, parameters, strict=True):
                gradient.copy_(parameter.grad)
            control[USED] = used
            control[TARGETS] = int(rows.loss.sum())
            control[READY] = 1


def _stand_back(core: int) -> None:
    """Move to `core` with the lowest priority, also where the kernel shares time per session."""
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    group = Path("/proc/self/autogroup")
    if group.exists():
        os.setsid()
        group.write_text("19", encoding="ascii")
