"""Pieces of page that show JSON: rows as chat bubbles or a table, lists, panels. Their script sets all text as text.

The template never changes and does not mention the value, so nothing a person or a model wrote is ever read as markup.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr


def panel(
    widget: str, elem_id: str, module: str = "tabs", settings: Mapping[str, Any] | None = None, **kwargs: Any
) -> gr.HTML:
    """A block whose value is JSON, drawn by the function called ``widget`` in ``assets/ui/<module>.js``.

    ``settings`` reach that function too; they never change. ``value`` and ``elem_classes`` may be given as well.

    The script may trigger ``select``, ``edit``, ``delete`` and ``apply``; their data arrives as ``gr.EventData``.
    Not a subclass: Gradio would write a stub file beside the module of every subclass.
    """
    given = f"element, props, trigger, watch, widget: {json.dumps(widget)}, settings: {json.dumps(settings or {})}"
    classes = ["panel", f"panel-{widget}", *kwargs.pop("elem_classes", ())]
    return gr.HTML(
        html_template="<div></div>",
        js_on_load=f"Studio.mount({json.dumps(module)}, {{{given}}})",
        elem_id=elem_id,
        elem_classes=classes,
        apply_default_css=False,
        **kwargs,
    )


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What the page's script sent with an event; {} when it is not an object. Not to be trusted."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}
