"""The card of a run that ran out of memory, and its one click: change what the doctor offers, and go on."""

from collections.abc import Callable

import gradio as gr

from studio import runner
from studio.memory_doctor import diagnose
from studio.ui.context import ACTION, READ, Context, refuse, safe
from studio.ui.tabs import starting
from studio.ui.widgets import scripted
from studio.ui.widgets.bubbles import event_data

KICK = "() => Studio.feed.kick()"


def build(ctx: Context) -> None:
    """The card; drawn by its script, which is hidden for every run that did not run out of memory."""
    card = scripted("memorydoctor")
    done = card.apply(safe(treat(ctx)), None, None, trigger_mode="once", **ACTION)
    done.success(None, None, None, js=KICK, **READ)
    done.failure(None, None, None, js=KICK, **READ)


def treat(ctx: Context) -> Callable[[gr.EventData], None]:
    """The handler of "apply and resume". Only what the doctor offers now is applied, whatever the page sends."""

    def go_on(event: gr.EventData) -> None:
        asked = event_data(event)
        run = ctx.run(str(asked.get("run") or ""))
        if not run.state().resumable:
            raise refuse("monitor.error.not_resumable")
        found = diagnose(run)
        offered = [one for one in found.remedies if one.continues and one.key == asked.get("key")] if found else []
        if not offered:
            raise refuse("doctor.error.gone")
        runner.resume(run, offered[0].changes)
        starting.say_if_queued(ctx.workspace, run)

    return go_on
