"""A button that asks before it acts: the visible one belongs to a script, the hidden one carries the event."""

import gradio as gr


def hidden_button(elem_id: str) -> gr.Button:
    """The button a script presses after a yes (``Studio.ask(texts, "#<elem_id>")``); its handler checks everything."""
    return gr.Button(visible="hidden", elem_id=elem_id)
