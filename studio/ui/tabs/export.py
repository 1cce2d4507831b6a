"""Export: choose what was trained and what it should become, start it, see the proof and what to do next."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.schema import FieldSpec
from studio.ui.choices import model_choices, template_choices
from studio.ui.context import ACTION, PREVIEW, READ, READ_EACH, Context, safe
from studio.ui.fieldtexts import help_key, label_key
from studio.ui.i18n import T, table
from studio.ui.tabs import export_job
from studio.ui.tabs.export_goals import IMPORT, JOB, LONGEST_NAME, OPTIONS, specs
from studio.ui.tabs.export_handlers import CONTROLS, Handlers
from studio.ui.tabs.export_import import FILES, SETTINGS, WEIGHTS
from studio.ui.widgets.bubbles import panel
from studio.ui.widgets.form import to_control
from studio.ui.widgets.sources import entries_control

SIZES = ("200MB", "500MB", "1GB", "2GB", "5GB", "10GB")
SMALL_FILES = (".json", ".jinja", ".model", ".txt", ".md")
RARE = ("device", "layout", "weight", "more_adapters", "lora_alpha")
"""Options behind "more"."""
LISTS = {"more_adapters.path": "adapters"}


@dataclass(frozen=True)
class Parts:
    """The components: `fields` are the inputs of a start by their names in CONTROLS, the others are drawn."""

    fields: dict[str, Any]
    about: gr.HTML
    plan: gr.HTML
    start: gr.Button
    follow: gr.HTML
    earlier: gr.HTML


def build(ctx: Context) -> None:
    """Build the tab."""
    ctx.heading("export")
    fields: dict[str, Any] = {}
    with gr.Row(elem_id="export-columns", equal_height=False):
        with gr.Column(scale=7, min_width=360, elem_id="export-form"):
            _step("what")
            about = _subject(fields)
            _step("goal")
            fields["goals"] = panel("goals", "export-goals", "export")
            _step("options")
            job = _options(fields)
        with gr.Column(scale=5, min_width=320, elem_id="export-side"):
            plan = panel("plan", "export-plan", "export")
            start = gr.Button(
                T("export.start"), variant="primary", elem_id="export-start", elem_classes=["primary-action"]
            )
    follow = panel("follow", "export-follow", "export")
    earlier = panel("earlier", "export-earlier", "export")
    _wire(ctx, Parts({name: fields[name] for name in CONTROLS}, about, plan, start, follow, earlier))
    _wire_job(ctx, fields["goals"], *job)


def _step(name: str) -> None:
    gr.HTML(f"<h3>{T(f'export.step.{name}')}</h3>", elem_classes=["export-step", f"export-step-{name}"], padding=False)


def _subject(fields: dict[str, Any]) -> gr.HTML:
    """What is exported: a model, which of its states, and facts about it."""
    with gr.Group(elem_classes=["form-section", "two"], elem_id="export-subject"):
        for name, key in (("what", "export.source_field"), ("state", "export.state")):
            look = _look(name, key, f"{key}.help", [])
            # A drop-down filled when the tab is opened. Any value passes: the handlers check what comes.
            fields[name] = gr.Dropdown([], allow_custom_value=True, **look)
        return panel("about", "export-about", "export")


def _options(fields: dict[str, Any]) -> tuple[gr.Dropdown, gr.Radio, gr.HTML]:
    """All options; the style sheet shows those of the chosen goal. Returns the parts of a job."""
    with gr.Group(elem_classes=["form-section", "two"], elem_id="export-options"):
        whose, kind = export_job.controls()
        kinds = [*WEIGHTS, *SETTINGS, *SMALL_FILES]
        fields[FILES] = gr.File(
            label=T("export.files"),
            file_count="multiple",
            file_types=kinds,
            elem_id="export-files",
            elem_classes=["opt", f"for-{IMPORT}"],
        )
        for name, spec in specs().items():
            if name not in RARE:
                fields[name] = _control(spec)
        named = [goal for goal in OPTIONS if goal != "hub"]  # what is uploaded has its repository's name
        look = _look("name", "export.name", "export.name.help", named)
        fields["name"] = gr.Textbox(max_length=LONGEST_NAME, max_lines=1, **look)
    goals = sorted({goal for goal, names in OPTIONS.items() if set(names) & set(RARE)})
    classes = ["opt", *(f"for-{goal}" for goal in goals)]
    with (
        gr.Accordion(T("export.more"), open=False, elem_id="export-more", elem_classes=classes),
        gr.Group(elem_classes=["form-section", "two"]),
    ):
        for name in RARE:
            fields[name] = _control(specs()[name])
    return whose, kind, export_job.drawn()


def _look(name: str, label: str, info: str, goals: list[str]) -> dict[str, Any]:
    """Label, explanation, id, and the goals the control belongs to (none: all)."""
    classes = ["field", *(["opt"] if goals else []), *(f"for-{goal}" for goal in goals)]
    return {"label": T(label), "info": T(info), "elem_id": f"export-{name}", "elem_classes": classes}


def _control(spec: FieldSpec) -> Any:
    """The control of one option, from its field."""
    goals = [goal for goal, names in OPTIONS.items() if spec.path in names]
    look = _look(spec.path, label_key(spec.path), help_key(spec.path), goals)
    value = to_control(spec, spec.default)
    if spec.item:
        return entries_control(spec, LISTS, look | {"visible": True})
    if spec.choices:
        return gr.Radio([(_word(spec.path, one), one) for one in spec.choices], value=value, **look)
    if spec.kind == "bool":
        return gr.Checkbox(value, **look)
    if spec.path in ("max_shard_size", "base", "prompt_template"):
        choices = list(SIZES) if spec.path == "max_shard_size" else []
        return gr.Dropdown(choices, value=value or None, allow_custom_value=True, **look)
    lines, hint = 3 if spec.path == "system" else 1, T("export.source.hint") if spec.path == "source" else None
    return gr.Textbox(value, lines=lines, max_lines=8 if lines > 1 else 1, placeholder=hint, **look)


def _word(name: str, choice: str) -> str:
    key = f"export.choice.{name}.{choice}"
    return T(key) if key in table("en") else choice


def _wire(ctx: Context, parts: Parts) -> None:
    handlers, fields = Handlers(ctx), parts.fields
    what, state, cards = (fields[name] for name in ("what", "state", "goals"))
    chosen = [state, parts.about, cards]
    opened = ctx.tab["export"].select
    opened(safe(handlers.opened), [ctx.selected_run, what, state, cards], [what, *chosen, parts.follow], **READ)
    opened(lambda: _lists(ctx), None, [fields["base"], fields["prompt_template"]], **READ)
    what.input(safe(handlers.choose), [what, cards], chosen, **READ)
    state.input(safe(handlers.choose_state), [what, state, cards], [parts.about, cards], **READ)
    inputs = list(fields.values())
    # `select`: another goal, which the page has drawn already. A start takes the name that was free until then.
    triggers = [part.change for part in (*inputs, parts.follow)] + [cards.select, opened]
    gr.on(triggers, safe(handlers.review), inputs, [parts.plan, fields["name"]], **PREVIEW)
    parts.start.click(safe(handlers.start), inputs, parts.follow, validator=handlers.judge, **ACTION)
    again = [what, *chosen, fields["name"], *(fields[name] for name in CONTROLS[4:])]
    for drawn in (parts.follow, parts.earlier):
        drawn.apply(safe(handlers.again), ctx.selected_run, again, **READ_EACH)
    parts.follow.delete(safe(handlers.stop), None, None, **ACTION)


def _wire_job(ctx: Context, cards: gr.HTML, whose: gr.Dropdown, kind: gr.Radio, shown: gr.HTML) -> None:
    """The text of a job follows its choices, and what the Train tab held when this one was opened."""
    opened, values = ctx.tab["export"].select, ctx.form.components if ctx.form else []

    def job(panel: Any, chosen: str | None, wanted: str | None, *held: Any) -> Any:
        if not isinstance(panel, dict) or panel.get("chosen") != JOB:
            return gr.skip()
        return export_job.review(ctx, chosen, wanted, held)

    def offer(selected: str, chosen: str | None, *held: Any) -> Any:
        return gr.update(choices=export_job.offered(ctx.workspace), value=export_job.first(ctx, selected, chosen, held))

    opened(safe(offer), [ctx.selected_run, whose, *values], whose, **READ)
    triggers = [whose.change, kind.change, cards.select, cards.change, opened]
    gr.on(triggers, safe(job), [cards, whose, kind, *values], shown, **PREVIEW)


def _lists(ctx: Context) -> tuple[Any, Any]:
    """Base models and chat templates to choose from; anything else may be typed."""
    return gr.update(choices=model_choices(ctx.workspace)), gr.update(choices=template_choices())
