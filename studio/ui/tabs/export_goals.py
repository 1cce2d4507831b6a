"""Export: the goals, which options belong to which, and the configuration a wish becomes. No components here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from studio.config import ConvertConfig, ExportConfig, MergeConfig
from studio.export_targets import Goal
from studio.model_choices import SEPARATOR, ModelChoice, choices_of, find_run, list_choices
from studio.outputs import OutputConfig
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, FieldSpec, build, walk
from studio.ui.context import refuse
from studio.ui.i18n import tr
from studio.ui.run_lines import changed, facts
from studio.ui.tabs.train_preview import display_name
from studio.workspace import Workspace, slug

FORMATS: tuple[Goal, ...] = get_args(Goal)
IMPORT = "import"
JOB = "job"
"""No export: the text by which somebody else's machines train; nothing is started (see `export_job`)."""
GOALS = (*FORMATS, IMPORT, JOB)
CONFIGS: dict[str, type[OutputConfig]] = dict.fromkeys(FORMATS, ExportConfig) | {
    "adapter": ConvertConfig,
    "safetensors": MergeConfig,
    IMPORT: ConvertConfig,
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "adapter": (),
    "safetensors": ("merge_base", "dtype", "max_shard_size", "device", "layout", "weight", "more_adapters"),
    "bitsandbytes": ("bits", "merge_base", "max_shard_size"),
    "gguf": ("gguf_type", "merge_base"),
    "ollama": ("gguf_type", "merge_base", "system"),
    "hub": ("hub", "repo_id", "private"),  # no address: whoever opens the page must not say where the token goes
    IMPORT: ("source", "base", "settings", "prompt_template", "lora_alpha"),
}
"""Fields of the configuration that a goal lets one choose."""
NUMBER_FORMAT = {"safetensors": "dtype", "bitsandbytes": "bits", "gguf": "gguf_type", "ollama": "gguf_type"}
"""The option that says how many bits a weight takes."""
SUFFIX = {"safetensors": "merged", "hub": "upload", IMPORT: "imported"}
KINDS = ("merge", "convert", "export")
LONGEST_NAME = 80


@dataclass(frozen=True)
class Wish:
    """What a visitor has put together: the goal, what it starts from, a name or "", and the options as controls."""

    goal: str
    choice: ModelChoice | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_choice(self) -> bool:
        """Whether something of the workspace must be chosen: an import brings its own, a job has nothing yet."""
        return self.goal not in (IMPORT, JOB)


def specs() -> dict[str, FieldSpec]:
    """{name: field} of every option that has a control, in the order of the goals."""
    found: dict[str, FieldSpec] = {}
    for goal, names in OPTIONS.items():
        known = {spec.path: spec for spec in walk(CONFIGS[goal])}
        for name in names:
            found.setdefault(name, known[name])
    return found


# ---- what can be exported --------------------------------------------------------------------------------------------


def offered(workspace: Workspace) -> list[tuple[str, str]]:
    """(label, key) of what can be exported: each run once, then imported adapters, models made here, base models."""
    found: dict[str, str] = {}
    for choice in list_choices(workspace):
        found.setdefault(offered_key(choice), _label(choice))
    return [(label, key) for key, label in found.items()]


def offered_key(choice: ModelChoice) -> str:
    """The key it is offered under: of a run with all its checkpoints the run's."""
    return choice.run.id if choice.run and choice.key.partition(SEPARATOR)[0] == choice.run.id else choice.key


def _label(choice: ModelChoice) -> str:
    if choice.run and offered_key(choice) == choice.run.id:
        return f"{choice.name} · {choice.run.id[:15]}"
    return f"{choice.name} · {tr(f'export.what.{choice.what}')}"


def states(workspace: Workspace, key: str) -> list[ModelChoice]:
    """What there is of a key of `offered`: the result of a run and its checkpoints, or the one model. May be empty."""
    run = find_run(workspace, key) if key and not Path(key).is_absolute() else None
    if run is not None:
        return choices_of(run)
    return [choice for choice in list_choices(workspace) if choice.key == key and key]


def state_label(choice: ModelChoice) -> str:
    """What the list of a run's states calls one."""
    name = tr("export.final") if choice.step is None else tr("export.checkpoint", step=choice.step)
    return f"{name} · {tr('export.best')}" if choice.best and choice.step is not None else name


def chosen(workspace: Workspace, what: str | None, state: str | None) -> ModelChoice | None:
    """The one that two controls name together; None when nothing is. Raises Refused for what is not offered."""
    if not what:
        return None
    found = states(workspace, what)
    picked = next((choice for choice in found if choice.key == (state or what)), None) or default_state(found)
    if picked is None:
        raise refuse("export.error.source")
    return picked


def default_state(found: list[ModelChoice]) -> ModelChoice | None:
    """The best one of a run, else the first."""
    return next((choice for choice in found if choice.best), next(iter(found), None))


def usual_goal(choice: ModelChoice | None) -> str:
    """The goal to begin with."""
    if choice is None:
        return IMPORT
    return "safetensors" if choice.adapter else "gguf"


# ---- what it becomes -------------------------------------------------------------------------------------------------


def free_name(workspace: Workspace, wish: Wish) -> str:
    """A name for the result that no folder has and no run at work will give."""
    choice = wish.choice
    named = choice and (display_name(choice.run) if choice.run else Path(choice.name).name)
    stem = slug(named or _brought(wish.options), "model")
    step = f"-step{choice.step}" if choice and choice.step is not None else ""
    suffix = f"{wish.options.get('bits') or 4}bit" if wish.goal == "bitsandbytes" else SUFFIX.get(wish.goal, wish.goal)
    taken, base = names_taken(workspace), f"{stem}{step}-{suffix}"
    return next(name for n in range(1, 10_000) if (name := base if n == 1 else f"{base}-{n}") not in taken)


def _brought(options: Mapping[str, Any]) -> str:
    """What an import is called: after its one checkpoint, else after its folder."""
    files = [Path(str(file)) for file in options.get("files") or ()]
    checkpoint = next((file for file in files if file.suffix in (".pth", ".pt")), None)
    return checkpoint.stem if checkpoint else "adapter" if files else Path(str(options.get("source") or "adapter")).stem


def names_taken(workspace: Workspace) -> set[str]:
    """Names of the folders among the exports, and of those that runs at work or in the queue will make."""
    coming = set()
    for run in workspace.list_runs():
        if run.state().live or run.state().value == "queued":
            config = output_of(run)
            coming |= {Path(config.out).name} if config else set()
    return {path.name for path in workspace.exports.iterdir()} | coming


def output_of(run: RunDir) -> OutputConfig | None:
    """The configuration of a run that exports; None for any other or a broken one."""
    return _output(run.path, changed(run.config_file)) if facts(run)["kind"] in KINDS else None


@lru_cache(maxsize=512)
def _output(path: Path, _changed: int) -> OutputConfig | None:
    try:
        config: Any = RunDir(path).config()
    except ConfigError:
        return None
    return config if isinstance(config, MergeConfig | ConvertConfig | ExportConfig) else None


def config_of(workspace: Workspace, wish: Wish) -> OutputConfig:
    """The complete configuration of a wish.

    Raises:
        Refused: nothing is chosen.
        ConfigError: a wrong option, or a name that cannot be.
    """
    if wish.needs_choice and wish.choice is None:
        raise refuse("export.error.source")
    name = slug(wish.name, "") if wish.name.strip() else free_name(workspace, wish)
    out = {} if wish.goal == "hub" else {"out": str(workspace.exports / (name or "-"))}
    wrong = _name_errors(workspace, name)
    try:
        made = build(CONFIGS[wish.goal], {"name": name, **out, **_subject(wish), **_options(wish)})
    except ConfigError as error:
        raise ConfigError([*error.errors, *wrong]) from None
    if wrong:
        raise ConfigError(wrong)
    return made


def _name_errors(workspace: Workspace, name: str) -> list[FieldError]:
    if not name:
        return [FieldError("name", tr("export.error.name"))]
    return [FieldError("name", tr("export.error.exists", None, name=name))] if name in names_taken(workspace) else []


def _subject(wish: Wish) -> dict[str, Any]:
    choice = wish.choice
    if choice is None or wish.goal == IMPORT:
        return {}
    adapter = str(choice.adapter) if choice.adapter else None
    if wish.goal == "adapter":
        return {"source": adapter or ""}
    if wish.goal == "safetensors":
        return {"base": choice.base, "adapter": adapter or ""}
    return {"format": wish.goal, "model": choice.base, "adapter": adapter}


def _options(wish: Wish) -> dict[str, Any]:
    """The options of the goal that are set; what is empty takes its default."""
    shown = {name: wish.options.get(name) for name in OPTIONS[wish.goal]}
    found = {name: _plain(specs()[name], value) for name, value in shown.items() if value not in (None, "", [])}
    if "max_shard_size" in found:
        found["max_shard_size"] = str(found["max_shard_size"]).replace(" ", "").upper()
    return found


def _plain(spec: FieldSpec, value: Any) -> Any:
    """A choice among numbers as the number; everything else as it is."""
    return int(value) if spec.choices and str(value).isdecimal() else value
