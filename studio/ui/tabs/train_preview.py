"""What the Train tab says about a configuration before it starts, and what fills its form. No components here."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from studio import presets, runner
from studio.config import RunConfig
from studio.estimate import FEW_UPDATES, preflight
from studio.estimate import plan as plan_of
from studio.presets import ModelError
from studio.records import DataError, DatasetStore
from studio.rundir import RunDir, Workspace, slug
from studio.schema import ConfigError, FieldError, build, dump_yaml, flatten
from studio.ui.context import refuse
from studio.ui.fieldtexts import label_key
from studio.ui.i18n import current_request, language_of, table
from studio.ui.sentences import translated
from studio.ui.widgets.form import Form, error_text, to_control

FIRST_PRESET = "ember_qlora_identity_e3"
MODEL, DATASET, METHOD, NAME = "model.model_name_or_path", "data.dataset", "method", "name"
# What a preset or a model must not overwrite: the visitor's own choices.
OWN = (NAME, DATASET)


def named(config: RunConfig) -> RunConfig:
    """The configuration with a name: an empty one is built from model, method and dataset."""
    if config.name.strip():
        return config
    tail = re.split(r"[/\\]", config.model.model_name_or_path.rstrip("/\\"))[-1]
    dataset = Path(config.data.dataset).stem
    return config.model_copy(update={"name": f"{tail}_{config.method}_{dataset}"[:120]})


def label(path: str) -> str:
    """The label of a field in the visitor's language; the path itself when it is no field."""
    return table(language_of(current_request())).get(label_key(path), path)


def review(form: Form, values: Sequence[Any], workspace: Workspace) -> dict[str, Any]:
    """Everything shown beside the form: counts, findings, the YAML and the command, or why there are none yet."""
    try:
        config = named(build(RunConfig, form.mapping(values)))
    except ConfigError as error:
        return {"ok": False, "issues": [_issue(form, item) for item in error.errors]}
    issues = [
        {
            "level": a.level,
            "field": a.field,
            "label": label(a.field),
            "message": _first_up(a.message, a.field),
            "fix": translated(a.fix),
        }
        for a in preflight(config, workspace)
    ]
    file_name = f"{slug(config.name)}.yaml"
    return {
        "ok": not any(issue["level"] == "error" for issue in issues),
        "issues": issues,
        "counts": _counts(config, workspace),
        "yaml": dump_yaml(config),
        "file": file_name,
        "command": f"python launch.py train {file_name}",
        "name": config.name,
    }


def _issue(form: Form, error: FieldError) -> dict[str, Any]:
    path = form.blamed(error)
    return {
        "level": "error",
        "field": path,
        "label": label(path),
        "message": error_text(error),
        "fix": "",
        "code": error.code,
    }


def _first_up(message: str, field: str) -> str:
    text = translated(message.removeprefix(f"{field}: "))
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,]", text) else text  # a file name stays as it is


def _counts(config: RunConfig, workspace: Workspace) -> dict[str, Any] | None:
    try:
        found = plan_of(config, workspace)
    except (DataError, ModelError, OSError):
        return None  # already among the findings
    if found is None:
        return None
    return {
        "rows": found.conversations,
        "packs": found.packs,
        "updates": found.updates,
        "tokens": found.tokens,
        "few": found.updates < FEW_UPDATES,
        "batch": config.effective_batch_size,
    }


# ---- what fills the form ---------------------------------------------------------------------------------------------


def dataset_choices(store: DatasetStore) -> list[tuple[str, str]]:
    """The saved datasets for a drop-down, newest first."""
    return [(f"{info.title or info.name} · {info.rows}", info.name) for info in store.list()]


def model_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """The known base models and the models merged in this workspace."""
    known = [(model.title, model.model_name_or_path) for model in presets.models().values()]
    merged = sorted(path for path in workspace.exports.iterdir() if (path / "config.json").is_file())
    return known + [(path.name, str(path)) for path in merged]


@cache
def _recommended(model: str, method: str) -> dict[str, Any]:
    return flatten(RunConfig, presets.model_defaults(model, method))


@cache
def _ever_recommended(form: Form) -> dict[str, set[str]]:
    """{path: every control value some preset or the defaults give it}: anything else was typed by the visitor."""
    found = {path: {str(value)} for path, value in form.defaults().items()}
    for model in presets.models().values():
        for method in presets.methods():
            for path, value in _recommended(model.model_name_or_path, method).items():
                if path in found:
                    found[path].add(str(to_control(form.spec(path), value)))
    return found


def advised(form: Form, values: Sequence[Any]) -> dict[str, Any]:
    """{path: control value} to change after another model or method was chosen; what the visitor typed stays."""
    shown = {spec.path: value for spec, value in zip(form.specs, values, strict=True)}
    wanted = form.defaults() | {
        path: to_control(form.spec(path), value)
        for path, value in _recommended(str(shown[MODEL] or ""), str(shown[METHOD])).items()
        if path not in (METHOD, MODEL)
    }
    known = _ever_recommended(form)
    return {
        path: value
        for path, value in wanted.items()
        if path not in (*OWN, MODEL, METHOD) and str(shown[path]) in known[path] and shown[path] != value
    }


def preset_mapping(name: str, dataset: str) -> dict[str, Any]:
    """A preset as a nested mapping with the visitor's dataset. Raises ConfigError for an unknown name."""
    found = presets.compose(name)
    found["data"] = {**found.get("data", {}), "dataset": dataset}
    found[NAME] = ""
    return found


# ---- starting --------------------------------------------------------------------------------------------------------


def start(config: RunConfig, workspace: Workspace) -> RunDir:
    """Create the run and start its engine. Raises Refused with a sentence; then no run is left behind."""
    wrong = [advice for advice in preflight(config, workspace) if advice.level == "error"]
    if wrong:
        first = wrong[0]
        raise refuse("train.error.preflight", label=label(first.field), message=_first_up(first.message, first.field))
    return launch(workspace, named(config))


def launch(workspace: Workspace, config: Any) -> RunDir:
    """Create a run of any kind and start it; one run at a time. Raises Refused naming the run in the way."""
    try:
        return runner.create_and_start(workspace, config)
    except runner.StartRefused as refused:
        if refused.blocking:
            raise refuse("train.error.live", name=display_name(workspace.run(refused.blocking))) from refused
        raise


def display_name(run: RunDir) -> str:
    """The name of a run as the lists show it."""
    try:
        return run.config().name or run.id
    except ConfigError:
        return run.id
