"""The way from a configuration to a run at work or in the queue, and the question that may come before it."""

import time
from pathlib import PurePath
from typing import Any

import gradio as gr

from studio import chat_memory, runner
from studio.config import RunConfig
from studio.rundir import RunDir
from studio.ui.i18n import current_request, language_of, tr
from studio.ui.queue_view import name_of, place_and_reason
from studio.ui.tabs import train_preview
from studio.workspace import Workspace


def start_or_ask(workspace: Workspace, config: RunConfig, *, release: bool = False) -> RunDir | dict[str, Any]:
    """The run, at work or queued (the page says so); or, before anything is done, the question to be asked.

    `release`: the answer was yes, the chat's model may be given up. Raises Refused.
    """
    train_preview.check(config, workspace)
    holder = runner.needs_chat_memory(workspace, config)
    if holder and not release:
        # The time makes each question another value: the page would not hear of an equal one.
        return {"model": PurePath(holder.base).name, "held": holder.memory_bytes, "now": time.time()}
    if holder:
        chat_memory.release(workspace)
    run = train_preview.launch(workspace, config)
    say_if_queued(workspace, run)
    return run


def say_if_queued(workspace: Workspace, run: RunDir) -> None:
    """Tell the visitor that a run waits, at which place and for what; nothing when it is at work."""
    if run.state().value != "queued":
        return
    found = place_and_reason(workspace, run, language_of(current_request()))
    if found:
        gr.Info(tr("queue.info.queued", name=name_of(run), place=found[0], why=found[1]), duration=10)
