"""Train: choose what to teach to what, see what it will do, start it. The form comes from `RunConfig` alone."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.config import RunConfig
from studio.records import DatasetStore
from studio.rundir import RunDir
from studio.schema import build as build_config
from studio.ui.choices import dataset_choices, mapping_choices, model_choices, preset_choices, run_choices
from studio.ui.context import ACTION, PREVIEW, READ, READ_EACH, Context, refuse, safe
from studio.ui.i18n import T
from studio.ui.machine import machine_defaults, marked, unavailable
from studio.ui.tabs import train_changes, train_model, train_parallel
from studio.ui.tabs import train_preview as tp
from studio.ui.tabs.starting import ANY_CARD, card_choices, start_or_ask, wanted_cards
from studio.ui.widgets.bubbles import event_data, panel
from studio.ui.widgets.form import Form, judged

FIRST = (tp.MODEL, tp.DATASET, tp.METHOD, tp.NAME)


class Handlers:
    """What the tab does; every method is an event handler."""

    def __init__(self, ctx: Context, form: Form) -> None:
        self.ctx, self.form = ctx, form
        self.store = DatasetStore(ctx.workspace.datasets)

    def opened(self, chosen: str, *values: Any) -> list[Any]:
        """Fresh choices of datasets and models; the last chosen dataset when the field is still empty."""
        names = dataset_choices(self.store)
        shown = self._value(tp.DATASET, values)
        newest = names[0][1] if names else None
        # A value that is there already is not sent again: the drop-down would open by itself.
        return [
            gr.update(choices=names) if shown else gr.update(choices=names, value=chosen or newest),
            gr.update(choices=model_choices(self.ctx.workspace)),
            gr.update(choices=names),
            gr.update(choices=run_choices(self.ctx.workspace)),
        ]

    def offered(self) -> list[Any]:
        """The choices of every field, with the reason at those that cannot be had on this machine."""
        reasons = unavailable()
        return [
            gr.update(choices=marked(spec.choices or (), reasons[spec.path])) if spec.path in reasons else gr.skip()
            for spec in self.form.specs
            if spec.choices
        ]

    def choose_dataset(self, chosen: str) -> Any:
        """A dataset saved or chosen elsewhere becomes the one to train on."""
        if not chosen:
            return gr.skip()
        return gr.update(choices=dataset_choices(self.store), value=chosen)

    def _value(self, path: str, values: Sequence[Any]) -> Any:
        return values[[spec.path for spec in self.form.specs].index(path)]

    def first(self) -> list[Any]:
        """The preset the form starts with, and its values: the built-in model's, as this machine can train it."""
        name = tp.FIRST_PRESET.replace("qlora", str(machine_defaults().get("method", "qlora")))
        return [name, *self.form.show(tp.preset_mapping(name, ""), keep=tp.OWN)]

    def presets_of(self, model: str | None) -> Any:
        """The presets of a model that was chosen; any other name may still be typed. None of them is chosen yet."""
        return gr.update(choices=preset_choices(model or ""), value=None)

    def use_preset(self, name: str | None, *values: Any) -> list[Any]:
        """Fill the form from a preset; run name and dataset stay the visitor's."""
        if not name:
            return [gr.skip() for _ in self.form.specs]
        return self.form.show(tp.preset_mapping(name.strip(), str(self._value(tp.DATASET, values) or "")), keep=tp.OWN)

    def advise(self, *values: Any) -> list[Any]:
        """After another model or method: its recommended values, and only the fields that apply."""
        return self._changed(tp.advised(self.form, values), values)

    def _changed(self, changes: dict[str, Any], values: Sequence[Any]) -> list[Any]:
        """Updates that change some fields, and show only the fields that then apply."""
        shown = dict(zip([spec.path for spec in self.form.specs], values, strict=True)) | changes
        visible = self.form.applying(shown)
        return [
            gr.update(visible=spec.path in visible, **({"value": changes[spec.path]} if spec.path in changes else {}))
            for spec in self.form.specs
        ]

    def apply(self, event: gr.EventData, *values: Any) -> list[Any]:
        """What a button of the review asks for: fields set back to the preset, or an offered change taken over."""
        wanted = event_data(event)
        changes = train_changes.changed_to(self.form, values, wanted)
        if wanted.get("advise"):  # another method brings its values, as when it is chosen by hand
            pairs = zip(self.form.specs, values, strict=True)
            changes |= tp.advised(self.form, [changes.get(spec.path, value) for spec, value in pairs])
        return self._changed(changes, values)

    def load(self, path: str | None) -> list[Any]:
        """Fill the form from a file of ours, of XTuner or of LLaMA-Factory; then the preset and what is said of it."""
        if not path:
            raise refuse("train.error.yaml")
        settings, report = train_changes.read_settings_file(Path(path))
        keep = () if train_changes.names_dataset(settings) else (tp.DATASET,)
        return [*self.form.show(settings, keep=keep), train_changes.preset_of(settings), report]

    def recall(self, run_id: str | None) -> list[Any]:
        """Fill the form from an earlier run."""
        if not run_id:
            return [gr.skip() for _ in self.form.specs] + [gr.skip(), gr.skip()]
        config = self.ctx.run(run_id).config()
        if not isinstance(config, RunConfig):
            raise refuse("train.error.recall")
        settings = config.model_dump(mode="json")
        report = {"name": config.name or run_id, "origin": "run", "fields": len(self.form.specs), "left": []}
        return [*self.form.show(settings), train_changes.preset_of(settings), report]

    def review(self, preset: str | None, card: str | None, *values: Any) -> tuple[Any, Any]:
        """What the configuration will do, for the panel and for the bar."""
        found = tp.review(self.form, values, self.ctx.counting, str(card or ""))
        # The time makes each answer another value: the page would not hear of an equal one.
        found |= {"changed": train_changes.changes(self.form, values, preset), "now": time.time()}
        return found, {key: found.get(key) for key in ("ok", "issues", "counts", "waiting", "name")}

    def download(self, event: gr.EventData) -> None:
        """Start the download of a base model; the page follows it by itself."""
        train_model.start(self.ctx.workspace, event_data(event))

    def stop_download(self, event: gr.EventData) -> None:
        """Stop it."""
        train_model.stop(self.ctx.workspace, str(event_data(event).get("id") or ""))

    def start(self, *values: Any) -> tuple[Any, Any, Any]:
        """Start or queue the run and show it in the Monitor tab; or ask for the memory that the chat holds.

        After the fields may come the choice of a card.
        """
        return self._start(values, release=False)

    def start_released(self, *values: Any) -> tuple[Any, Any, Any]:
        """The same after the visitor has agreed to give up the chat's model."""
        return self._start(values, release=True)

    def _start(self, values: Sequence[Any], *, release: bool) -> tuple[Any, Any, Any]:
        count = len(self.form.specs)
        config = build_config(RunConfig, self.form.mapping(values[:count]))
        gpus = wanted_cards(*values[count:]) if values[count:] else None
        made = start_or_ask(self.ctx.workspace, config, release=release, gpus=gpus)
        if isinstance(made, RunDir):
            return gr.Tabs(selected="monitor"), made.id, None
        return gr.skip(), gr.skip(), made

    def judge(self, *values: Any) -> list[dict[str, Any]]:
        """The validator of Start: the error of each field; the card is looked at when the run starts."""
        return [*self.form.validator(*values[:-1]), judged("")]


@dataclass(frozen=True)
class Parts:
    """The components beside the fields."""

    preset: gr.Dropdown
    recall: gr.Dropdown
    search: gr.Textbox
    upload: gr.UploadButton
    loaded: gr.HTML
    review: gr.HTML
    card: gr.HTML
    bar: gr.HTML
    start: gr.Button
    cards: gr.Dropdown
    question: gr.HTML


def _choose(form: Form) -> tuple[gr.Dropdown, gr.Dropdown]:
    """The first card: preset, earlier run, model, dataset, method, name."""
    with gr.Group(elem_classes=["form-section", "two"], elem_id="train-first"):
        preset = gr.Dropdown(
            preset_choices(),
            value=tp.FIRST_PRESET,
            label=T("train.preset"),
            info=T("train.preset.help"),
            allow_custom_value=True,
            elem_id="train-preset",
            elem_classes=["field"],
        )
        recall = gr.Dropdown(
            [],
            value=None,
            label=T("train.recall"),
            info=T("train.recall.help"),
            elem_id="train-recall",
            elem_classes=["field"],
        )
        form.place(FIRST)
    return preset, recall


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
        types = list(train_changes.SUFFIXES)
        upload = gr.UploadButton(T("train.load_yaml"), file_types=types, elem_id="train-yaml-upload", scale=0)
    with gr.Group(elem_classes=["form-section"], elem_id="train-basic"):
        form.place([path for path in form.paths(advanced=False) if path not in FIRST])
    with gr.Accordion(T("train.advanced"), open=False, elem_id="train-advanced"):
        for section in form.sections():
            if section != train_parallel.SECTION:
                with gr.Group(elem_classes=["form-section"]):
                    gr.HTML(f"<h3>{T('form.section.' + section)}</h3>", elem_classes=["section-head"], padding=False)
                    form.place_rest(section)
    train_parallel.build(form)
    return search, upload


def build(ctx: Context) -> None:
    """Build the tab."""
    choices = {tp.MODEL: model_choices(ctx.workspace), tp.MAPPING: mapping_choices()}
    form = ctx.form = Form(RunConfig, {**choices, tp.DATASET: [], tp.VALIDATION: []}, tp.LISTS)
    ctx.heading("train")
    with gr.Row(elem_id="train-columns", equal_height=False):
        with gr.Column(scale=7, min_width=360):
            preset, recall = _choose(form)
            search, upload = _settings(form)
        with gr.Column(scale=5, min_width=320, elem_id="train-side"):
            loaded = panel("loaded", "train-loaded", "train")
            review = panel("review", "train-review", "train")
            card = panel("card", "train-card", "train", value="", visible="hidden")
    with gr.Row(elem_id="train-bar", elem_classes=["action-bar"]):
        bar = panel("bar", "train-summary", "train", scale=1)
        offered = card_choices()
        cards = gr.Dropdown(
            offered,
            value=ANY_CARD,
            label=T("train.cards"),
            show_label=False,
            container=False,
            visible=len(offered) > 2,
            elem_id="train-cards",
            scale=0,
            min_width=190,
        )
        start = gr.Button(
            T("train.start"), variant="primary", elem_id="train-start", elem_classes=["primary-action"], scale=0
        )
        question = panel("start", "train-question", "startask", visible="hidden")
    _wire(ctx, form, Parts(preset, recall, search, upload, loaded, review, card, bar, start, cards, question))


def _wire(ctx: Context, form: Form, parts: Parts) -> None:
    handlers, fields = Handlers(ctx, form), form.components
    preset, review = parts.preset, parts.review
    lists = [form[tp.DATASET], form[tp.MODEL], form[tp.VALIDATION], parts.recall]
    ctx.demo.load(handlers.first, None, [preset, *fields], **READ)
    ctx.demo.load(safe(handlers.offered), None, [form[spec.path] for spec in form.specs if spec.choices], **READ)
    opened = safe(handlers.opened)
    gr.on([ctx.demo.load, ctx.tab["train"].select], opened, [ctx.selected_dataset, *fields], lists, **READ)
    ctx.selected_dataset.change(safe(handlers.choose_dataset), ctx.selected_dataset, form[tp.DATASET], **READ)
    form[tp.MODEL].input(safe(handlers.presets_of), form[tp.MODEL], preset, **READ)
    preset.input(safe(handlers.use_preset), [preset, *fields], fields, **READ)
    gr.on([form[tp.MODEL].input, form[tp.METHOD].input], safe(handlers.advise), fields, fields, **READ)
    filled = [*fields, preset, parts.loaded]
    parts.upload.upload(safe(handlers.load), parts.upload, filled, **READ)
    parts.recall.input(safe(handlers.recall), parts.recall, filled, **READ)
    ctx.recall = (handlers.recall, filled)
    review.apply(safe(handlers.apply), fields, fields, **READ_EACH)
    review.edit(safe(handlers.download), None, None, **ACTION)
    review.delete(safe(handlers.stop_download), None, None, **ACTION)
    # `select`: the script asks again while a large dataset is counted, or when a model has come.
    triggers = [part.change for part in (*fields, preset, parts.card)] + [ctx.tab["train"].select, review.select]
    gr.on(triggers, safe(handlers.review), [preset, parts.card, *fields], [review, parts.bar], **PREVIEW)
    parts.search.change(None, parts.search, None, js="(text) => Studio.filterFields(text)", **PREVIEW)
    train_parallel.wire(form, parts.cards, safe)
    started = [ctx.tabs, ctx.selected_run, parts.question]
    parts.start.click(safe(handlers.start), [*fields, parts.cards], started, validator=handlers.judge, **ACTION)
    parts.question.apply(safe(handlers.start_released), [*fields, parts.cards], started, **ACTION)
