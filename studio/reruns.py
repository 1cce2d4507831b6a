"""A run's configuration used again: exactly as it was, or with some fields changed; and whether its data still is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.compare import fingerprints
from studio.config import RunConfig
from studio.records.errors import DataError
from studio.records.sources import fingerprint
from studio.records.store import DatasetStore
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build, merge
from studio.workspace import Workspace


def frozen(run: RunDir) -> RunConfig:
    """The configuration a training run worked with, to the last field. Raises ConfigError for any other kind."""
    config = run.config()
    if not isinstance(config, RunConfig):
        sentence = f"run {run.id} is no training; start another one like it in the Export tab or with `{config.kind}`"
        raise ConfigError([FieldError("run", sentence, config.kind)])
    return config


def cloned(run: RunDir, changes: Mapping[str, Any]) -> RunConfig:
    """The same with fields changed, in any accepted spelling. Raises ConfigError."""
    return build(RunConfig, merge(RunConfig, frozen(run).model_dump(mode="json"), changes))


def changed_data(workspace: Workspace, run: RunDir) -> list[str]:
    """A sentence for each dataset that is no longer what the run was trained on."""
    store, found = DatasetStore(workspace.datasets), []
    for name, sha in fingerprints(run):
        try:
            now = fingerprint(store.resolve(name))
        except DataError:  # gone: whoever starts the run is told so by the preflight
            continue
        if now != sha:
            found.append(f"The dataset {name} has changed since run {run.id}; the new run trains on its new rows.")
    return found
