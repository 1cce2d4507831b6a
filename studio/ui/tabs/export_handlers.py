"""What the Export tab does: every method is an event handler over one workspace and checks what comes by itself."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from studio import run_queue, runner
from studio.config import ConvertConfig
from studio.model_choices import ModelChoice, list_choices
from studio.outputs import OutputConfig
from studio.records import DataError
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.ui.context import Context, Refused, refuse
from studio.ui.tabs import export_goals as eg
from studio.ui.tabs.export_import import FILES, keep_uploads, with_paths
from studio.ui.tabs.export_list import goal_of
from studio.ui.tabs.export_review import about, advised, goals, problems, review
from studio.ui.tabs.starting import say_if_queued
from studio.ui.tabs.train_preview import launch
from studio.ui.widgets.bubbles import event_data
from studio.ui.widgets.form import judged, to_control

CONTROLS = ("what", "state", "goals", "name", FILES, *eg.specs())
"""All inputs of a start, in order; `goals` is the panel of the cards."""


class Handlers:
    """The event handlers of the tab."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.workspace = ctx.workspace

    # ---- choosing ----

    def opened(self, selected: str, what: str | None, state: str | None, panel: Any) -> tuple[Any, ...]:
        """Fresh choices. What was chosen stays unless another run was selected meanwhile; else the newest adapter."""
        found = eg.offered(self.workspace)
        keys = [key for _, key in found]
        newest = next((choice for choice in list_choices(self.workspace) if choice.adapter), None)
        first = eg.offered_key(newest) if newest else None
        wanted = (what, selected) if _run_of(panel) == selected else (selected, what)
        key = next((key for key in (*wanted, first, *keys) if key in keys), None)
        last = next((run for run in self.workspace.list_runs() if eg.output_of(run)), None)
        return (
            gr.update(choices=found, value=key),
            *self._of(key, state if key == what else None, _as_seen(panel, selected)),
            {"run": last.id if last else "", "now": time.time()},
        )

    def choose(self, what: str | None, panel: Any) -> tuple[Any, ...]:
        """Another model: what there is of it, facts about it, and the goals for it."""
        return self._of(what, None, panel)

    def choose_state(self, what: str | None, state: str | None, panel: Any) -> tuple[Any, Any]:
        """Another checkpoint."""
        choice = eg.chosen(self.workspace, what, state)
        return about(choice), _cards(choice, panel)

    def _of(self, what: str | None, state: str | None, panel: Any) -> tuple[Any, Any, Any]:
        found = eg.states(self.workspace, what or "")
        picked = next((choice for choice in found if choice.key == state), None) or eg.default_state(found)
        listed = [(eg.state_label(choice), choice.key) for choice in found]
        shown = gr.update(choices=listed, value=picked.key if picked else None, visible=len(listed) > 1)
        return shown, about(picked), _cards(picked, panel)

    # ---- before and at the start ----

    def wish(self, values: Sequence[Any]) -> eg.Wish:
        """What the controls say. Raises Refused for a model that is not offered."""
        shown = dict(zip(CONTROLS, values, strict=True))
        goal = _goal(shown["goals"], None)
        what, state = (str(shown[name]) if shown[name] else None for name in ("what", "state"))
        choice = eg.chosen(self.workspace, what, state) if goal not in (eg.IMPORT, eg.JOB) else None
        options = {name: shown[name] for name in CONTROLS[4:]}
        return eg.Wish(goal, choice, str(shown["name"] or "")[: eg.LONGEST_NAME], options)

    def review(self, *values: Any) -> tuple[Any, Any]:
        """What will happen, for the panel; and the name the result gets when none is typed."""
        wish = self.wish(values)
        if wish.goal == eg.JOB:  # which has a panel of its own
            return {"goal": eg.JOB, "issues": [], "now": time.time()}, gr.skip()
        found = review(self.workspace, wish)
        suggested = eg.free_name(self.workspace, wish) if wish.choice or wish.goal == eg.IMPORT else ""
        # The time makes each answer another value: the page would not hear of an equal one.
        return found | {"now": time.time()}, gr.update(placeholder=suggested)

    def judge(self, *values: Any) -> list[dict[str, Any]]:
        """The validator of Start: the error of each field, inside the field."""
        try:
            wish = self.wish(values)
            if wish.goal != eg.JOB:
                eg.config_of(self.workspace, with_paths(self.workspace, wish))
        except (ConfigError, DataError, Refused) as error:
            wrong = {issue["field"]: issue["message"] for issue in reversed(problems(error))}
            return [judged(wrong.get(name, "")) for name in CONTROLS]
        return [judged("") for _ in CONTROLS]

    def start(self, *values: Any) -> dict[str, Any]:
        """Start the export; the page follows its run. Raises Refused for what the goal does not support."""
        wish = self.wish(values)
        if wish.goal == eg.JOB:
            raise refuse("export.error.job")
        for issue in advised(wish):
            if issue["level"] == "error":
                raise Refused(issue["message"])
        found = with_paths(self.workspace, keep_uploads(self.workspace, wish))
        run = launch(self.workspace, eg.config_of(self.workspace, found))
        say_if_queued(self.workspace, run)
        return {"run": run.id, "started": True, "now": time.time()}

    # ---- afterwards ----

    def stop(self, event: gr.EventData) -> None:
        """Cancel an export that waits or is at work."""
        run, _ = self._export(event)
        if run.state().live:
            runner.stop_in_background(run)
        elif run_queue.read(run) is not None:
            run_queue.remove(run)
        else:
            raise refuse("export.error.over")

    def again(self, selected: str, event: gr.EventData) -> list[Any]:
        """Fill the controls from an earlier export; or, for the goal `next`, with its result. The name stays free.

        `merge_base` says which base to merge into instead.
        """
        run, config = self._export(event)
        after = event_data(event).get("next")
        goal = after if after in eg.FORMATS else goal_of(config)
        choice = self._result_of(run, config) if after in eg.FORMATS else None
        if choice is None and goal != eg.IMPORT:
            choice = self._choice_of(config)
        key = eg.offered_key(choice) if choice else None
        state, facts, cards = self._of(key, choice.key if choice else None, {"chosen": goal, "run": selected or ""})
        wanted = event_data(event).get("merge_base")
        shown = {name: to_control(spec, getattr(config, name, spec.default)) for name, spec in eg.specs().items()}
        shown |= {"merge_base": wanted} if wanted in (eg.specs()["merge_base"].choices or ()) else {}
        what = gr.update(choices=eg.offered(self.workspace), value=key) if choice else gr.skip()
        return [what, state, facts, cards, "", None, *shown.values()]

    def _export(self, event: gr.EventData) -> tuple[RunDir, OutputConfig]:
        run = self.ctx.run(str(event_data(event).get("run") or "")[:200])
        config = eg.output_of(run)
        if config is None:
            raise refuse("export.error.no_export")
        return run, config

    def _result_of(self, run: RunDir, config: OutputConfig) -> ModelChoice:
        """What an earlier export has made. Raises Refused when it is gone."""
        out = str((run.read_report() or {}).get("out") or config.out)
        for choice in list_choices(self.workspace):
            if out in (choice.base, str(choice.adapter)):
                return choice
        raise refuse("export.error.source_gone")

    def _choice_of(self, config: OutputConfig) -> ModelChoice:
        """What an earlier export was made from. Raises Refused when it is gone."""
        adapter = config.source if isinstance(config, ConvertConfig) else getattr(config, "adapter", None)
        base = config.subject
        for choice in list_choices(self.workspace):
            same = Path(adapter) == choice.adapter if adapter else choice.adapter is None and choice.base == base
            if same:
                return choice
        raise refuse("export.error.source_gone")


def _cards(choice: ModelChoice | None, panel: Any) -> dict[str, Any]:
    """The goals for a choice; the one that was chosen stays, and for which run of the page it was."""
    return goals(choice, _goal(panel, choice)) | {"run": _run_of(panel)}


def _run_of(panel: Any) -> str:
    """The run that was selected in the page when the choices were made."""
    return str(panel.get("run") or "") if isinstance(panel, dict) else ""


def _as_seen(panel: Any, selected: str) -> dict[str, Any]:
    return (panel if isinstance(panel, dict) else {}) | {"run": selected or ""}


def _goal(panel: Any, choice: ModelChoice | None) -> str:
    """The goal of the cards; one that cannot be is the usual one."""
    asked = panel.get("chosen") if isinstance(panel, dict) else None
    return asked if asked in eg.GOALS else eg.usual_goal(choice) if choice else eg.GOALS[1]
