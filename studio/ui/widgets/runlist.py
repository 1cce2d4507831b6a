"""Which run the page looks at: the hidden component that holds its id, and how it is found again after a reload."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.at_work import live_run
from studio.workspace import Workspace


def selected_run() -> gr.HTML:
    """The hidden component whose value is a run id or "": input, output, or listen to its ``change``.

    The page's script keeps ``?run=`` and the value equal.
    """
    return _hidden("selected-run", "Studio.bindRun({props, trigger, watch})")


def found_run() -> gr.HTML:
    """The hidden component for what the page load finds: the page may have another run by the time it is told."""
    return _hidden("found-run", "Studio.bindFound({props, watch})")


def _hidden(elem_id: str, script: str) -> gr.HTML:
    """A component that shows nothing and holds a run id for the page's script."""
    return gr.HTML(
        value="",
        html_template="<span></span>",
        js_on_load=script,
        visible="hidden",
        elem_id=elem_id,
        apply_default_css=False,
    )


def attach(workspace: Workspace) -> Callable[[str, gr.Request], Any]:
    """Handler of the page load: the run of ``?run=``, else the newest live one, else the one the browser remembers.

    Where there is none it changes nothing. On a busy machine a run may be begun or chosen before the answer reaches the
    page: `Studio.attached` then leaves that one as it is.
    """

    def find(remembered: str, request: gr.Request) -> Any:
        known = [run.id for run in workspace.list_runs()]
        asked = str(request.query_params.get("run", ""))
        if asked in known:
            return asked
        live = live_run(workspace)  # of hundreds of runs only those are looked at whose process may still be there
        found = (live.id if live else "") or (remembered if remembered in known else "") or (known or [""])[0]
        return found or gr.skip()

    return find
