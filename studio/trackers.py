"""Services beside the Monitor tab that can follow a training: what each needs, and whether it is there.

The reporting itself is transformers' (`report_to`). Keys are read from the environment, by the services' own packages;
no field, file or command line of ours holds one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studio.availability import installed
from studio.sections import TrackerName

FIELD = "train.report_to"


@dataclass(frozen=True)
class Tracker:
    """One of them: its `package`, which is also what is imported, and the variable that holds its `key`.

    `offline`: (variable, value) with which it needs none.
    """

    package: str
    title: str
    key: str = ""
    offline: tuple[str, str] = ("", "")


TRACKERS: dict[TrackerName, Tracker] = {
    "tensorboard": Tracker("tensorboard", "TensorBoard"),
    "wandb": Tracker("wandb", "Weights & Biases", "WANDB_API_KEY", ("WANDB_MODE", "offline")),
    "swanlab": Tracker("swanlab", "SwanLab", "SWANLAB_API_KEY", ("SWANLAB_MODE", "local")),
    "mlflow": Tracker("mlflow", "MLflow"),
    "trackio": Tracker("trackio", "Trackio"),
}


@dataclass(frozen=True)
class Lacking:
    """Why a tracker cannot be used, and what helps."""

    message: str
    hint: str


def lacking(names: Sequence[TrackerName], environment: Mapping[str, str] = os.environ) -> list[Lacking]:
    """What the trackers of these names need and do not have."""
    return [found for name in names if (found := _lacking(TRACKERS[name], environment))]


def _lacking(tracker: Tracker, environment: Mapping[str, str]) -> Lacking | None:
    if not installed(tracker.package):
        message = f"{tracker.title} needs the package {tracker.package}, which is not installed"
        return Lacking(message, f"install it with pip install {tracker.package}, or take it out of the list")
    variable, value = tracker.offline
    if not tracker.key or environment.get(tracker.key) or environment.get(variable) in (value, "offline", "disabled"):
        return None
    message = f"{tracker.title} needs its key in the environment variable {tracker.key}"
    return Lacking(message, f"start the studio with it, or with {variable}={value} to keep everything on this machine")
