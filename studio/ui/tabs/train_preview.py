"""What the Train tab says about a configuration before it starts, and what fills its form. No components here."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from studio import presets, runner
from studio.config import RunConfig
from studio.estimate import FEW_UPDATES, Advice, Plan, zone
from studio.labels import read_labels
from studio.preflight import preflight
from studio.presets import ModelError
from studio.records import DataError
from studio.reproduce import command_line
from studio.rundir import RunDir
from studio.runner import StartRefused
from studio.schema import ConfigError, FieldError, build, dump_yaml, flatten, nest
from studio.ui.context import refuse
from studio.ui.counting import Counting, CountingFailed, Waiting
from studio.ui.i18n import field_label as label
from studio.ui.machine import machine_defaults
from studio.ui.sentences import translated
from studio.ui.tabs.train_fit import fit_json
from studio.ui.tabs.train_model import model_state
from studio.ui.tabs.train_spread import spread_json
from studio.ui.widgets.form import Form, error_text, to_control
from studio.workspace import Workspace, slug

FIRST_PRESET = "ember_qlora_identity_e3"
MODEL, DATASET, METHOD, NAME = "model.model_name_or_path", "data.dataset", "method", "name"
MAPPING, VALIDATION = "data.mapping", "data.validation_dataset"
# Controls that ask the page for a list of choices: {path: name of the list}.
LISTS = {
    "model.chat_template": "templates",
    "data.sources.dataset": "datasets",
    "data.sources.mapping": "mappings",
}
# What a preset or a model must not overwrite: the visitor's own choices.
OWN = (NAME, DATASET)


def named(config: RunConfig) -> RunConfig:
    """The configuration with a name: an empty one is built from model, method and dataset."""
    if config.name.strip():
        return config
    tail = re.split(r"[/\\]", config.model.model_name_or_path.rstrip("/\\"))[-1]
    dataset = Path(config.data.dataset).stem
    return config.model_copy(update={"name": f"{tail}_{config.method}_{dataset}"[:120]})


def review(form: Form, values: Sequence[Any], counting: Counting, card: str = "") -> dict[str, Any]:
    """Everything shown beside the form: counts, findings, fit, the YAML and the command, or why there are none yet.

    `card` is the device that memory and time are promised for (see `train_fit.devices`).
    `waiting` is [done, total] while a large dataset is counted; the page then asks again.
    """
    try:
        config = named(build(RunConfig, form.mapping(values)))
    except ConfigError as error:
        return _unfinished(form, values, error, card)
    found, problem = _planned(config, counting)
    advice = preflight(config, counting.workspace)
    if problem or isinstance(found, Waiting):  # the panel says it already, with its progress
        advice = [item for item in advice if (item.level, item.field) != ("info", DATASET)]
    issues = [_advice(item) for item in [*problem, *advice]]
    planned = found if isinstance(found, Plan) else None
    file_name = f"{slug(config.name)}.yaml"
    return {
        "ok": not any(issue["level"] == "error" for issue in issues),
        "issues": issues,
        "counts": counts_json(planned, config) if planned else None,
        "fit": fit_json(config, planned, counting.workspace, card),
        "parallel": spread_json(config, planned, card),
        "model": model_state(config),
        "waiting": [found.done, found.total] if isinstance(found, Waiting) else None,
        "yaml": dump_yaml(config),
        "file": file_name,
        "command": command_of(config, counting.workspace),
        "name": config.name,
    }


def _unfinished(form: Form, values: Sequence[Any], error: ConfigError, card: str) -> dict[str, Any]:
    """What is wrong. Rules between fields are only looked at when every field is right: a dataset that is not chosen
    yet must not hide them, nor the numbers that need none."""
    wrong, more = list(error.errors), {}
    if {item.path for item in wrong} == {DATASET}:
        mapping = form.mapping(values)
        try:
            config = build(RunConfig, {**mapping, "data": {**mapping["data"], "dataset": "-"}})
            more = {"parallel": spread_json(config, None, card)}
        except ConfigError as other:
            wrong += other.errors
    return {"ok": False, "issues": [issue_of(form, item) for item in wrong], **more}


def command_of(config: RunConfig, workspace: Workspace) -> str:
    """The line that trains exactly this in a terminal, in this workspace."""
    elsewhere = workspace.path.resolve() != (presets.ROOT / "workspace").resolve()
    return shlex.join([*command_line(config), *(["--workspace", str(workspace.path)] if elsewhere else [])])


def _planned(config: RunConfig, counting: Counting) -> tuple[Plan | Waiting | None, list[Advice]]:
    """The plan, and what ended the counting process; all else that stands in the way is among the preflight."""
    try:
        return counting.plan(config), []
    except CountingFailed as error:
        return None, [Advice("error", error.field, str(error))]
    except StartRefused as error:
        return None, [Advice("warning", DATASET, str(error))]
    except (DataError, ModelError, OSError):
        return None, []


def issue_of(form: Form, error: FieldError) -> dict[str, Any]:
    """A wrong field of the form as the page shows it."""
    path = form.blamed(error)
    return {
        "level": "error",
        "field": path,
        "label": label(path),
        "message": error_text(error),
        "fix": "",
        "code": error.code,
        "entry": error.entry,
        "name": error.name,
    }


def _advice(advice: Advice) -> dict[str, Any]:
    message, field = first_up(advice.message, advice.field), advice.field
    return {
        "level": advice.level,
        "field": field,
        "label": label(field),
        "message": message,
        "fix": translated(advice.fix),
    }


def counts_json(found: Plan, config: RunConfig) -> dict[str, Any]:
    """Every number between the rows of the files and the optimizer updates, and what to think of them."""
    counts = found.counts
    return asdict(counts) | {
        "batch": config.effective_batch_size,
        "per_row": counts.updates_per_distinct,
        "trained": counts.trained_tokens / counts.tokens if counts.tokens else 0.0,
        "zone": zone(counts),
        "few": FEW_UPDATES,
        "kept": counts.rows_read - counts.rows_skipped,
        "sources": len(found.recipes),
    }


def first_up(message: str, field: str) -> str:
    """The sentence of a lower layer in the visitor's language, without the dotted name of its field."""
    text = translated(message.removeprefix(f"{field}: "))
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,]", text) else text  # a file name stays as it is


# ---- what fills the form ---------------------------------------------------------------------------------------------


def suited(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} of settings laid over the defaults that suit this machine."""
    return machine_defaults() | flatten(RunConfig, settings)


@cache
def recommended(model: str, method: str) -> dict[str, Any]:
    """{path: value} of what is recommended for a model and a method on this machine."""
    return suited(presets.model_defaults(model, method))


@cache
def _ever_recommended(form: Form) -> dict[str, set[str]]:
    """{path: every control value some preset or the defaults give it}: anything else was typed by the visitor."""
    found = {path: {str(value)} for path, value in form.defaults().items()}
    for model in presets.models().values():
        for method in presets.methods():
            for path, value in recommended(model.model_name_or_path, method).items():
                if path in found:
                    found[path].add(str(to_control(form.spec(path), value)))
    return found


def advised(form: Form, values: Sequence[Any]) -> dict[str, Any]:
    """{path: control value} to change after another model or method was chosen; what the visitor typed stays."""
    shown = {spec.path: value for spec, value in zip(form.specs, values, strict=True)}
    wanted = form.defaults() | {
        path: to_control(form.spec(path), value)
        for path, value in recommended(str(shown[MODEL] or ""), str(shown[METHOD])).items()
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
    found = nest(suited(presets.compose(name)))
    found["data"] = {**found.get("data", {}), "dataset": dataset}
    found[NAME] = ""
    return found


# ---- starting --------------------------------------------------------------------------------------------------------


def check(config: RunConfig, workspace: Workspace) -> None:
    """Raises Refused with the first thing that would stop the run, as far as it can be known before the start."""
    wrong = [advice for advice in preflight(config, workspace) if advice.level == "error"]
    if wrong:
        first = wrong[0]
        raise refuse("train.error.preflight", label=label(first.field), message=first_up(first.message, first.field))


def launch(workspace: Workspace, config: Any, gpus: list[int] | None = None) -> RunDir:
    """A run of any kind, at work or, while there is no room for it, in the queue. Raises StartRefused."""
    return runner.submit(workspace, named(config) if isinstance(config, RunConfig) else config, gpus=gpus)


def display_name(run: RunDir) -> str:
    """The name of a run as the lists show it."""
    try:
        return read_labels(run).title or run.config().name or run.id
    except ConfigError:
        return run.id
