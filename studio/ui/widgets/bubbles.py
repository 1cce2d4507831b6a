"""Pieces of page that show JSON: rows as chat bubbles or a table, lists, panels. Their script sets all text as text.

The template never changes and does not mention the value, so nothing a person or a model wrote is ever read as markup.
"""

import json
from typing import Any

import gradio as gr


def panel(widget: str, elem_id: str, **kwargs: Any) -> gr.HTML:
    """A block whose value is JSON (a dict), drawn by the function called ``widget`` in ``assets/ui/tabs.js``.

    The script may trigger ``select``, ``edit``, ``delete`` and ``apply``; their data arrives as ``gr.EventData``.
    Not a subclass: Gradio would write a stub file beside the module of every subclass.
    """
    call = f"Studio.mount('tabs', {{element, props, trigger, watch, widget: {json.dumps(widget)}}})"
    return gr.HTML(
        value=None,
        html_template="<div></div>",
        js_on_load=call,
        elem_id=elem_id,
        elem_classes=["panel", f"panel-{widget}"],
        apply_default_css=False,
        **kwargs,
    )


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What the page's script sent with an event; {} when it is not an object. Not to be trusted."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}
