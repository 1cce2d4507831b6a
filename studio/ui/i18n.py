"""Interface texts in English and Chinese: one flat ``key: text`` table per language, merged from ``assets/i18n``."""

import json
from functools import cache
from pathlib import Path

import gradio as gr

from studio.ui.fieldtexts import field_texts, label_key

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "i18n"
COOKIE = "studio_lang"
# Name of the language in the browser -> stem of the files that hold its texts.
LANGUAGES = {"en": "en", "zh-CN": "zh"}


@cache
def table(language: str) -> dict[str, str]:
    """All texts of one language ("en" or "zh-CN"); a key defined in two files is an error."""
    stem = LANGUAGES[language]
    merged: dict[str, str] = dict(field_texts(language))
    for path in sorted([FOLDER / f"{stem}.json", *FOLDER.glob(f"{stem}.*.json")]):
        texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        twice = merged.keys() & texts.keys()
        if twice:
            raise ValueError(f"{path.name}: already defined elsewhere: {', '.join(sorted(twice))}")
        merged.update(texts)
    return merged


@cache
def translations() -> gr.I18n:
    """The tables in the form Gradio sends to the page."""
    return gr.I18n(**{language: table(language) for language in LANGUAGES})


def T(key: str) -> str:  # noqa: N802 - short on purpose: it wraps every label
    """A marker the page replaces by the text of ``key``; for labels, infos, placeholders, Markdown and HTML values.

    Raises KeyError for a key without an English text, so that a typing error fails the build and not the reader.
    """
    if key not in table("en"):
        raise KeyError(f"no text for {key!r} in assets/i18n")
    return str(translations()(key))


def page_texts() -> dict[str, dict[str, str]]:
    """The texts that page scripts use (keys starting with ``js.``), per language, without that prefix."""
    return {lang: {k[3:]: v for k, v in table(lang).items() if k.startswith("js.")} for lang in LANGUAGES}


def language_of(request: gr.Request | None) -> str:
    """The visitor's language from the cookie the page sets; English when there is none."""
    chosen = request.cookies.get(COOKIE, "en") if request is not None else "en"
    return chosen if chosen in LANGUAGES else "en"


def current_request() -> gr.Request | None:
    """The request of the Gradio event that is running, or None outside one."""
    from gradio.context import LocalContext

    return LocalContext.request.get(None)


def tr(key: str, request: gr.Request | None = None, **values: object) -> str:
    """The text of ``key`` in the visitor's language with ``{name}`` placeholders filled; for texts of the server."""
    text = table(language_of(request or current_request()))[key]
    return text.format(**values) if values else text


def field_label(path: str) -> str:
    """The label of a field in the visitor's language; the path itself when it is no field."""
    return table(language_of(current_request())).get(label_key(path), path)
