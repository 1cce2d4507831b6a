"""The way from a configuration to a run at work or in the queue, and the question that may come before it."""

import time
from pathlib import PurePath
from typing import Any

import gradio as gr

from studio import chat_memory, runner
from studio.config import AnyConfig, RunConfig
from studio.resources import cards
from studio.rundir import RunDir
from studio.ui.context import refuse
from studio.ui.i18n import T, current_request, language_of, tr
from studio.ui.queue_view import name_of, place_and_reason
from studio.ui.tabs import train_preview
from studio.workspace import Workspace

ANY_CARD = "any"


def card_choices() -> list[tuple[str, str]]:
    """What can be chosen as the card of a run: any one, or one of this machine's."""
    return [(T("train.cards.any"), ANY_CARD), *((f"{gpu.index} · {gpu.name}", str(gpu.index)) for gpu in cards())]


def wanted_cards(choice: Any) -> list[int] | None:
    """The cards a choice stands for; None for any one. Raises Refused for a card that is not there."""
    if choice in (None, "", ANY_CARD):
        return None
    if str(choice) not in {str(gpu.index) for gpu in cards()}:
        raise refuse("queue.error.cards")
    return [int(choice)]


def question_first(workspace: Workspace, config: AnyConfig, *, release: bool) -> dict[str, Any] | None:
    """What is to be asked before a run begins: may the chat's model be given up? After a yes (`release`) it is."""
    holder = runner.needs_chat_memory(workspace, config)
    if holder and not release:
        # The time makes each question another value: the page would not hear of an equal one.
        return {"model": PurePath(holder.base).name, "held": holder.memory_bytes, "now": time.time()}
    if holder:
        chat_memory.release(workspace)
    return None


def start_or_ask(
    workspace: Workspace, config: RunConfig, *, release: bool = False, gpus: list[int] | None = None
) -> RunDir | dict[str, Any]:
    """The run, at work or queued (the page says so); or, before anything is done, the question to be asked.

    `release`: the answer was yes, the chat's model may be given up. `gpus`: the cards it shall have, None for any one.
    Raises Refused.
    """
    train_preview.check(config, workspace)
    question = question_first(workspace, config, release=release)
    if question:
        return question
    run = train_preview.launch(workspace, config, gpus)
    say_if_queued(workspace, run)
    return run


def say_if_queued(workspace: Workspace, run: RunDir) -> None:
    """Tell the visitor that a run waits, at which place and for what; nothing when it is at work."""
    if run.state().value != "queued":
        return
    found = place_and_reason(workspace, run, language_of(current_request()))
    if found:
        gr.Info(tr("queue.info.queued", name=name_of(run), place=found[0], why=found[1]), duration=10)
