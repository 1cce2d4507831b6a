"""What may be chosen in a form, as (label, value): presets, datasets, base models, column mappings, chat templates."""

from studio import presets
from studio.config import RunConfig
from studio.model_choices import list_choices
from studio.model_library import OnDisk, list_models
from studio.preset_files import ModelPreset
from studio.records import DatasetStore
from studio.records.mappings import load_mappings
from studio.records.template_names import named_template, template_names
from studio.schema import ConfigError
from studio.ui.i18n import tr
from studio.workspace import Workspace

BUILT_IN = "ember"
RUNS_OFFERED = 50
_BITS16 = 2
Choices = list[tuple[str, str]]


def preset_choices(model: str = "") -> list[str]:
    """The presets of a base model, else of the built-in one: of all models there are thousands."""
    keys = [key for key, known in presets.models().items() if known.model_name_or_path == model] or [BUILT_IN]
    return [name for name in presets.list_presets(f"{keys[0]}_") if name.startswith(f"{keys[0]}_")]


def dataset_choices(store: DatasetStore) -> Choices:
    """The saved datasets, newest first."""
    return [(f"{info.title or info.name} · {info.rows}", info.name) for info in store.list()]


def model_choices(workspace: Workspace) -> Choices:
    """The complete models on this machine with size and type, then the known ones that would be downloaded."""
    known = {model.model_name_or_path: model for model in presets.models().values()}
    here = [model for model in list_models(workspace) if model.complete]
    found = [
        (_here(model, known[model.value].title if model.value in known else model.id), model.value) for model in here
    ]
    taken = {value for _, value in found}
    return found + [(_elsewhere(model), value) for value, model in known.items() if value not in taken]


def _here(model: OnDisk, title: str) -> str:
    return tr("train.model.here", name=title, size=_gigabytes(model.size_bytes), kind=model.kind)


def _elsewhere(model: ModelPreset) -> str:
    size = _gigabytes(model.parameters * 1e9 * _BITS16) if model.parameters else ""
    return tr("train.model.elsewhere", name=model.title, size=size).strip()


def _gigabytes(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def run_choices(workspace: Workspace) -> Choices:
    """The earlier runs whose settings can be taken over, newest first."""
    found = []
    for run in workspace.list_runs()[:RUNS_OFFERED]:
        try:
            config = run.config()
        except ConfigError:
            continue
        if isinstance(config, RunConfig):
            found.append((f"{config.name or run.id} · {run.id[:15]}", run.id))
    return found


def mapping_choices() -> Choices:
    """The known column mappings, by name."""
    return [(_labelled(item.name, item.label), item.name) for item in sorted(load_mappings(), key=lambda m: m.name)]


def template_choices() -> Choices:
    """The chat templates that have a name."""
    return [(_labelled(name, named_template(name).label), name) for name in template_names()]


def adapter_choices(workspace: Workspace) -> Choices:
    """The adapters of runs with their checkpoints, and those that were imported."""
    return [(f"{choice.name} · {choice.key}", choice.key) for choice in list_choices(workspace) if choice.adapter]


def all_choices(workspace: Workspace) -> dict[str, Choices]:
    """Every list a control drawn by a script may ask for."""
    return {
        "datasets": dataset_choices(DatasetStore(workspace.datasets)),
        "mappings": mapping_choices(),
        "templates": template_choices(),
        "adapters": adapter_choices(workspace),
    }


def _labelled(name: str, label: str) -> str:
    return name if label.lower() == name.lower() else f"{name} · {label}"
