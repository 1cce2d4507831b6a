"""Everything of a workspace that can answer or be given away: base models, adapters of runs and of others, checkpoints,
merged and wholly trained models. The lists of the Export and Chat tabs and the references of the command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from studio.best_step import read_best
from studio.chains import adapter_settings
from studio.checkpoints import complete_checkpoints, step_of
from studio.config import ConvertConfig, ExportConfig, MergeConfig, RunConfig
from studio.events import RunState
from studio.labels import read_labels
from studio.model_files import faults
from studio.model_library import list_models, results
from studio.presets import MODEL_FIELD, ModelError, resolve_model
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError
from studio.workspace import RunNotFound, Workspace

What = Literal["base", "adapter", "model"]
"""base: a model as it came. adapter: weights beside a base. model: whole weights made here (trained or merged)."""
SEPARATOR = "#"
LATEST = "last"
_MAKERS = (MergeConfig, ConvertConfig, ExportConfig)


@dataclass(frozen=True)
class ModelChoice:
    """One thing to talk to or to export.

    `key` names it for `find_choice`: a model's reference, a run's id, `RUN#checkpoint-N`, or a folder. `base` is the
    model that is loaded, `adapter` the folder put on it. `step` is that of a checkpoint, None for a final result;
    `best` marks the one of its run to choose by default. `run` is the training it came from.
    """

    key: str
    what: What
    name: str
    base: str
    adapter: Path | None = None
    step: int | None = None
    best: bool = False
    run: RunDir | None = None

    def trained(self) -> RunConfig | None:
        """The configuration it was trained with, with its system prompt, template and precision; None if unknown."""
        return training_of(self.run) if self.run else None


def list_choices(workspace: Workspace) -> list[ModelChoice]:
    """All of them: newest runs first (each with its checkpoints), then imported adapters, then models by name."""
    found: list[ModelChoice] = []
    for run in workspace.list_runs():
        found += choices_of(run)
    found += _imported(workspace)
    models = [model for model in list_models(workspace) if model.complete or not any(faults(model.path, seeing=True))]
    whole = {choice.base for choice in found if choice.what == "model"}
    for model in models:
        if model.value not in whole:
            made = model.where == "workspace"
            found.append(ModelChoice(model.value, "model" if made else "base", model.id, model.value))
    return found


def choices_of(run: RunDir) -> list[ModelChoice]:
    """What one run left: its final result, then its complete checkpoints, newest first; nothing for other kinds."""
    config = training_of(run)
    if config is None:
        return []
    name = read_labels(run).title or config.name or run.id
    best = read_best(run)
    chosen = best.path if best else ""
    places: list[tuple[str, Path, int | None]] = [(run.id, run.model if config.method == "full" else run.adapter, None)]
    places += [
        (f"{run.id}{SEPARATOR}{path.name}", path, step_of(path)) for path in complete_checkpoints(run.checkpoints)
    ]
    found = []
    for key, folder, step in places:
        is_best = chosen == ("/".join(folder.relative_to(run.path).parts)) if chosen else step is None
        if (folder / "adapter_config.json").is_file():
            base = config.model.model_name_or_path
            found.append(ModelChoice(key, "adapter", name, base, folder, step, is_best, run))
        elif (folder / "config.json").is_file():
            found.append(ModelChoice(key, "model", name, str(folder), None, step, is_best, run))
    return found


def best_of(run: RunDir) -> ModelChoice | None:
    """The one of a run to choose by default: of its best step, else its result, else its latest checkpoint."""
    found = choices_of(run)
    return next((choice for choice in found if choice.best), next(iter(found), None))


def find_choice(workspace: Workspace, reference: str) -> ModelChoice:
    """What a reference means: RUN (its best), RUN#checkpoint-N, an adapter's folder, a model.

    Raises:
        ConfigError: a run that left nothing (yet), no such checkpoint, an adapter that does not say its base, a GGUF.
        ModelError: no such model.
    """
    run_part, _, place = reference.partition(SEPARATOR)
    run = _latest(workspace) if run_part == LATEST else find_run(workspace, run_part)
    if run is not None:
        return _of_run(run, place)
    folder = Path(reference).expanduser()
    settings = adapter_settings(str(folder))
    if settings is not None:
        return _of_adapter(folder.absolute(), settings)
    _check_not_gguf(folder)
    try:
        ref = resolve_model(reference, seeing=True)
    except ModelError as error:  # nobody filled in the field of a form here
        raise ModelError(error.message.removeprefix(f"{MODEL_FIELD}: "), error.hint) from None
    value = ref.ref if reference == ref.ref and not folder.exists() else ref.path_or_id
    return ModelChoice(value, "base", Path(value).name if ref.local else value, value)


def find_adapted(workspace: Workspace, reference: str, adapter: str | None) -> ModelChoice:
    """What a reference means, with an adapter named beside it: a folder, RUN or RUN#checkpoint-N.

    Raises:
        ConfigError: as `find_choice`, or the adapter is none.
        ModelError: no such model.
    """
    choice = find_choice(workspace, reference)
    if not adapter:
        return choice
    folder = Path(adapter).expanduser()
    settings = adapter_settings(str(folder))
    if settings is not None:
        return _of_adapter(folder.absolute(), {**settings, "base_model_name_or_path": choice.base})
    found = find_choice(workspace, adapter) if find_run(workspace, adapter.partition(SEPARATOR)[0]) else None
    if found is None or found.adapter is None:
        raise ConfigError([FieldError("adapter", f"{adapter!r} is no adapter's folder and no run that has one")])
    return replace(found, base=choice.base)


def training_of(run: RunDir) -> RunConfig | None:
    """The configuration of a training run; None for another kind, or one that cannot be read."""
    return _training(run.path, _changed(run.config_file), _changed(run.changes_file))


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=2048)  # lists ask for every run of a workspace, again and again
def _training(path: Path, _written: int, _changes: int) -> RunConfig | None:
    config = _config(RunDir(path))
    return config if isinstance(config, RunConfig) else None


def find_run(workspace: Workspace, reference: str) -> RunDir | None:
    """A run by id or by the path of its directory; None when it is neither."""
    path = Path(reference).expanduser()
    try:
        if (path / "config.yaml").is_file():
            return RunDir(path.resolve())
        return workspace.run(reference) if reference else None
    except (RunNotFound, OSError, ValueError):
        return None


def _latest(workspace: Workspace) -> RunDir | None:
    """The newest run that left something to talk to; the newest of all when none did."""
    runs = workspace.list_runs()
    return next((run for run in runs if choices_of(run) or _has_made(run)), next(iter(runs), None))


def _config(run: RunDir) -> object:
    try:
        return run.config()
    except ConfigError:
        return None


def _has_made(run: RunDir) -> bool:
    """Whether a merge, an import or an export has finished and left something to talk to."""
    config = _config(run)
    if not isinstance(config, _MAKERS) or not config.out or run.state() is not RunState.FINISHED:
        return False
    folder = Path(config.out)
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _check_made(run: RunDir, config: MergeConfig | ConvertConfig | ExportConfig) -> None:
    """Raises ConfigError for a run that has not made its folder, and for one whose folder is no model to load."""
    state = run.state()
    if state is not RunState.FINISHED:
        sentence = f"run {run.id} has made no model (it is {state}); choose one that has finished"
    elif not config.out:
        sentence = f"run {run.id} uploaded a model and left no folder here (it is {state}); choose what it uploaded"
    elif not Path(config.out).is_dir():
        sentence = f"the folder that run {run.id} made is no longer there (it is {state}): {config.out}"
    else:
        _check_not_gguf(Path(config.out))
        return
    raise ConfigError([FieldError("run", sentence)])


def _check_not_gguf(folder: Path) -> None:
    """Raises ConfigError for a folder of GGUF files: transformers does not load them."""
    try:
        found = [] if (folder / "config.json").is_file() else sorted(folder.glob("*.gguf"))
    except (OSError, ValueError):
        return
    if found:
        sentence = (
            f"{folder.name} is a GGUF, which llama.cpp and Ollama run and nothing here; "
            f"run it with: llama-server -m {shlex.quote(str(found[0]))}"
        )
        raise ConfigError([FieldError("model", sentence)])


def _of_run(run: RunDir, place: str) -> ModelChoice:
    config = run.config()
    if isinstance(config, _MAKERS):
        _check_made(run, config)
    if isinstance(config, MergeConfig | ExportConfig):
        origin = _run_around(Path(config.adapter)) if config.adapter else None
        return ModelChoice(config.out, "model", config.name, config.out, run=origin)
    if isinstance(config, ConvertConfig):
        settings = adapter_settings(config.out)
        if settings is None and (Path(config.out) / "config.json").is_file():  # every weight was trained
            return ModelChoice(config.out, "model", config.name, config.out)
        return _of_adapter(Path(config.out), settings or {})
    found = choices_of(run)
    if place:
        chosen = next((choice for choice in found if choice.key.endswith(f"{SEPARATOR}{place}")), None)
        sentence = f"run {run.id} has no complete {place}; it has {_named(found)}"
    else:
        chosen = best_of(run)
        sentence = f"run {run.id} has no adapter yet (it is {run.state()}); wait for its first checkpoint"
    if chosen is None:
        raise ConfigError([FieldError("run", sentence)])
    return chosen


def _run_around(folder: Path) -> RunDir | None:
    """The run a folder of an adapter lies in, or that it is."""
    places = (folder, *folder.parents[:2])
    return next((RunDir(place) for place in places if (place / "config.yaml").is_file()), None)


def _named(found: list[ModelChoice]) -> str:
    return ", ".join(choice.key.partition(SEPARATOR)[2] or "its result" for choice in found) or "none"


def _of_adapter(folder: Path, settings: dict[str, object]) -> ModelChoice:
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        sentence = f"{folder.name} does not say which base model it was trained on; name the base model and the adapter"
        raise ConfigError([FieldError("adapter", sentence)])
    return ModelChoice(str(folder), "adapter", folder.name, base, folder, run=_run_around(folder))


def _imported(workspace: Workspace) -> list[ModelChoice]:
    """Adapters among the exports that name their base model."""
    found = []
    for folder in results(workspace.exports):
        settings = adapter_settings(str(folder))
        try:
            found += [_of_adapter(folder, settings)] if settings else []
        except (ConfigError, ModelError):
            continue
    return found
