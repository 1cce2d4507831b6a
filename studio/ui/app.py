"""The page: top bar, rail of tabs, and all wiring between tabs. Gradio only; the server around it is server.py."""

from pathlib import Path

import gradio as gr

from studio.ui.context import READ, Context
from studio.ui.i18n import T
from studio.ui.tabs import chat, data, data_xray, export, home, monitor, train
from studio.ui.widgets.runlist import attach, found_run, selected_run
from studio.workspace import Workspace

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "ui"
# In the order of the rail, as the data flows.
TABS = {
    "home": home.build,
    "data": data.build,
    "train": train.build,
    "monitor": monitor.build,
    "export": export.build,
    "chat": chat.build,
}

TOP_BAR = """<div class="topbar"><a class="brand" href="#home"><span class="mark" aria-hidden="true"></span>
<h1>Crucible <span lang="zh">丹炉</span></h1></a><span class="spring"></span>
<button type="button" class="live" hidden></button>
<div class="lang" role="group"><button type="button" data-lang="en" lang="en">EN</button>
<button type="button" data-lang="zh-CN" lang="zh">中文</button></div>
<button type="button" class="icon theme"><span aria-hidden="true"></span></button></div>"""


def build_ui(workspace: Workspace) -> gr.Blocks:
    """Build the whole page over ``workspace``; no value is set here, they come by load events."""
    demo: gr.Blocks
    with gr.Blocks(title="Crucible 丹炉", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as demo:
        gr.HTML(html_template=TOP_BAR, js_on_load="Studio.topBar(element)", elem_id="topbar", apply_default_css=False)
        run, found = selected_run(), found_run()
        dataset = gr.Textbox(visible="hidden", elem_id="selected-dataset", show_label=False, container=False)
        with gr.Tabs(elem_id="nav", overflow_behavior="wrap") as tabs:
            context = Context(workspace, demo, tabs, run, dataset)
            for name in TABS:
                context.tab[name] = gr.Tab(T(f"tab.{name}"), id=name, elem_id=f"tab-{name}")
            for name, build in TABS.items():
                with context.tab[name]:
                    build(context)
            with context.tab["data"]:  # after the Train tab, whose settings it shows
                data_xray.build(context)
        demo.load(attach(workspace), run, found, js="(run) => Studio.started(run)", **READ)
    return demo
