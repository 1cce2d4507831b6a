"""TensorBoard and its like during a training: transformers' own callbacks, which may fail but not end the run."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from studio.config import RunConfig
from studio.engine.journal import Journal
from studio.engine.shortage import is_memory
from studio.trackers import FIELD, TRACKERS

PROJECT = "crucible"


def trackers(config: RunConfig, journal: Journal) -> list[TrainerCallback]:
    """A callback for each tracker of the configuration. What they write on this machine lies in the run's directory."""
    names = config.train.report_to
    if not names:
        return []
    folder = journal.run.path / "trackers"
    folder.mkdir(exist_ok=True)
    _settle(str(folder))
    return [Guarded(TRACKERS[name].title, partial(_made, name), journal) for name in names]


def _made(name: str) -> TrainerCallback:
    (kind,) = get_reporting_integration_callbacks([name])  # type: ignore[no-untyped-call]
    made: TrainerCallback = kind()
    return made


def _settle(folder: str) -> None:
    """Names and places, where the environment does not say otherwise."""
    usual = {
        "TENSORBOARD_LOGGING_DIR": f"{folder}/tensorboard",
        "WANDB_PROJECT": PROJECT,
        "WANDB_DIR": folder,
        "WANDB_SILENT": "true",
        "SWANLAB_PROJECT": PROJECT,
        "SWANLAB_SAVE_DIR": f"{folder}/swanlab",
        "SWANLAB_LOG_DIR": f"{folder}/swanlab",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_FLATTEN_PARAMS": "TRUE",
        "TRACKIO_DIR": f"{folder}/trackio",
    }
    for name, value in usual.items():
        os.environ.setdefault(name, value)


class Guarded(TrainerCallback):
    """Hands every event on to a callback; one that fails is told of once and left out from then on.

    Random numbers it draws are given back: the training does not feel it.
    """

    def __init__(self, title: str, make: Callable[[], TrainerCallback], journal: Journal) -> None:
        self.title, self.journal = title, journal
        self.inner: TrainerCallback | None = None
        self._try(lambda: setattr(self, "inner", make()))

    def _try(self, act: Callable[[], Any]) -> None:
        states = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                act()
        except Exception as error:
            if is_memory(error):
                raise
            self.inner = None
            why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
            self.journal.warn(f"{self.title} was switched off, the training goes on without it: {why}", FIELD)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _handing_on(event: str) -> Callable[..., None]:
    def hand_on(self: Guarded, *args: Any, **kwargs: Any) -> None:
        inner = self.inner
        if inner is not None and getattr(type(inner), event) is not getattr(TrainerCallback, event):
            self._try(lambda: getattr(inner, event)(*args, **kwargs))

    return hand_on


for _event in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(Guarded, _event, _handing_on(_event))
