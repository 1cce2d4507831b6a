"""Reusable pieces of page. The moving ones are ``gr.HTML`` with a static template; text is set by script as text."""

import gradio as gr


def scripted(name: str) -> gr.HTML:
    """A piece that ``assets/ui/<name>.js`` fills and keeps current; its ``elem_id`` is ``w-<name>``."""
    return gr.HTML(
        html_template='<div class="mount"></div>',
        js_on_load=f"Studio.mount('{name}', {{element, props, trigger, watch}})",
        elem_id=f"w-{name}",
        apply_default_css=False,
    )
