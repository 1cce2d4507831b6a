"""What the list of runs does to runs: titles, tags, deleting, the same run again, its settings in the Train form.

Nothing the page sends is trusted: each handler looks at the runs itself.
"""

from collections.abc import Callable
from typing import Any, Literal

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio import labels, reruns
from studio.run_deletion import delete_runs
from studio.rundir import RunDir
from studio.ui.context import ACTION, READ, READ_EACH, Context, refuse, safe
from studio.ui.sentences import translated
from studio.ui.tabs import starting
from studio.ui.widgets.bubbles import event_data, panel

CHANGED = "() => dispatchEvent(new Event('studio:library-changed'))"


class Order(BaseModel):
    """What the page asks to be done to the runs of some ids."""

    model_config = ConfigDict(extra="ignore")

    do: Literal["rename", "tag", "delete"]
    runs: list[str] = Field(min_length=1, max_length=2000)
    title: str = Field(default="", max_length=400)
    add: list[str] = Field(default=[], max_length=50)
    remove: list[str] = Field(default=[], max_length=50)


def build(ctx: Context) -> None:
    """The hidden panels through which the page's scripts reach the handlers."""
    orders = panel("orders", "library-orders", "runlist", visible="hidden")
    done = orders.apply(safe(carry_out(ctx)), ctx.selected_run, ctx.selected_run, trigger_mode="multiple", **ACTION)
    asking = panel("again", "library-again", "startask", visible="hidden")
    started = gr.on([orders.select, asking.apply], safe(again(ctx)), None, [ctx.selected_run, asking], **ACTION)
    for event in (done, started):
        event.success(None, None, None, js=CHANGED, **READ)
        event.failure(None, None, None, js=CHANGED, **READ)
    if ctx.recall:
        fill, filled = ctx.recall
        orders.edit(safe(open_in_form(ctx, fill)), None, [ctx.tabs, *filled], **READ_EACH)


def order_of(event: gr.EventData) -> Order:
    """The order in an event. Raises Refused when it is none."""
    try:
        return Order.model_validate(event_data(event))
    except ValidationError as error:
        raise refuse("library.error.asked") from error


def carry_out(ctx: Context) -> Callable[[str, gr.EventData], Any]:
    """The handler of titles, tags and deleting; returns the run to select when the selected one is gone."""

    def change(selected: str, event: gr.EventData) -> Any:
        order = order_of(event)
        if order.do == "delete":
            return _delete(ctx, order.runs, selected)
        for run in [ctx.run(run_id) for run_id in order.runs]:
            if order.do == "rename":
                labels.rename(run, order.title)
            else:
                labels.tag(run, order.add, order.remove)
        return gr.skip()

    return change


def _delete(ctx: Context, run_ids: list[str], selected: str) -> Any:
    found = delete_runs(ctx.workspace, run_ids)
    if found.refused:
        # Those that could be deleted are; the visitor hears of the others, and the list shows what is left.
        shown = [translated(sentence) for sentence in found.refused[:3]]
        more = len(found.refused) - len(shown)
        gr.Warning("\n".join(shown + ([f"+ {more}"] if more > 0 else [])), duration=12)
    if selected not in found.runs:
        return gr.skip()
    return next((run.id for run in ctx.workspace.list_runs()), "")


def again(ctx: Context) -> Callable[[gr.EventData], tuple[Any, Any]]:
    """The handler of "run exactly this again": at work or queued, or the question to be asked before."""

    def start(event: gr.EventData) -> tuple[Any, Any]:
        asked = event_data(event)
        run = ctx.run(str(asked.get("run") or ""))
        made = starting.start_or_ask(ctx.workspace, reruns.frozen(run), release=asked.get("release") is True)
        if not isinstance(made, RunDir):
            return gr.skip(), made | {"again": {"run": run.id}}
        for sentence in reruns.changed_data(ctx.workspace, run):
            gr.Warning(translated(sentence), duration=12)
        return made.id, None

    return start


def open_in_form(ctx: Context, fill: Callable[[str], list[Any]]) -> Callable[[gr.EventData], list[Any]]:
    """The handler of "change and train": the Train tab with the settings of a run in its form."""

    def show(event: gr.EventData) -> list[Any]:
        run = ctx.run(str(event_data(event).get("run") or ""))
        return [gr.Tabs(selected="train"), *fill(run.id)]

    return show
