"""What an import is about to do, checked before anything heavy is loaded: source, goal, disk; then the base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.chains import other_base
from studio.config import ConvertConfig
from studio.engine.adapter import open_base
from studio.engine.converted import Original, find_original, ready
from studio.engine.failure import EngineError, model_failure
from studio.engine.journal import Journal
from studio.engine.output_folder import check_disk, open_goal, refused, work_folder
from studio.model_choices import SEPARATOR, ModelChoice, find_choice, find_run
from studio.model_library import list_models
from studio.output_leftovers import clear_leftovers
from studio.presets import ModelError, ModelRef, resolve_model
from studio.run_queue import workspace_of
from studio.rundir import RunDir
from studio.schema import ConfigError

if TYPE_CHECKING:
    from studio.engine.foreign.settings import Settings
    from studio.engine.foreign.sources import Place


@dataclass(frozen=True)
class Plan:
    """An import that can begin: `out` is free, `work` the folder beside it that is filled first.

    Either `place` holds an adapter, or `model` is the folder of a model trained as a whole. `trained` is the run it
    came from, with the step of a checkpoint.
    """

    config: ConvertConfig
    run: RunDir
    out: Path
    work: Path
    place: Place | None = None
    model: Path | None = None
    trained: ModelChoice | None = None


@dataclass(frozen=True)
class Base:
    """The base model of an adapter: `named` is how the adapter will call it, `ref` what is loaded.

    `original` is where it was converted from, if it was.
    """

    named: str
    ref: ModelRef
    original: Original | None = None


def make_plan(run: RunDir) -> Plan:
    """Check the configuration, the goal and the source.

    Raises:
        EngineError: kind model (source), config (kind, out) or disk (out), naming the field.
        ConfigError: config.yaml cannot be used.
    """
    config = run.config()
    if not isinstance(config, ConvertConfig):
        raise refused("config", "kind", f"run {run.id} is no import.", "Start it with what it is.")
    trained = _own(run, config.source)
    from studio.engine.foreign.sources import find_place  # torch: seconds to import

    if trained and trained.what != "adapter":
        model = Path(trained.base)
        if not model.is_dir():
            raise model_failure(
                f"source: {model.name} is no longer there.", "Choose a run that has left an adapter.", "source"
            )
        out = _goal(config, run)
        check_disk(out, _bytes_of(model), "the model")
        return Plan(config, run, out, work_folder(run, out), model=model, trained=trained)
    place = find_place(str(trained.adapter) if trained else config.source)
    out = _goal(config, run)
    check_disk(out, 0, "the adapter")
    return Plan(config, run, out, work_folder(run, out), place, trained=trained or _owner(run, place))


def _goal(config: ConvertConfig, run: RunDir) -> Path:
    out = open_goal(config.out)
    clear_leftovers(run, out.parent)  # before the disk is measured
    return out


def _own(run: RunDir, source: str) -> ModelChoice | None:
    """One of our own runs, if that is what is meant. Raises EngineError, field source, when it has left nothing."""
    workspace = workspace_of(run)
    if find_run(workspace, source.partition(SEPARATOR)[0]) is None:
        return None
    try:
        return find_choice(workspace, source)
    except (ConfigError, ModelError) as error:
        reason = error.errors[0].message if isinstance(error, ConfigError) and error.errors else str(error)
        raise model_failure(f"source: {reason}.", "Choose a run that has left an adapter.", "source") from error


def _owner(run: RunDir, place: Place) -> ModelChoice | None:
    """The run an adapter's folder lies in, with its checkpoint's step."""
    folder = place.folder
    owner = next((p for p in folder.parents[:2] if (p / "config.yaml").is_file()), None) if folder else None
    if folder is None or owner is None:
        return None
    key = f"{owner}{SEPARATOR}{folder.name}" if folder.name.startswith("checkpoint-") else str(owner)
    try:
        found = find_choice(workspace_of(run), key)
    except (ConfigError, ModelError):
        return None
    return found if found.adapter and found.adapter.resolve() == folder else None


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def find_base(plan: Plan, settings: Settings, journal: Journal) -> Base:
    """The base model: the one that is named, else the one the adapter or its configuration names.

    A folder of the machine it was trained on is looked for by its last name among the models that are here. A model
    in an original layout is converted first.

    Raises EngineError of kind model, field base.
    """
    reference = plan.config.base or settings.base
    if not reference:
        raise model_failure(
            "base: nothing says on which base model the adapter was trained.", "Name the base model.", "base"
        )
    ref = open_base(reference) if plan.config.base else _told_base(plan, reference, journal)
    other = other_base({"base_model_name_or_path": settings.base}, ref.ref)
    if plan.config.base and other:
        journal.warn(f"The adapter was trained on {other}; it is tried on {ref.ref}, as was asked for.", "base")
    if not ref.local:
        raise model_failure(
            f"base: {ref.ref} is not on this machine, and the adapter is tried on it.",
            f"Fetch it first (models fetch {ref.ref}), or give its folder.",
            "base",
        )
    original = find_original(ref, "base")
    workspace = workspace_of(plan.run).path
    loaded = ready(ref, workspace, lambda done, total: journal.progress(done, total, "tensors converted"), "base")
    is_folder = ref.local and Path(ref.ref).expanduser().is_dir()  # not a name of the hub or a built-in one
    return Base(ref.path_or_id if is_folder else ref.ref, loaded, original)


def _told_base(plan: Plan, reference: str, journal: Journal) -> ModelRef:
    """The model another program's configuration names, where it is on this machine."""
    try:
        found = resolve_model(reference)
        if found.local:
            return found
    except ModelError:
        found = None
    name = Path(reference).name.lower()
    here = [model for model in list_models(workspace_of(plan.run)) if model.complete]
    same = next((model for model in here if Path(model.value).name.lower() == name), None)
    if same is not None:
        journal.warn(f"The base model {reference} is not here; {same.value} has its name and is taken for it.", "base")
        return resolve_model(same.value)
    if found is not None:
        return found
    raise _not_here(reference)


def _not_here(reference: str) -> EngineError:
    return model_failure(
        f"base: the adapter was trained on {reference[:200]}, which is not on this machine.",
        "Name the base model where it is now.",
        "base",
    )
