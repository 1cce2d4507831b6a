"""The workspace: the folder that holds runs, datasets and exports; makes and finds runs."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Literal, TypeVar, cast

from filelock import FileLock

from studio.chains import adapter_settings, lineage, lora_of
from studio.config import AnyConfig, OutputConfig, RunConfig
from studio.deepspeed_settings import FIELD, read_own
from studio.rundir import RunDir, write_atomic
from studio.schema import ConfigError, FieldError, dump_yaml

ConfigT = TypeVar("ConfigT", bound=AnyConfig)


class WorkspaceError(OSError):
    """The workspace cannot be used; the message says why and what to do."""


class RunNotFound(LookupError):
    """No run of that id in the workspace."""


def slug(text: str, fallback: str = "run") -> str:
    """A safe file name from any text: letters of every script, digits, dot and dash; at most 60 characters."""
    kept = re.sub(r"[^\w.-]+", "-", text, flags=re.UNICODE).strip("-._")
    while len(kept.encode("utf-8")) > 120:  # file systems count bytes
        kept = kept[:-1]
    return kept[:60].rstrip("-._") or fallback


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 … where nothing lies, not even a link that leads nowhere."""
    number, found = 1, path
    while found.exists() or found.is_symlink():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _absolute(reference: str) -> str:
    """A path that exists, made absolute; any other reference (a hub id, a dataset's name) as it is."""
    try:
        path = Path(reference).expanduser()
        return str(path.absolute()) if path.exists() else reference
    except (OSError, ValueError, RuntimeError):
        return reference


def _own_settings(config: AnyConfig) -> str | None:
    """The file of DeepSpeed's settings a configuration names, as JSON. Raises ConfigError, field of that name."""
    if not isinstance(config, RunConfig) or config.parallel.deepspeed_config is None:
        return None
    try:
        return json.dumps(read_own(Path(config.parallel.deepspeed_config)), indent=2, ensure_ascii=False)
    except ValueError as error:
        raise ConfigError([FieldError(FIELD, str(error))]) from None


def _short(base: str) -> str:
    """A base model as part of a name; of an earlier run its name without the time."""
    run = lineage(base)
    return (run.partition("_")[2] or run or Path(base).name).lower()


class Workspace:
    """The folder that holds runs, datasets and exports.

    Raises:
        WorkspaceError: the folder cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.runs = self.path / "runs"
        self.datasets = self.path / "datasets"
        self.exports = self.path / "exports"
        self.tokens = self.path / "cache" / "tokens"
        try:
            for folder in (self.runs, self.datasets, self.exports):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise WorkspaceError(
                f"workspace: {self.path} cannot be written ({error.strerror or error}); "
                "choose another folder with --workspace"
            ) from None

    def lock(self) -> FileLock:
        """Serialises starts: two studios on one workspace never start the same run twice."""
        return FileLock(self.path / ".lock", timeout=20)

    def create_run(self, config: AnyConfig, now: float | None = None, queue: str = "") -> RunDir:
        """A new run directory with its complete config.yaml, and a copy of its own settings of DeepSpeed.

        Raises WorkspaceError when it cannot be written, ConfigError when those settings cannot be read.

        `queue`: its queue.json, which is there before the run can be seen: a run is never waiting without a place.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        config = self.freeze(config)
        own = _own_settings(config)
        name = slug(config.name)
        for attempt in range(1, 1000):
            path = self.runs / (f"{stamp}_{name}" + (f"-{attempt}" if attempt > 1 else ""))
            try:
                path.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise WorkspaceError(
                    f"workspace: no run directory can be made in {self.runs} ({error.strerror})"
                ) from None
            return self._write_config(RunDir(path), config, queue, own)
        raise WorkspaceError(f"workspace: too many runs named {name} at once")

    def freeze(self, config: ConfigT) -> ConfigT:
        """The configuration as it is written: named, with absolute paths, so that it runs from anywhere.

        An earlier run it starts from becomes the folder that run left; an adapter's rank and layers replace the form's.
        """
        if isinstance(config, OutputConfig):
            paths = {name: _absolute(text) for name in config.PATHS if (text := getattr(config, name))}
            out = str(Path(config.out).expanduser().absolute()) if config.out else ""
            named = {"name": config.name or config.default_name, "out": out}
            return cast(ConfigT, config.model_copy(update=paths | named))
        base, data = self._left(config.model.model_name_or_path, "model"), config.data
        adapter = self._left(config.model.adapter, "adapter") if config.model.adapter else None
        own = config.parallel.deepspeed_config
        settings = adapter_settings(adapter) if adapter else None
        sources = [source.model_copy(update={"dataset": self._found(source.dataset)}) for source in data.sources]
        validation = self._found(data.validation_dataset) if data.validation_dataset else None
        found = {"dataset": self._found(data.dataset), "sources": sources, "validation_dataset": validation}
        return config.model_copy(
            update={
                "name": config.name or "_".join((_short(base), config.method, Path(data.dataset).stem)),
                "model": config.model.model_copy(update={"model_name_or_path": base, "adapter": adapter}),
                "lora": lora_of(settings, config.lora) if settings else config.lora,
                "data": data.model_copy(update=found),
                "parallel": config.parallel.model_copy(update={"deepspeed_config": _absolute(own) if own else None}),
            }
        )

    def _left(self, reference: str, what: Literal["adapter", "model"]) -> str:
        """What a run (its id or directory) left behind; any other folder as its absolute path, a hub id as it is."""
        path = Path(_absolute(reference))
        if path.is_absolute():
            return str(RunDir(path).result(what)) if (path / "config.yaml").is_file() else str(path)
        try:
            return str(self.run(reference).result(what))
        except RunNotFound:
            return reference

    def _found(self, dataset: str) -> str:
        """A dataset of this workspace by its name, a file or folder by its absolute path."""
        return dataset if (self.datasets / dataset).is_dir() else _absolute(dataset)

    @staticmethod
    def _write_config(run: RunDir, config: AnyConfig, queue: str, own: str | None) -> RunDir:
        try:
            if queue:
                write_atomic(run.queue_file, queue)
            if own is not None and isinstance(config, RunConfig):
                write_atomic(run.deepspeed_file, own)
                parallel = config.parallel.model_copy(update={"deepspeed_config": str(run.deepspeed_file)})
                config = config.model_copy(update={"parallel": parallel})
            write_atomic(run.config_file, dump_yaml(config, full=True))
        except OSError as error:
            run.queue_file.unlink(missing_ok=True)
            run.deepspeed_file.unlink(missing_ok=True)
            run.path.rmdir()
            raise WorkspaceError(
                f"workspace: the run's configuration cannot be written ({error.strerror}); free some disk space"
            ) from None
        return run

    def list_runs(self) -> list[RunDir]:
        """Every run, newest first."""
        found = [RunDir(p) for p in self.runs.iterdir() if (p / "config.yaml").is_file()]
        return sorted(found, key=lambda run: run.id, reverse=True)

    def run(self, run_id: str) -> RunDir:
        """The run of that id (or the newest whose id ends with it). Raises RunNotFound."""
        if run_id in {p.name for p in self.runs.iterdir()}:
            return RunDir(self.runs / run_id)
        for run in self.list_runs():
            if run_id and (run.id.partition("_")[2] == run_id or run_id == "last"):
                return run
        raise RunNotFound(f"there is no run {run_id!r} in {self.path}; `runs list` shows them all")
