"""Data: four ways to a dataset on the left (an identity, a file, a hub, the saved ones), its rows on the right."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import ValidationError

from studio.records import DatasetInfo, DatasetStore
from studio.ui.context import ACTION, EVENT, PREVIEW, READ, READ_EACH, Context, refuse, safe
from studio.ui.tabs import data_form as form
from studio.ui.tabs import data_hub as hub
from studio.ui.tabs import data_identity as identity
from studio.ui.tabs import data_own as own
from studio.ui.tabs import data_view as dv
from studio.ui.tabs.data_saved import Order, carry_out, saved_list
from studio.ui.widgets.bubbles import event_data, panel
from studio.workspace import Workspace

# The viewer keeps a saved dataset when another tab is opened, but not the rows of a form that is out of sight.
UNLESS_SAVED = "(now) => (now && now.sha256 ? now : {source: 'NAME', empty: true})"

# Reading a file of some megabytes takes seconds: the button shows that it was pressed.
WORKING = "() => { document.querySelector('#data-own-save').classList.add('working'); }"
READING = "() => ({source: 'own', empty: true, busy: true})"


class Handlers:
    """What the tab does; every method is an event handler over one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.store = DatasetStore(workspace.datasets)
        self.identity = identity.IdentityWay(workspace, self.store)
        self.own = own.OwnWay(workspace, self.store)
        self.hub = hub.HubWay(workspace)

    # ---- the viewer ----

    def page(self, event: gr.EventData, *values: Any) -> dict[str, Any]:
        """Other rows of what the viewer shows."""
        ask: dv.Ask = dv.asked(event)
        count = len(identity.FIELDS)
        if ask.source.startswith(dv.SAVED):
            return dv.view_saved(self.store, ask.source.removeprefix(dv.SAVED), ask)
        if ask.source == "own":
            return self.own.shown(ask, own.own(values[count:]))
        return self.identity.shown(ask, values[:count])

    def change_row(self, event: gr.EventData) -> tuple[Any, ...]:
        """Writes one edited or new row of a saved dataset."""
        edit: dv.RowEdit = dv.asked(event, dv.RowEdit)
        name = edit.source.removeprefix(dv.SAVED)
        if edit.n < 0:
            info = self.store.add_row(name, dv.changed_row(edit, None), edit.sha256)
            edit = edit.model_copy(update={"offset": info.rows, "origin": "", "query": ""})
        else:
            # The store compares the fingerprint again, with the dataset locked; here it guards the row that is read.
            found = self.store.page(name, edit.n, 1)
            if found.sha256 != edit.sha256 or not found.rows:
                raise refuse("data.error.changed")
            self.store.change_row(name, edit.n, dv.changed_row(edit, found.rows[0][1]), edit.sha256)
        return dv.view_saved(self.store, name, edit), saved_list(self.store)

    def delete_rows(self, event: gr.EventData) -> tuple[Any, ...]:
        """Removes rows of a saved dataset."""
        gone: dv.RowsGone = dv.asked(event, dv.RowsGone)
        name = gone.source.removeprefix(dv.SAVED)
        self.store.delete_rows(name, gone.numbers, gone.sha256)
        return dv.view_saved(self.store, name, gone), saved_list(self.store)

    def train_on(self, event: gr.EventData) -> tuple[Any, ...]:
        """Chooses the dataset and goes to the Train tab."""
        return self.store.info(_name(event)).name, gr.Tabs(selected="train")

    # ---- saving ----

    def save_identity(self, *values: Any) -> tuple[Any, ...]:
        """Saves the identity set; shows the saved dataset and chooses it."""
        return self._saved_now(self.identity.save(values[:-1], _text(values[-1])))

    def save_own(self, *values: Any) -> tuple[Any, ...]:
        """Saves the file's rows, or starts the import of a big file, which the page then follows."""
        *given, title = values
        made = self.own.save(own.own(given), _text(title))
        if isinstance(made, DatasetInfo):
            return *self._saved_now(made), gr.skip()
        return gr.skip(), gr.skip(), gr.skip(), {"follow": made.id}

    def _saved_now(self, info: DatasetInfo) -> tuple[Any, ...]:
        shown = dv.view_saved(self.store, info.name, dv.Ask()) | {"just_saved": True}
        return shown, info.name, saved_list(self.store)

    # ---- my datasets ----

    def open(self, event: gr.EventData) -> dict[str, Any]:
        """A saved dataset in the viewer."""
        return dv.view_saved(self.store, _name(event), dv.Ask())

    def order(self, event: gr.EventData, chosen: str) -> tuple[Any, ...]:
        """Splits, merges, renames, ...; shows the result and says what was done."""
        try:
            order = Order.model_validate(event_data(event))
        except ValidationError as error:
            raise refuse("data.error.request") from error
        info, said = carry_out(self.store, order)
        renamed = order.op == "rename" and chosen == order.names[0]
        shown = dv.view_saved(self.store, info.name, dv.Ask())
        return shown, info.name if renamed else gr.skip(), saved_list(self.store, said)

    def delete(self, event: gr.EventData, chosen: str) -> tuple[Any, ...]:
        """Removes a saved dataset."""
        name = _name(event)
        self.store.delete(name)
        return dv.empty("builder"), "" if chosen == name else gr.skip(), saved_list(self.store)

    # ---- imports ----

    def imported(self, event: gr.EventData) -> tuple[Any, ...]:
        """What an import has made, shown and chosen."""
        return self._saved_now(self.store.info(_name(event)))

    def stop_import(self, event: gr.EventData) -> None:
        """Stops an import."""
        self.hub.stop(_name(event))

    def forget_import(self, event: gr.EventData) -> None:
        """Takes an ended import off the list."""
        self.hub.forget(_name(event))


def _name(event: gr.EventData) -> str:
    return str(event_data(event).get("name", ""))[:400]


def _text(value: Any) -> str:
    """A text field's value; one that was never shown holds None."""
    return str(value or "").strip()


# ---- layout ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panels:
    """The parts that scripts draw: rows, saved datasets, imports at work."""

    rows: gr.HTML
    saved: gr.HTML
    imports: gr.HTML


def build(ctx: Context) -> None:
    """Build the tab."""
    handlers = Handlers(ctx.workspace)
    ctx.heading("data")
    with gr.Row(elem_id="data-columns", equal_height=False):
        with gr.Column(scale=5, min_width=320):
            with gr.Tabs(elem_id="data-ways", elem_classes=["subtabs"], overflow_behavior="wrap"):
                with form.way("identity") as identity_tab:
                    described = identity.build_form()
                with form.way("own") as own_tab:
                    file = form.build_own(ctx.workspace.path)
                with form.way("hub") as hub_tab:
                    remote = form.build_hub()
                with form.way("saved") as saved_tab:
                    saved = panel("saved", "data-saved", "data")
            imports = panel("imports", "data-imports", "data")
        with gr.Column(scale=7, min_width=380):
            rows = panel("rows", "data-rows", "data")
    panels = Panels(rows, saved, imports)
    _wire_identity(ctx, handlers, described, panels)
    _wire_own(ctx, handlers, file, panels)
    _wire_hub(handlers, remote, panels)
    _wire_panels(ctx, handlers, [*described.fields.values(), *file.fields.values()], panels)
    identity_tab.select(safe(handlers.identity.preview), list(described.fields.values()), rows, **PREVIEW)
    own_tab.select(safe(form.own_again(handlers.own)), list(file.fields.values()), rows, **PREVIEW)
    for name, tab in (("hub", hub_tab), ("saved", saved_tab)):
        tab.select(None, rows, rows, js=UNLESS_SAVED.replace("NAME", name), **EVENT)
    gr.on([ctx.tab["data"].select, saved_tab.select], lambda: saved_list(handlers.store), None, saved, **READ)


def _wire_identity(ctx: Context, handlers: Handlers, described: identity.IdentityForm, panels: Panels) -> None:
    """Live preview with what is wrong, saving."""
    fields = described.fields
    spec = list(fields.values())
    gr.on(
        [item.change for item in spec] + [ctx.demo.load], safe(handlers.identity.preview), spec, panels.rows, **PREVIEW
    )
    gr.on(
        [fields["recipe"].change, fields["replay"].change],
        safe(handlers.identity.applies),
        [fields["recipe"], fields["replay"]],
        [fields["copies"], fields["replay_rows"], fields["replay_share"], described.warning],
        **PREVIEW,
    )
    gr.on(
        [fields["replay"].change, fields["replay_rows"].focus],
        safe(handlers.identity.replay_choices),
        None,
        fields["replay_rows"],
        **READ,
    )
    described.save.click(
        safe(handlers.save_identity),
        [*spec, described.title],
        [panels.rows, ctx.selected_dataset, panels.saved],
        validator=identity.check_spec,
        **ACTION,
    )


def _wire_own(ctx: Context, handlers: Handlers, file: form.OwnForm, panels: Panels) -> None:
    """A new file: what it is. Then every change of how it is read: its rows again."""
    fields = file.fields
    values = list(fields.values())
    fields["way"].change(form.ways_shown, fields["way"], [file.boxes[way] for way in own.WAYS], **PREVIEW)
    new_source = [fields["way"].change, fields["file"].change, fields["text"].change]
    new_source += [fields["path"].submit, file.read.click]
    gr.on(new_source, None, None, panels.rows, js=READING, **EVENT)
    gr.on(
        new_source,
        safe(form.own_chosen(handlers.own)),
        values,
        [panels.rows, *file.steps],
        **PREVIEW,
    )
    by_hand = [fields[name].input for name in ("mapping", "split", "strict", *form.COLUMN_FIELDS)]
    typed = [fields[name].change for name in ("pairs", "name", "author")]
    gr.on(
        [*by_hand, *typed],
        safe(form.own_changed(handlers.own)),
        values,
        [panels.rows, file.columns],
        **PREVIEW,
    )
    file.save.click(None, None, None, js=WORKING, **EVENT)
    done = file.save.click(
        safe(handlers.save_own),
        [*values, file.title],
        [panels.rows, ctx.selected_dataset, panels.saved, panels.imports],
        **ACTION,
    )
    for ended in (done.success, done.failure):
        ended(None, None, None, js=WORKING.replace("add", "remove"), **EVENT)


def _wire_hub(handlers: Handlers, remote: form.HubForm, panels: Panels) -> None:
    """Starting a fetch, which the page then follows."""
    values = list(remote.fields.values())
    starts = [remote.fetch.click, remote.fields["id"].submit]
    gr.on(starts, safe(handlers.hub.start), values, panels.imports, validator=form.check_hub, **ACTION)


def _wire_panels(ctx: Context, handlers: Handlers, forms: list[Any], panels: Panels) -> None:
    """What the page's own parts ask for."""
    rows, saved, imports = panels.rows, panels.saved, panels.imports
    shown = [rows, ctx.selected_dataset, saved]
    rows.select(safe(handlers.page), forms, rows, **READ_EACH)
    # What is asked of a list while it is busy is done next, not dropped in silence; each names what it means.
    rows.edit(safe(handlers.change_row), None, [rows, saved], trigger_mode="multiple", **ACTION)
    rows.delete(safe(handlers.delete_rows), None, [rows, saved], trigger_mode="multiple", **ACTION)
    rows.apply(safe(handlers.train_on), None, [ctx.selected_dataset, ctx.tabs], **ACTION)
    saved.select(safe(handlers.open), None, rows, **READ_EACH)
    saved.apply(safe(handlers.order), ctx.selected_dataset, shown, **ACTION)
    saved.delete(safe(handlers.delete), ctx.selected_dataset, shown, trigger_mode="multiple", **ACTION)
    imports.select(safe(handlers.imported), None, shown, **ACTION)
    imports.stop(safe(handlers.stop_import), None, None, **READ_EACH)
    imports.clear(safe(handlers.forget_import), None, None, **READ_EACH)
