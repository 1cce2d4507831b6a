"""Export: merge a run's adapter into its base model, follow the merge, see the proof."""

from typing import Any

import gradio as gr

from studio.best_step import read_best
from studio.checkpoints import complete_checkpoints
from studio.config import MergeConfig, RunConfig
from studio.rundir import RunDir
from studio.schema import ConfigError, walk
from studio.schema import build as build_config
from studio.ui.context import ACTION, READ, Context, refuse, safe
from studio.ui.i18n import T, tr
from studio.ui.tabs.starting import say_if_queued
from studio.ui.tabs.train_preview import display_name, launch
from studio.ui.widgets.bubbles import panel
from studio.ui.widgets.form import judged
from studio.workspace import Workspace, slug

ADAPTER = "adapter"
SIZES = ("200MB", "500MB", "1GB", "2GB", "5GB")
CHOICES = {spec.name: spec.choices or () for spec in walk(MergeConfig)}


def sources(run: RunDir) -> list[str]:
    """What can be merged: the final adapter, then checkpoints that hold one, newest first."""
    final = [ADAPTER] if (run.adapter / "adapter_config.json").is_file() else []
    kept = complete_checkpoints(run.checkpoints)
    return final + [path.name for path in kept if (path / "adapter_config.json").is_file()]


def best_source(run: RunDir, found: list[str]) -> str | None:
    """The one of `found` to choose by default: the best step's, else the first."""
    best = read_best(run)
    wanted = (best.checkpoint or best.path) if best else ""
    return wanted if wanted in found else next(iter(found), None)


def source_name(run: RunDir, source: str) -> str:
    """What the list calls a source, with a word beside the best one where that is not the final adapter."""
    name = tr("export.final") if source == ADAPTER else source
    best = read_best(run)
    return f"{name} · {tr('export.best')}" if best and best.checkpoint == source else name


def mergeable(workspace: Workspace) -> list[tuple[str, str]]:
    """(name, id) of the runs with something to merge, newest first."""
    found = []
    for run in workspace.list_runs():
        if not run.state().live and sources(run):
            found.append((f"{display_name(run)} · {run.id[:15]}", run.id))
    return found


def merge_config(run: RunDir, source: str, options: dict[str, str], workspace: Workspace) -> MergeConfig:
    """The complete configuration of a merge. Raises Refused with a sentence, ConfigError for a wrong option."""
    if source not in sources(run):
        raise refuse("export.error.source")
    name = slug(options.pop("name"), "")
    if not name:
        raise refuse("export.error.name")
    out = workspace.exports / name
    if out.exists():
        raise refuse("export.error.exists", name=name)
    config = run.config()
    if not isinstance(config, RunConfig):
        raise refuse("export.error.source")
    adapter = run.adapter if source == ADAPTER else run.checkpoints / source
    base = config.model.model_name_or_path
    return build_config(MergeConfig, {"name": name, "base": base, "adapter": str(adapter), "out": str(out), **options})


class Handlers:
    """What the tab does; every method is an event handler."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.workspace = ctx.workspace

    def opened(self, selected: str, shown: str | None) -> tuple[Any, ...]:
        """Fresh list of runs, the shown or the selected one chosen, the last merge in the panel."""
        choices = mergeable(self.workspace)
        ids = [run_id for _, run_id in choices]
        chosen = next((run_id for run_id in (shown, selected, *ids) if run_id in ids), None)
        has = bool(choices)
        last = self._last_merge()
        return (
            gr.update(choices=choices, value=chosen),
            *self.choose(chosen),
            {"run": last.id if last else None, "empty": not has and last is None},
            gr.update(visible=has),
            {"empty": not has},
        )

    def _last_merge(self) -> RunDir | None:
        return next((run for run in self.workspace.list_runs() if _is_merge(run)), None)

    def choose(self, run_id: str | None) -> tuple[Any, Any]:
        """What of a run can be merged, and a name that is still free."""
        if not run_id:
            return gr.update(choices=[], value=None), gr.skip()
        run = self.ctx.run(run_id)
        found = sources(run)
        labels = [(source_name(run, name), name) for name in found]
        return gr.update(choices=labels, value=best_source(run, found)), self._free_name(run)

    def _free_name(self, run: RunDir) -> str:
        base = slug(display_name(run)) + "-merged"
        taken = {path.name for path in self.workspace.exports.iterdir()}
        return next(name for n in range(1, 10_000) if (name := base if n == 1 else f"{base}-{n}") not in taken)

    def merge(self, run_id: str | None, source: str | None, *values: str) -> dict[str, Any]:
        """Start the merge; the panel follows its run."""
        if not run_id or not source:
            raise refuse("export.error.source")
        options = dict(zip(("merge_base", "dtype", "max_shard_size", "name"), map(str, values), strict=True))
        options["max_shard_size"] = options["max_shard_size"].replace(" ", "").upper()
        config = merge_config(self.ctx.run(run_id), source, options, self.workspace)
        run = launch(self.workspace, config)
        say_if_queued(self.workspace, run)
        return {"run": run.id}

    def check(self, *values: Any) -> list[dict[str, Any]]:
        """Validator: the name is free and the largest file is a size."""
        name, size = slug(str(values[-1] or ""), ""), str(values[-2] or "")
        sentence = "" if name else tr("export.error.name")
        if name and (self.workspace.exports / name).exists():
            sentence = tr("export.error.exists", name=name)
        wrong_size = _size_error(size.replace(" ", "").upper())
        kept = [judged("") for _ in values[:-2]]
        return [*kept, judged(wrong_size), judged(sentence)]


def _size_error(size: str) -> str:
    try:
        build_config(MergeConfig, {"base": "x", "adapter": "x", "out": "x", "max_shard_size": size})
    except ConfigError:
        return tr("export.error.size")
    return ""


def _is_merge(run: RunDir) -> bool:
    try:
        return isinstance(run.config(), MergeConfig)
    except ConfigError:
        return False


def _radio(name: str, value: str) -> gr.Radio:
    choices = [(T(f"export.{name}.{choice}"), choice) for choice in CHOICES[name]]
    look: dict[str, Any] = {"label": T(f"export.{name}"), "info": T(f"export.{name}.help"), "elem_id": f"export-{name}"}
    return gr.Radio(choices, value=value, elem_classes=["field"], **look)


def _list(name: str) -> gr.Dropdown:
    """A drop-down filled when the tab is opened. Any value passes: the handlers check what comes."""
    look: dict[str, Any] = {"label": T(f"export.{name}"), "info": T(f"export.{name}.help"), "elem_id": f"export-{name}"}
    return gr.Dropdown([], allow_custom_value=True, elem_classes=["field"], **look)


def build(ctx: Context) -> None:
    """Build the tab."""
    handlers = Handlers(ctx)
    ctx.heading("export")
    nothing = panel("export_empty", "export-empty")
    with gr.Row(elem_id="export-columns", equal_height=False):
        with gr.Column(scale=6, min_width=320, visible=False) as form:
            with gr.Group(elem_classes=["form-section"]):
                run, source = _list("run"), _list("source")
                merge_base = _radio("merge_base", "original")
                dtype = _radio("dtype", "bfloat16")
                size = gr.Dropdown(
                    list(SIZES),
                    value="2GB",
                    allow_custom_value=True,
                    label=T("export.size"),
                    info=T("export.size.help"),
                    elem_id="export-size",
                    elem_classes=["field"],
                )
                name = gr.Textbox(
                    label=T("export.name"), info=T("export.name.help"), elem_id="export-name", max_length=80
                )
            merge = gr.Button(
                T("export.merge"), variant="primary", elem_id="export-merge", elem_classes=["primary-action"]
            )
        with gr.Column(scale=6, min_width=360):
            shown = panel("merge", "export-result")
    opened = [run, source, name, shown, form, nothing]
    ctx.tab["export"].select(safe(handlers.opened), [ctx.selected_run, run], opened, **READ)
    run.input(safe(handlers.choose), run, [source, name], **READ)
    options = [run, source, merge_base, dtype, size, name]
    merge.click(safe(handlers.merge), options, shown, validator=handlers.check, **ACTION)
