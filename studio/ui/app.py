"""The page: top bar, rail of tabs, and all wiring between tabs. Gradio only; the server around it is server.py."""

import importlib
import importlib.util
from pathlib import Path

import gradio as gr

from studio.rundir import Workspace
from studio.ui.context import READ, Context
from studio.ui.i18n import T
from studio.ui.tabs import home, monitor
from studio.ui.widgets.runlist import attach, selected_run

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "ui"
TAB_IDS = ("home", "data", "train", "monitor", "export", "chat")
BUILDERS = {"home": home.build, "monitor": monitor.build}
for _name in TAB_IDS:
    if importlib.util.find_spec(f"studio.ui.tabs.{_name}"):
        BUILDERS[_name] = importlib.import_module(f"studio.ui.tabs.{_name}").build

TOP_BAR = """<div class="topbar"><a class="brand" href="#home"><span class="mark" aria-hidden="true"></span>
<h1>Crucible <span lang="zh">丹炉</span></h1></a><span class="spring"></span>
<button type="button" class="live" hidden></button>
<div class="lang" role="group"><button type="button" data-lang="en" lang="en">EN</button>
<button type="button" data-lang="zh-CN" lang="zh">中文</button></div>
<button type="button" class="icon theme"><span aria-hidden="true"></span></button></div>"""


def build_ui(workspace: Workspace) -> gr.Blocks:
    """Build the whole page over ``workspace``; no value is set here, they come by load events."""
    with gr.Blocks(title="Crucible 丹炉", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as demo:
        gr.HTML(html_template=TOP_BAR, js_on_load="Studio.topBar(element)", elem_id="topbar", apply_default_css=False)
        run = selected_run()
        dataset = gr.Textbox(visible="hidden", elem_id="selected-dataset", show_label=False, container=False)
        with gr.Tabs(elem_id="nav", overflow_behavior="wrap") as tabs:
            context = Context(workspace, demo, tabs, run, dataset)
            for name in TAB_IDS:
                if name in BUILDERS:
                    context.tab[name] = gr.Tab(T(f"tab.{name}"), id=name, elem_id=f"tab-{name}")
            for name, tab in context.tab.items():
                with tab:
                    BUILDERS[name](context)
        demo.load(attach(workspace), run, run, js="(run) => Studio.started(run)", **READ)
    return demo
