"""Controls of a form that a script draws: a list of sections, and a choice that takes a long text as well.

Their value is JSON like that of a panel; it changes with every key, as that of Gradio's own controls does.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from studio.schema import FieldSpec, walk
from studio.ui.fieldtexts import help_key, label_key
from studio.ui.i18n import LANGUAGES, table
from studio.ui.widgets.bubbles import panel

MODULE = "sources"


def entries_control(spec: FieldSpec, lists: Mapping[str, str], look: Mapping[str, Any]) -> gr.HTML:
    """The control of a list of sections: one line per entry. Its value is a list of {name: text}.

    ``lists`` gives the path of an entry's field the name of the list of choices it offers (see `choices.all_choices`).
    """
    assert spec.item is not None
    inner = [_drawn(one, f"{spec.path}.{one.path}", lists) for one in walk(spec.item)]
    settings = _drawn(spec, spec.path, {}) | {"fields": inner}
    return panel("entries", look["elem_id"], MODULE, settings, **_placed(look), value=[])


def choice_control(spec: FieldSpec, listed: str, value: str, look: Mapping[str, Any]) -> gr.HTML:
    """The control of a text that is mostly one of the choices called ``listed``; its value is the text."""
    settings = _drawn(spec, spec.path, {spec.path: listed})
    return panel("choice", look["elem_id"], MODULE, settings, **_placed(look), value=value)


def _placed(look: Mapping[str, Any]) -> dict[str, Any]:
    return {name: look[name] for name in ("elem_classes", "visible")}


def _drawn(spec: FieldSpec, path: str, lists: Mapping[str, str]) -> dict[str, Any]:
    """What the script must know of a field; texts in both languages, as the script knows which is wanted."""
    texts = {
        language: {"label": table(language)[label_key(path)], "help": table(language)[help_key(path)]}
        for language in LANGUAGES
    }
    return {
        "name": spec.path if path != spec.path else spec.name,
        "names": [spec.name, *spec.ui.aliases],
        "number": spec.kind in ("int", "float"),
        "required": spec.required,
        "multiline": spec.ui.multiline,
        "choices": lists.get(path, ""),
        "first": "" if spec.default is None or isinstance(spec.default, list) else f"{spec.default}".removesuffix(".0"),
        "texts": texts,
    }
