"""Builds Gradio pages in tests: inside a running event loop, or Gradio makes loops that nobody closes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gradio as gr

from studio.ui.context import Context
from studio.workspace import Workspace

Made = TypeVar("Made")


def built(make: Callable[[], Made]) -> Made:
    """What `make` returns, called while an event loop runs."""

    async def inside() -> Made:
        return make()

    return asyncio.run(inside())


def context(path: Path | Workspace) -> Context:
    """A context over a workspace, with the shared components a tab wants."""

    def make() -> Context:
        workspace = path if isinstance(path, Workspace) else Workspace(path)
        with gr.Blocks() as demo:
            run, dataset = gr.HTML(), gr.Textbox()
            with gr.Tabs() as tabs:
                return Context(workspace, demo, tabs, run, dataset)

    return built(make)
