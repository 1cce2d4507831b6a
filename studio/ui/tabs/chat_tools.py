"""The tools of the chat room: which there are, why one is off, and the user's own."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.tools import listed
from studio.tools.own import add_own, remove_own
from studio.ui.context import ACTION, Context, refuse, safe
from studio.ui.i18n import T, tr
from studio.ui.sentences import translated
from studio.ui.widgets.bubbles import event_data, panel
from studio.workspace import Workspace

LONGEST = 20_000
EXAMPLE = """name: weather
description: The weather of a city today.
parameters: {type: object, properties: {city: {type: string}}, required: [city]}
url: http://localhost:8000/weather
method: GET"""


def tool_list(workspace: Workspace, said: str = "") -> dict[str, Any]:
    """Every tool as JSON, with the reason of one that is off; `said` is a sentence about what has just been done."""
    tools = [
        {
            "name": tool.name,
            "description": tool.description,
            "off": translated(tool.obstacle.removeprefix(f"{tool.name}: ")) if tool.obstacle else "",
            "own": tool.own,
        }
        for tool in listed(workspace)
    ]
    return {"tools": tools, "said": said}


class Tools:
    """The handlers of the fold."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def shown(self) -> dict[str, Any]:
        """The list."""
        return tool_list(self.workspace)

    def add(self, text: str | None) -> tuple[str, dict[str, Any]]:
        """Save a tool of the user's; only hosts that are listed on the disk are accepted."""
        text = str(text or "")
        if not text.strip() or len(text) > LONGEST:
            raise refuse("chat.error.tool", limit=f"{LONGEST:,}")
        added = add_own(self.workspace, text)
        return "", tool_list(self.workspace, tr("chat.tool.added", None, name=added.name))

    def remove(self, event: gr.EventData) -> dict[str, Any]:
        """Forget a tool of the user's."""
        name = str(event_data(event).get("name", ""))
        if not remove_own(self.workspace, name):
            raise refuse("chat.error.no_tool")
        return tool_list(self.workspace)


def fold(ctx: Context) -> gr.Checkbox:
    """The fold; the checkbox says whether tools may be used."""
    handlers = Tools(ctx.workspace)
    with gr.Accordion(T("chat.tools"), open=False, elem_id="chat-tools-fold") as folded:
        look: dict[str, Any] = {"label": T("chat.tools.use"), "info": T("chat.tools.use.help")}
        with gr.Group(elem_classes=["form-section", "chat-wide"]):
            use = gr.Checkbox(value=False, elem_id="chat-tools", **look)
        shown = panel("chat_tools", "chat-tool-list", "chat")
        with gr.Group(elem_classes=["form-section", "chat-wide"]):
            text = gr.Textbox(
                label=T("chat.tool"),
                info=T("chat.tool.help"),
                placeholder=EXAMPLE,
                lines=5,
                max_lines=14,
                max_length=LONGEST,
                elem_id="chat-tool",
            )
        add = gr.Button(T("chat.tool.add"), elem_id="chat-tool-add", scale=0, min_width=140)
    folded.expand(safe(handlers.shown), None, shown, **ACTION)
    add.click(safe(handlers.add), text, [text, shown], **ACTION)
    shown.delete(safe(handlers.remove), None, shown, trigger_mode="multiple", **ACTION)
    return use
