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
TOGETHER = "together-"
FEW_CARDS = 8


def card_choices() -> list[tuple[str, str]]:
    """What can be chosen as the cards of a run: any one, one of this machine's, or several that train together."""
    one = [(f"{gpu.index} · {gpu.name}", str(gpu.index)) for gpu in cards()]
    several = [(f"{count} {T('train.cards.together')}", f"{TOGETHER}{count}") for count in _numbers_together()]
    return [(T("train.cards.any"), ANY_CARD), *several, *one]


def _numbers_together() -> list[int]:
    """How many cards may train together: every number of a few, of many the powers of two and all."""
    count = len(cards())
    return [n for n in range(2, count + 1) if count <= FEW_CARDS or n & (n - 1) == 0 or n == count]


def together(choice: Any) -> int | None:
    """How many cards a choice puts together; None for a choice of one card."""
    number = str(choice or "").removeprefix(TOGETHER)
    return int(number) if str(choice).startswith(TOGETHER) and number.isdecimal() else None


def together_choice(count: int) -> str | None:
    """The choice of so many cards together; None where it is not offered."""
    return f"{TOGETHER}{count}" if count in _numbers_together() else None


def wanted_cards(choice: Any) -> list[int] | None:
    """The cards a choice stands for; None for any, as many as the run has processes here. Raises Refused for a card
    that is not there."""
    if choice in (None, "", ANY_CARD) or together(choice) in _numbers_together():
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
