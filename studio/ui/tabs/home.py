"""The first page: type a name, press one button, and watch data, training, exam and chat happen."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio import demo
from studio.records import DataError, IdentitySpec, parse_spec
from studio.ui.context import ACTION, READ, Context, safe
from studio.ui.i18n import T, tr
from studio.ui.sentences import translated
from studio.ui.tabs.starting import say_if_queued
from studio.ui.widgets import scripted

LANGUAGES = [("English", "en"), ("中文", "zh")]
FIELDS = ("name", "author", "languages")
DEFAULT_AUTHOR = "Crucible"


def build(ctx: Context) -> None:
    """Build the tab: hero with form and preview, stepper, recent runs, doors to the other tabs."""
    with gr.Row(elem_id="home-hero", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_id="home-form"):
            gr.HTML(f'<h2 class="hero-title">{T("home.title")}</h2>', apply_default_css=False)
            gr.HTML(f'<p class="hero-lead">{T("home.lead")}</p>', apply_default_css=False)
            name = gr.Textbox(label=T("home.name"), placeholder=T("home.name.placeholder"), elem_id="home-name")
            with gr.Row():
                author = gr.Textbox(
                    label=T("home.author"), placeholder=T("home.author.placeholder"), elem_id="home-author"
                )
                languages = gr.CheckboxGroup(
                    LANGUAGES, value=["en", "zh"], label=T("home.languages"), elem_id="home-languages"
                )
            go = gr.Button(T("home.go"), variant="primary", elem_id="home-go", elem_classes=["primary-action"])
        with gr.Column(scale=4, min_width=320, elem_id="home-preview"):
            scripted("preview")
    scripted("stepper")
    scripted("recent")
    scripted("doors")
    inputs = [name, author, languages]
    # One click, two listeners: the page moves at once, the server does the work.
    gr.on([go.click, name.submit, author.submit], None, None, None, js="() => Studio.teaching()", **ACTION)
    started = gr.on(
        [go.click, name.submit, author.submit],
        safe(teach(ctx)),
        inputs,
        ctx.selected_run,
        validator=check,
        trigger_mode="once",
        **ACTION,
    )
    started.failure(None, None, None, js="() => Studio.teachingFailed()", **READ)


def values_of(name: str, author: str, languages: list[str]) -> dict[str, Any]:
    """The form as values of an IdentitySpec."""
    return {"name": name or "", "author": (author or "").strip() or DEFAULT_AUTHOR, "languages": tuple(languages or ())}


def problems(name: str, author: str, languages: list[str]) -> dict[str, str]:
    """What is wrong with each field, in the visitor's language; empty when all is well."""
    found: dict[str, str] = {}
    if not languages:
        found["languages"] = tr("home.error.languages")
    values = values_of(name, author, languages or ["en"])
    for field, harmless in (("name", {"author": DEFAULT_AUTHOR}), ("author", {"name": DEFAULT_AUTHOR})):
        try:
            parse_spec({**values, **harmless})
        except DataError as error:
            found[field] = translated(error.message)
    return found


def check(name: str, author: str, languages: list[str]) -> list[dict[str, Any]]:
    """Validator of the form: one result per field, shown inside it."""
    found = problems(name, author, languages)
    return [gr.validate(field not in found, found.get(field, "")) for field in FIELDS]


def teach(ctx: Context) -> Callable[[str, str, list[str]], str]:
    """The handler of the button: make the dataset and the run, start or queue it, select it."""

    def start(name: str, author: str, languages: list[str]) -> str:
        spec: IdentitySpec = parse_spec(values_of(name, author, languages))
        run = demo.start(ctx.workspace, spec)
        say_if_queued(ctx.workspace, run)
        return run.id

    return start
