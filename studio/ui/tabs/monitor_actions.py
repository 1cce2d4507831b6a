"""What the Monitor tab does besides stop and resume: the queue, and clones of a run with some fields changed.

Nothing the page sends is trusted: each handler looks at the run, the queue and the cards itself.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from studio import resources, run_queue, runner
from studio.config import RunConfig
from studio.rundir import RunDir
from studio.schema import build as build_config
from studio.schema import flatten, merge
from studio.ui.context import ACTION, READ, Context, refuse, safe
from studio.ui.fieldtexts import label_key
from studio.ui.i18n import table
from studio.ui.tabs import starting
from studio.ui.tabs.train_changes import as_text
from studio.ui.widgets.bubbles import event_data, panel
from studio.workspace import Workspace

MOST_CHANGES = 50
CHANGED = "() => dispatchEvent(new Event('studio:queue-changed'))"


def build(ctx: Context) -> None:
    """The hidden panels through which the page's scripts reach the handlers."""
    queue = panel("actions", "queue-actions", "queue", visible="hidden")
    # Each order counts, also one given while the one before is under way; they are carried out one after the other.
    done = queue.apply(safe(change_queue(ctx)), ctx.selected_run, ctx.selected_run, trigger_mode="multiple", **ACTION)
    for follow in (done.success, done.failure):
        follow(None, None, None, js=CHANGED, **READ)
    cloning = panel("clone", "run-clone", "startask", visible="hidden")
    made = cloning.apply(safe(clone(ctx)), None, [ctx.selected_run, cloning], **ACTION)
    made.success(None, None, None, js=CHANGED, **READ)


# ---- the queue -------------------------------------------------------------------------------------------------------


def change_queue(ctx: Context) -> Callable[[str, gr.EventData], Any]:
    """The handler of all buttons of the queue; returns the run to select when the selected one was removed."""

    def change(selected: str, event: gr.EventData) -> Any:
        asked = event_data(event)
        do = str(asked.get("do") or "")
        if do in ("hold", "go", "many"):
            _change_all(ctx.workspace, do, asked.get("max_running"))
        else:
            _change_one(ctx, ctx.run(str(asked.get("run") or "")), do, asked)
        runner.look_after(ctx.workspace)
        left = ctx.workspace.list_runs()
        if do == "remove" and selected not in {run.id for run in left}:
            return next((run.id for run in left if run.state().live), left[0].id if left else "")
        return gr.skip()

    return change


def _change_all(workspace: Workspace, do: str, many: Any) -> None:
    if do == "hold":
        run_queue.pause_all(workspace)
    elif do == "go":
        run_queue.unpause_all(workspace)
    elif isinstance(many, int):
        run_queue.change_settings(workspace, max_running=many)
    else:
        raise refuse("queue.error.asked")


def _change_one(ctx: Context, run: RunDir, do: str, asked: Mapping[str, Any]) -> None:
    simple = {
        "first": run_queue.run_next,
        "pause": run_queue.pause,
        "unpause": run_queue.unpause,
        "remove": run_queue.remove,
    }
    place = asked.get("place")
    try:
        if do in simple:
            simple[do](run)
        elif do == "move" and isinstance(place, int) and not isinstance(place, bool):
            run_queue.move(run, place)
        elif do == "cards":
            want_cards(ctx.workspace, run, asked.get("gpus"), asked.get("gpu_count"))
        else:
            raise refuse("queue.error.asked")
    except run_queue.NotQueued as error:
        raise refuse("queue.error.gone") from error


def want_cards(workspace: Workspace, run: RunDir, gpus: Any, count: Any) -> None:
    """Give a waiting run other cards to wait for: certain ones, or any so many."""
    known = {card.index for card in resources.cards()}
    certain = isinstance(gpus, list) and bool(gpus) and all(isinstance(card, int) for card in gpus)
    if not (certain and set(gpus) <= known) and not (
        gpus is None and isinstance(count, int) and 1 <= count <= len(known)
    ):
        raise refuse("queue.error.cards")
    with run_queue.locked(workspace):
        entry = run_queue.read(run)
        if entry is None:
            raise refuse("queue.error.gone")
        wanted = (
            {"gpus": sorted(set(gpus)), "gpu_count": len(set(gpus))} if certain else {"gpus": None, "gpu_count": count}
        )
        run_queue.write(run, entry.model_copy(update=wanted))


# ---- clones ----------------------------------------------------------------------------------------------------------


def clone(ctx: Context) -> Callable[[gr.EventData], tuple[Any, Any]]:
    """The handler of "try this": a new run from an old one, with the fields the page names changed."""

    def start(event: gr.EventData) -> tuple[Any, Any]:
        asked = event_data(event)
        run = ctx.run(str(asked.get("run") or ""))
        config = changed_config(run, as_changes(asked.get("changes")))
        made = starting.start_or_ask(ctx.workspace, config, release=asked.get("release") is True)
        if isinstance(made, RunDir):
            return made.id, None
        return gr.skip(), made | {"again": {"run": run.id, "changes": asked.get("changes")}}

    return start


def as_changes(asked: Any) -> dict[str, Any]:
    """{field path: value} as a script or a report asks for it. Raises Refused when it is no such thing."""
    if not isinstance(asked, dict) or not 0 < len(asked) <= MOST_CHANGES:
        raise refuse("clone.error.changes")
    return {str(path): value for path, value in asked.items()}


def changed_config(run: RunDir, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run with fields changed (dotted paths or other accepted names), and a name of its own.

    Raises ConfigError for an unknown field or a wrong value, Refused for a run that is no training.
    """
    config = run.config()
    if not isinstance(config, RunConfig):
        raise refuse("clone.error.kind")
    wanted = {"name": next_name(config.name or run.id), **changes}
    return build_config(RunConfig, merge(RunConfig, config.model_dump(mode="json"), wanted))


def next_name(name: str) -> str:
    """``nova`` -> ``nova_v2`` -> ``nova_v3``."""
    found = re.fullmatch(r"(?P<stem>.+)_v(?P<number>\d{1,4})", name)
    return f"{found['stem']}_v{int(found['number']) + 1}" if found else f"{name}_v2"


def differences(run: RunDir, changes: Mapping[str, Any], language: str) -> list[dict[str, str]]:
    """What a clone with these changes would differ in, as the page shows it: field, label, old and new text.

    Raises as `changed_config` does.
    """
    configs = (changed_config(run, changes), run.config())
    after, before = (flatten(RunConfig, config.model_dump(mode="json")) for config in configs)
    texts = table(language)
    return [
        {
            "field": path,
            "label": texts.get(label_key(path), path),
            "old": _shown(before.get(path)),
            "new": _shown(new),
        }
        for path, new in after.items()
        if new != before.get(path) and path != "name"
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else as_text(value)
