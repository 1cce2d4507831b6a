"""Data: build an identity set or bring a file, look at every row, save it as a dataset of the workspace."""

from typing import Any

import gradio as gr
from pydantic import ValidationError

from studio.records import DataError, DatasetInfo, DatasetStore, parse_spec
from studio.ui.context import ACTION, PREVIEW, READ, Context, refuse, safe
from studio.ui.i18n import T, tr
from studio.ui.sentences import translated
from studio.ui.tabs import data_view as dv
from studio.ui.widgets.bubbles import event_data, panel
from studio.ui.widgets.form import judged

SPEC = ("name", "author", "languages", "tone", "facts", "replay_share", "rows_per_language", "seed")
VALID = {"name": "Nova", "author": "Nova", "languages": ("en",), "facts": (), "tone": "plain"}


# ---- plain functions over values -----------------------------------------------------------------------------------


def spec_values(values: tuple[Any, ...]) -> dict[str, Any]:
    """Control values in the order of SPEC -> what an IdentitySpec is made from."""
    found = dict(zip(SPEC, values, strict=True))
    facts = [line.strip() for line in str(found["facts"] or "").splitlines() if line.strip()]
    seed = str(found["seed"] or "").strip()
    return found | {"facts": tuple(facts), "languages": tuple(found["languages"] or ()), "seed": seed or 42}


def spec_errors(values: tuple[Any, ...]) -> dict[str, str]:
    """{field: sentence} for every wrong field of the identity form."""
    given, wrong = spec_values(values), {}
    for name in SPEC:
        try:
            parse_spec(VALID | {name: given[name]})
        except DataError as error:
            no_language = name == "languages" and not given["languages"]
            wrong[name] = tr("data.error.languages") if no_language else translated(error.message)
    return wrong


def check_spec(*values: Any) -> list[dict[str, Any]]:
    """Validator of the whole identity form, its title last."""
    wrong = spec_errors(values[: len(SPEC)])
    return [*(judged(wrong.get(name, "")) for name in SPEC), judged("")]


def asked(event: gr.EventData, kind: type[Any] = dv.Ask) -> Any:
    """What the viewer's script sent, checked."""
    try:
        return kind.model_validate(event_data(event))
    except ValidationError as error:
        raise refuse("data.error.request") from error


def edited(row: dv.Row, contents: list[str]) -> dv.Row:
    """A row with the texts of its messages replaced; roles and marks stay. A new row is a question and an answer."""
    messages = row["messages"]
    if len(messages) != len(contents):
        raise refuse("data.error.changed")
    texts = zip(messages, contents, strict=True)
    return row | {"messages": [message | {"content": text.strip()} for message, text in texts]}


NEW_ROW: dv.Row = {
    "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "origin": "upload",
}


class Handlers:
    """What the tab does; every method is an event handler over the datasets of one workspace."""

    def __init__(self, store: DatasetStore) -> None:
        self.store = store

    def preview(self, *values: Any) -> dict[str, Any]:
        """The first page of the identity set the form describes, or why there is none yet."""
        return self._builder(dv.Ask(), values)

    def _builder(self, ask: dv.Ask, values: tuple[Any, ...]) -> dict[str, Any]:
        given = spec_values(values)
        untyped = [name for name in ("name", "author") if not _text(given[name])]
        wrong = {name: text for name, text in spec_errors(values).items() if name not in untyped}
        if wrong or untyped:
            return {"source": "builder", "empty": True, "wrong": wrong}
        return dv.view(dv.from_spec(parse_spec(given)), ask)

    def page(self, event: gr.EventData, *values: Any) -> dict[str, Any]:
        """Another page or another origin of what the viewer shows."""
        *spec, path, name, author = values
        ask = asked(event)
        if ask.source.startswith(dv.SAVED):
            return dv.view(self._saved(ask.source), ask)
        if ask.source == "upload":
            return (
                dv.view(dv.from_upload(path, _text(name), _text(author)), ask)
                if path
                else {"source": "upload", "empty": True}
            )
        return self._builder(ask, tuple(spec))

    def _saved(self, source: str) -> dv.Source:
        return dv.from_store(self.store, source.removeprefix(dv.SAVED))

    def upload(self, path: str | None, name: Any, author: Any) -> dict[str, Any]:
        """An uploaded file in the viewer: what it is, what was skipped, its rows as they would be saved."""
        if not path:
            return {"source": "upload", "empty": True}
        try:
            return dv.view(dv.from_upload(path, _text(name), _text(author)), dv.Ask())
        except DataError as error:
            return {"source": "upload", "empty": True, "notes": [translated(error.message)]}

    def asks_names(self, path: str | None) -> Any:
        """Show the fields for the names when the file has placeholders."""
        try:
            return gr.update(visible=bool(path) and dv.has_placeholders(str(path)))
        except DataError:
            return gr.update(visible=False)

    def save_identity(self, *values: Any) -> tuple[Any, ...]:
        """Save the identity set; shows the saved dataset and chooses it."""
        *given, title = values
        spec = parse_spec(spec_values(tuple(given)))
        found = dv.identity_set(spec)
        info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
        return self._saved_now(self.store.save(_text(title) or spec.name, found.rows, found.heldout, info))

    def save_upload(self, path: str | None, name: Any, author: Any, title: Any) -> tuple[Any, ...]:
        """Save the uploaded file's rows with its placeholders filled."""
        if not path:
            raise refuse("data.error.no_file")
        rows = dv.upload_rows(path, _text(name), _text(author))
        return self._saved_now(self.store.save(_text(title) or _stem(path), rows, [], DatasetInfo(kind="upload")))

    def _saved_now(self, info: DatasetInfo) -> tuple[Any, ...]:
        shown = dv.view(dv.from_store(self.store, info.name), dv.Ask())
        return shown | {"just_saved": True}, info.name, dv.saved_list(self.store)

    def open(self, event: gr.EventData) -> dict[str, Any]:
        """A saved dataset in the viewer."""
        return dv.view(self._saved(dv.SAVED + str(event_data(event).get("name", ""))), dv.Ask())

    def change_row(self, event: gr.EventData) -> tuple[Any, ...]:
        """Write one edited or new row of a saved dataset."""
        edit: dv.RowEdit = asked(event, dv.RowEdit)
        name, rows = self._rows(edit)
        if edit.n < 0:
            rows.append(edited(NEW_ROW, edit.contents))
            edit.offset, edit.origin = len(rows), ""
        else:
            rows[edit.n] = edited(rows[edit.n], edit.contents)
        return self._written(name, rows, edit)

    def delete_row(self, event: gr.EventData) -> tuple[Any, ...]:
        """Remove one row of a saved dataset."""
        edit: dv.RowEdit = asked(event, dv.RowEdit)
        name, rows = self._rows(edit)
        del rows[edit.n]
        return self._written(name, rows, edit)

    def _rows(self, edit: dv.RowEdit) -> tuple[str, list[dv.Row]]:
        """The dataset's rows, if they are still those the visitor saw."""
        name = edit.source.removeprefix(dv.SAVED)
        found = self.store.load(name)
        if found.info.sha256 != edit.sha256 or edit.n >= len(found.rows):
            raise refuse("data.error.changed")
        return name, list(found.rows)

    def _written(self, name: str, rows: list[dv.Row], ask: dv.Ask) -> tuple[Any, ...]:
        self.store.replace_rows(name, rows)
        return dv.view(dv.from_store(self.store, name), ask), dv.saved_list(self.store)

    def delete(self, event: gr.EventData, chosen: str) -> tuple[Any, ...]:
        """Remove a saved dataset."""
        name = str(event_data(event).get("name", ""))
        self.store.delete(name)
        return {"source": "builder", "empty": True}, "" if chosen == name else gr.skip(), dv.saved_list(self.store)

    def train_on(self, event: gr.EventData) -> tuple[Any, ...]:
        """Choose the dataset and go to the Train tab."""
        name = self.store.load(str(event_data(event).get("name", ""))).info.name
        return name, gr.Tabs(selected="train")


def _text(value: Any) -> str:
    """A text field's value; one that was never shown holds None."""
    return str(value or "").strip()


def _stem(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


# ---- layout ----------------------------------------------------------------------------------------------------------


def _builder() -> tuple[dict[str, Any], gr.Textbox, gr.Button]:
    """The identity form: its controls by name, the title, the save button."""
    field: dict[str, Any] = {}

    def look(name: str) -> dict[str, Any]:
        texts = {"label": T(f"data.{name}"), "info": T(f"data.{name}.help")}
        return {**texts, "elem_id": f"data-{name}", "elem_classes": ["field"]}

    def line(name: str, value: str = "") -> gr.Textbox:
        example: dict[str, Any] = {"placeholder": T(f"data.{name}.example")} if name != "seed" else {}
        return gr.Textbox(value, max_lines=1, max_length=200, **example, **look(name))

    with gr.Group(elem_classes=["form-section"], elem_id="data-builder"):
        field["name"], field["author"] = line("name"), line("author")
        languages = [("English", "en"), ("中文", "zh")]
        field["languages"] = gr.CheckboxGroup(languages, value=["en", "zh"], **look("languages"))
        tones = [(T(f"data.tone.{tone}"), tone) for tone in ("plain", "friendly", "formal")]
        field["tone"] = gr.Radio(tones, value="plain", **look("tone"))
        field["facts"] = gr.Textbox(lines=2, max_lines=6, placeholder=T("data.facts.example"), **look("facts"))
    with gr.Accordion(T("data.more"), open=False, elem_id="data-more"), gr.Group(elem_classes=["form-section"]):
        field["replay_share"] = gr.Slider(0, 0.9, value=0.5, step=0.05, buttons=[], **look("replay_share"))
        field["rows_per_language"] = gr.Slider(60, 300, value=96, step=12, buttons=[], **look("rows_per_language"))
        field["seed"] = gr.Textbox("42", max_lines=1, **look("seed"))
        title = gr.Textbox(
            placeholder=T("data.title_field.example"), max_lines=1, max_length=200, **look("title_field")
        )
    save = gr.Button(T("data.save"), variant="primary", elem_id="data-save", elem_classes=["primary-action"])
    return {name: field[name] for name in SPEC}, title, save


def _upload() -> dict[str, Any]:
    """The upload form: file, names for placeholders, title, save button."""
    found: dict[str, Any] = {}
    found["file"] = gr.File(label=T("data.file"), file_types=[".json", ".jsonl"], elem_id="data-file", height=150)
    gr.Markdown(T("data.file.help"), elem_classes=["quiet", "small"])
    with gr.Group(visible=False, elem_id="data-fill") as found["names"]:
        found["name"] = gr.Textbox(label=T("data.fill_name"), info=T("data.fill_name.help"), elem_id="data-fill-name")
        found["author"] = gr.Textbox(label=T("data.fill_author"), elem_id="data-fill-author")
    found["title"] = gr.Textbox(
        label=T("data.title_field"), info=T("data.title_field.help"), elem_id="data-upload-title"
    )
    found["save"] = gr.Button(T("data.save"), variant="primary", elem_id="data-upload-save")
    return found


def build(ctx: Context) -> None:
    """Build the tab."""
    handlers = Handlers(DatasetStore(ctx.workspace.datasets))
    ctx.heading("data")
    with gr.Row(elem_id="data-columns", equal_height=False):
        with gr.Column(scale=5, min_width=320), gr.Tabs(elem_id="data-ways", elem_classes=["subtabs"]):
            with gr.Tab(T("data.way.identity"), id="identity"):
                fields, title, save = _builder()
            with gr.Tab(T("data.way.upload"), id="upload") as upload_tab:
                upload = _upload()
            with gr.Tab(T("data.way.saved"), id="saved", elem_id="data-way-saved") as saved_tab:
                saved = panel("saved", "data-saved")
        with gr.Column(scale=7, min_width=380):
            viewer = panel("rows", "data-rows")
    spec = list(fields.values())
    _wire_builder(ctx, handlers, (fields, title, save), viewer, saved)
    source = [upload["file"], upload["name"], upload["author"]]
    upload["file"].change(safe(handlers.asks_names), upload["file"], upload["names"], **PREVIEW)
    gr.on([item.change for item in source] + [upload_tab.select], safe(handlers.upload), source, viewer, **PREVIEW)
    upload["save"].click(
        safe(handlers.save_upload), [*source, upload["title"]], [viewer, ctx.selected_dataset, saved], **ACTION
    )
    viewer.select(safe(handlers.page), [*spec, *source], viewer, **READ)
    viewer.edit(safe(handlers.change_row), None, [viewer, saved], **ACTION)
    viewer.delete(safe(handlers.delete_row), None, [viewer, saved], **ACTION)
    viewer.apply(safe(handlers.train_on), None, [ctx.selected_dataset, ctx.tabs], **ACTION)
    saved.select(safe(handlers.open), None, viewer, **READ)
    saved.delete(safe(handlers.delete), ctx.selected_dataset, [viewer, ctx.selected_dataset, saved], **ACTION)
    gr.on([ctx.tab["data"].select, saved_tab.select], lambda: dv.saved_list(handlers.store), None, saved, **READ)


def _wire_builder(
    ctx: Context,
    handlers: Handlers,
    form: tuple[dict[str, Any], gr.Textbox, gr.Button],
    viewer: gr.HTML,
    saved: gr.HTML,
) -> None:
    """Live preview with what is wrong, saving."""
    fields, title, save = form
    spec = list(fields.values())
    gr.on([item.change for item in spec] + [ctx.demo.load], safe(handlers.preview), spec, viewer, **PREVIEW)
    save.click(
        safe(handlers.save_identity),
        [*spec, title],
        [viewer, ctx.selected_dataset, saved],
        validator=check_spec,
        **ACTION,
    )
