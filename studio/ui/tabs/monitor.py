"""The tab where a run is watched: list of runs, phases, figures, curves, answers, log, verdict, stop and resume."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio import reruns, runner
from studio.changes import PROCESSES
from studio.rundir import RunDir
from studio.ui.context import ACTION, READ, Context, refuse, safe
from studio.ui.tabs import memory_card, monitor_actions, monitor_library, starting
from studio.ui.widgets import scripted
from studio.ui.widgets.bubbles import event_data, panel
from studio.ui.widgets.confirm import hidden_button

KICK = "() => Studio.feed.kick()"


def build(ctx: Context) -> None:
    """Build the tab; everything in it but the hidden buttons and panels is drawn by scripts from the REST reads."""
    ctx.heading("monitor")
    with gr.Row(elem_id="monitor-split", equal_height=False):
        with gr.Column(scale=1, min_width=240, elem_id="monitor-runs"):
            scripted("queue")
            scripted("runlist")
        with gr.Column(scale=4, min_width=320, elem_id="monitor-run"):
            scripted("compare")
            for name in ("runhead", "queueplace"):
                scripted(name)
            memory_card.build(ctx)
            scripted("ranks")
            for name in ("verdict", "tiles", "chart", "comparerest", "samples", "logtail"):
                scripted(name)
    question = panel("resume", "run-resume-question", "startask", visible="hidden")
    stopped = hidden_button("run-stop").click(safe(stop(ctx)), ctx.selected_run, None, trigger_mode="once", **ACTION)
    resumed = hidden_button("run-resume").click(
        safe(resume(ctx)), ctx.selected_run, question, trigger_mode="once", **ACTION
    )
    released = question.apply(safe(resume(ctx, release=True)), ctx.selected_run, question, **ACTION)
    asked = panel("resume", "run-resume-with", "ranks", visible="hidden")
    spread = gr.on([asked.apply], safe(resume_with(ctx)), None, question, trigger_mode="once", **ACTION)
    for done in (stopped, resumed, released, spread):
        done.success(None, None, None, js=KICK, **READ)
        done.failure(None, None, None, js=KICK, **READ)
    monitor_actions.build(ctx)
    monitor_library.build(ctx)


def stop(ctx: Context) -> Callable[[str], None]:
    """The handler of stop-and-save; only asks, the page follows the run's directory."""

    def ask(run_id: str) -> None:
        run: RunDir = ctx.run(run_id)
        if not run.state().live:
            raise refuse("monitor.error.not_live")
        runner.stop_in_background(run)

    return ask


def resume(ctx: Context, *, release: bool = False) -> Callable[[str], Any]:
    """The handler of resume: continues from the last checkpoint, or asks for the memory that the chat holds.

    `release`: that was asked, and the answer was yes.
    """

    def go_on(run_id: str) -> Any:
        run: RunDir = ctx.run(run_id)
        if not run.state().resumable:
            raise refuse("monitor.error.not_resumable")
        question = starting.question_first(ctx.workspace, run.config(), release=release)
        if question:
            return question
        runner.resume(run)
        starting.say_if_queued(ctx.workspace, run)
        return None

    return go_on


def resume_with(ctx: Context) -> Callable[[gr.EventData], Any]:
    """The handler of "resume with…": goes on from the last checkpoint with another number of processes."""

    def go_on(event: gr.EventData) -> Any:
        asked = event_data(event)
        run = ctx.run(str(asked.get("run") or "")[:200])
        if not run.state().resumable:
            raise refuse("monitor.error.not_resumable")
        changes = {PROCESSES: asked.get("processes")}
        question = starting.question_first(ctx.workspace, reruns.cloned(run, changes), release=False)
        if question:
            return question
        runner.resume(run, changes)
        starting.say_if_queued(ctx.workspace, run)
        return None

    return go_on
