"""The card of a run that ran out of memory, and its one click: change what the doctor offers, and go on."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio import reruns, runner
from studio.memory_doctor import diagnose
from studio.ui.context import ACTION, READ, Context, refuse, safe
from studio.ui.tabs import starting
from studio.ui.widgets import scripted
from studio.ui.widgets.bubbles import event_data, panel

KICK = "() => Studio.feed.kick()"


def build(ctx: Context) -> None:
    """The card; drawn by its script, which is hidden for every run that did not run out of memory."""
    card = scripted("memorydoctor")
    asking = panel("treat", "memory-treat", "startask", visible="hidden")
    done = gr.on([card.apply, asking.apply], safe(treat(ctx)), None, asking, trigger_mode="once", **ACTION)
    done.success(None, None, None, js=KICK, **READ)
    done.failure(None, None, None, js=KICK, **READ)


def treat(ctx: Context) -> Callable[[gr.EventData], Any]:
    """The handler of "apply and resume": the run goes on, or the question whether the chat's memory may be had.

    Only what the doctor offers now is applied, whatever the page sends.
    """

    def go_on(event: gr.EventData) -> Any:
        asked = event_data(event)
        run = ctx.run(str(asked.get("run") or ""))
        if not run.state().resumable:
            raise refuse("monitor.error.not_resumable")
        found = diagnose(run)
        offered = [one for one in found.remedies if one.continues and one.key == asked.get("key")] if found else []
        if not offered:
            raise refuse("doctor.error.gone")
        config, release = reruns.cloned(run, offered[0].changes), asked.get("release") is True
        question = starting.question_first(ctx.workspace, config, release=release)
        if question:
            return question | {"again": {"run": run.id, "key": offered[0].key}}
        runner.resume(run, offered[0].changes)
        starting.say_if_queued(ctx.workspace, run)
        return None

    return go_on
