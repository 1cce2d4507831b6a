"""Train: choose what to teach to what, see what it will do, start it. The form comes from `RunConfig` alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from studio import presets
from studio.config import RunConfig
from studio.records import DatasetStore
from studio.schema import build as build_config
from studio.schema import parse_yaml
from studio.ui.context import ACTION, PREVIEW, READ, Context, refuse, safe
from studio.ui.i18n import T
from studio.ui.tabs import train_preview as tp
from studio.ui.widgets.bubbles import panel
from studio.ui.widgets.form import Form

FIRST = (tp.MODEL, tp.DATASET, tp.METHOD, tp.NAME)
MAX_YAML_BYTES = 200_000


class Handlers:
    """What the tab does; every method is an event handler."""

    def __init__(self, ctx: Context, form: Form) -> None:
        self.ctx, self.form = ctx, form
        self.store = DatasetStore(ctx.workspace.datasets)

    def opened(self, chosen: str, *values: Any) -> list[Any]:
        """Fresh choices of datasets and models; the last chosen dataset when the field is still empty."""
        names = tp.dataset_choices(self.store)
        shown = self._value(tp.DATASET, values)
        newest = names[0][1] if names else None
        dataset = shown or chosen or newest
        return [
            gr.update(choices=names, value=dataset),
            gr.update(choices=tp.model_choices(self.ctx.workspace)),
        ]

    def choose_dataset(self, chosen: str) -> Any:
        """A dataset saved or chosen elsewhere becomes the one to train on."""
        if not chosen:
            return gr.skip()
        return gr.update(choices=tp.dataset_choices(self.store), value=chosen)

    def _value(self, path: str, values: Sequence[Any]) -> Any:
        return values[[spec.path for spec in self.form.specs].index(path)]

    def first(self) -> list[Any]:
        """The values the form starts with: the built-in model's preset."""
        return self.form.show(tp.preset_mapping(tp.FIRST_PRESET, ""), keep=tp.OWN)

    def use_preset(self, name: str | None, *values: Any) -> list[Any]:
        """Fill the form from a preset; run name and dataset stay the visitor's."""
        if not name:
            return [gr.skip() for _ in self.form.specs]
        return self.form.show(tp.preset_mapping(name.strip(), str(self._value(tp.DATASET, values) or "")), keep=tp.OWN)

    def advise(self, *values: Any) -> list[Any]:
        """After another model or method: its recommended values, and only the fields that apply."""
        changes = tp.advised(self.form, values)
        shown = dict(zip([spec.path for spec in self.form.specs], values, strict=True)) | changes
        visible = self.form.applying(shown)
        return [
            gr.update(visible=spec.path in visible, **({"value": changes[spec.path]} if spec.path in changes else {}))
            for spec in self.form.specs
        ]

    def load_yaml(self, path: str | None) -> list[Any]:
        """Fill the form from a YAML file; every accepted spelling of a field is understood."""
        if not path or Path(path).stat().st_size > MAX_YAML_BYTES:
            raise refuse("train.error.yaml")
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise refuse("train.error.yaml") from error
        return self.form.show(parse_yaml(text))

    def review(self, *values: Any) -> tuple[Any, Any]:
        """What the configuration will do, for the panel and for the bar."""
        found = tp.review(self.form, values, self.ctx.workspace)
        return found, {key: found.get(key) for key in ("ok", "issues", "counts", "name")}

    def start(self, *values: Any) -> tuple[Any, Any]:
        """Start the run and show it in the Monitor tab."""
        config = build_config(RunConfig, self.form.mapping(values))
        run = tp.start(config, self.ctx.workspace)
        return gr.Tabs(selected="monitor"), run.id


def _choose(form: Form) -> gr.Dropdown:
    """The first card: preset, model, dataset, method, name."""
    with gr.Group(elem_classes=["form-section", "two"], elem_id="train-first"):
        preset = gr.Dropdown(
            presets.list_presets(),
            value=tp.FIRST_PRESET,
            label=T("train.preset"),
            info=T("train.preset.help"),
            allow_custom_value=True,
            elem_id="train-preset",
            elem_classes=["field"],
        )
        form.place(FIRST)
    return preset


def _settings(form: Form) -> tuple[gr.Textbox, gr.UploadButton]:
    """Basic fields, then everything else behind Advanced, grouped by section."""
    with gr.Row(elem_id="train-tools"):
        search = gr.Textbox(
            placeholder=T("train.search"),
            label=T("train.search"),
            show_label=False,
            container=False,
            max_lines=1,
            elem_id="train-search",
            scale=4,
        )
        yaml = [".yaml", ".yml"]
        upload = gr.UploadButton(T("train.load_yaml"), file_types=yaml, elem_id="train-yaml-upload", scale=0)
    with gr.Group(elem_classes=["form-section"], elem_id="train-basic"):
        form.place([path for path in form.paths(advanced=False) if path not in FIRST])
    with gr.Accordion(T("train.advanced"), open=False, elem_id="train-advanced"):
        for section in form.sections():
            with gr.Group(elem_classes=["form-section"]):
                gr.HTML(f"<h3>{T('form.section.' + section)}</h3>", elem_classes=["section-head"], padding=False)
                form.place_rest(section)
    return search, upload


def build(ctx: Context) -> None:
    """Build the tab."""
    form = Form(RunConfig, {tp.MODEL: tp.model_choices(ctx.workspace), tp.DATASET: []})
    ctx.heading("train")
    with gr.Row(elem_id="train-columns", equal_height=False):
        with gr.Column(scale=7, min_width=360):
            preset = _choose(form)
            search, upload = _settings(form)
        with gr.Column(scale=5, min_width=320, elem_id="train-side"):
            side = panel("review", "train-review")
    with gr.Row(elem_id="train-bar", elem_classes=["action-bar"]):
        bar = panel("bar", "train-summary", scale=1)
        start = gr.Button(
            T("train.start"), variant="primary", elem_id="train-start", elem_classes=["primary-action"], scale=0
        )
    _wire(ctx, form, (preset, upload, search), (side, bar), start)


def _wire(
    ctx: Context,
    form: Form,
    extras: tuple[gr.Dropdown, gr.UploadButton, gr.Textbox],
    shown: tuple[gr.HTML, gr.HTML],
    start: gr.Button,
) -> None:
    preset, upload, search = extras
    handlers, fields = Handlers(ctx, form), form.components
    lists = [form[tp.DATASET], form[tp.MODEL]]
    ctx.demo.load(handlers.first, None, fields, **READ)
    opened = safe(handlers.opened)
    gr.on([ctx.demo.load, ctx.tab["train"].select], opened, [ctx.selected_dataset, *fields], lists, **READ)
    ctx.selected_dataset.change(safe(handlers.choose_dataset), ctx.selected_dataset, form[tp.DATASET], **READ)
    preset.input(safe(handlers.use_preset), [preset, *fields], fields, **READ)
    gr.on([form[tp.MODEL].input, form[tp.METHOD].input], safe(handlers.advise), fields, fields, **READ)
    upload.upload(safe(handlers.load_yaml), upload, fields, **READ)
    triggers = [field.change for field in fields] + [ctx.tab["train"].select]
    gr.on(triggers, safe(handlers.review), fields, list(shown), **PREVIEW)
    search.change(None, search, None, js="(text) => Studio.filterFields(text)", **PREVIEW)
    start.click(safe(handlers.start), fields, [ctx.tabs, ctx.selected_run], validator=form.validator, **ACTION)
