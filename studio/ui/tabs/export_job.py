"""Export as a job: a configuration as the text that a scheduler takes. Nothing is started from here."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from studio.cluster_jobs import FILE_NAMES, JOB_KINDS, SUBMIT, JobKind, job_text
from studio.config import RunConfig
from studio.reruns import frozen
from studio.schema import ConfigError, build
from studio.ui.context import Context
from studio.ui.i18n import T, field_label, tr
from studio.ui.run_lines import facts
from studio.ui.tabs.export_goals import JOB
from studio.ui.tabs.train_preview import display_name, named
from studio.ui.widgets.bubbles import panel
from studio.ui.widgets.form import Form, error_text
from studio.workspace import Workspace

FORM = "form"
"""The choice that stands for what the Train tab holds."""
RUNS_OFFERED = 100


def controls() -> tuple[gr.Dropdown, gr.Radio]:
    """What becomes a job, and for which scheduler."""
    look: dict[str, Any] = {"elem_classes": ["field", "opt", f"for-{JOB}"]}
    whose = gr.Dropdown(
        [(T("export.job.form"), FORM)],
        value=FORM,
        allow_custom_value=True,
        label=T("export.job.of"),
        info=T("export.job.of.help"),
        elem_id="export-job_of",
        **look,
    )
    kinds = [(T(f"export.job.{kind}"), kind) for kind in JOB_KINDS]
    kind = gr.Radio(
        kinds,
        value=JOB_KINDS[0],
        label=T("export.job.kind"),
        info=T("export.job.kind.help"),
        elem_id="export-job_kind",
        **look,
    )
    return whose, kind


def drawn() -> gr.HTML:
    """Where the text is shown."""
    return panel("job", "export-job", "export", elem_classes=["opt", f"for-{JOB}"])


def offered(workspace: Workspace) -> list[tuple[str, str]]:
    """What can be a job: the Train tab as it stands, and earlier trainings."""
    runs = [run for run in workspace.list_runs() if facts(run)["kind"] == "train"][:RUNS_OFFERED]
    return [(tr("export.job.form"), FORM), *((f"{display_name(run)} · {run.id[:15]}", run.id) for run in runs)]


def first(ctx: Context, selected: str, chosen: str | None, values: Sequence[Any]) -> str:
    """What is chosen when the tab is opened: as before, but the run of the page while the Train tab is unfinished."""
    if (chosen or FORM) != FORM or selected not in {key for _, key in offered(ctx.workspace)}:
        return chosen or FORM
    try:
        _configuration(ctx, FORM, values)
    except ConfigError:
        return selected
    return FORM


def review(ctx: Context, whose: str | None, kind: str | None, values: Sequence[Any]) -> dict[str, Any]:
    """The text of the job with its file name and the command that submits it, or why there is none."""
    wanted: JobKind = next((known for known in JOB_KINDS if known == kind), JOB_KINDS[0])
    try:
        config = _configuration(ctx, whose or FORM, values)
    except ConfigError as error:
        first = error.errors[0]
        path = ctx.form.blamed(first) if ctx.form else first.path
        return {"kind": wanted, "problem": error_text(first), "label": field_label(path) if path else ""}
    file = FILE_NAMES[wanted]  # by which the text itself calls it
    return {
        "kind": wanted,
        "problem": "",
        "text": job_text(wanted, config),
        "file": file,
        "submit": " ".join([*SUBMIT[wanted], file]),
        "processes": config.parallel.num_processes,
        "machines": config.parallel.num_machines,
    }


def _configuration(ctx: Context, whose: str, values: Sequence[Any]) -> RunConfig:
    """Of a run, or of the form. Raises ConfigError; Refused for a run that is not there."""
    if whose != FORM or ctx.form is None:
        return frozen(ctx.run(whose[:200]))
    return named(build(RunConfig, _without_address(ctx.form, values)))


def _without_address(form: Form, values: Sequence[Any]) -> dict[str, Any]:
    """What the form holds; the scheduler names the address of machine 0, so that none need be typed."""
    found = form.mapping(values)
    section = dict(found.get("parallel") or {})
    if not section.get("main_process_ip"):
        section["main_process_ip"] = "machine-0"
    return {**found, "parallel": section}
