"""The forms of the Data tab for a file of one's own and for a hub: their controls, and what changes in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.records.errors import DataError
from studio.records.importing import allowed_folders
from studio.ui.choices import mapping_choices
from studio.ui.context import Refused, sentence
from studio.ui.i18n import T
from studio.ui.tabs import data_hub as hub
from studio.ui.tabs import data_own as own
from studio.ui.tabs import data_view as dv
from studio.ui.widgets.form import judged

COLUMN_FIELDS = tuple(f"column_{column}" for column in own.COLUMNS)


def way(name: str) -> gr.Tab:
    """The tab of one way in."""
    return gr.Tab(T(f"data.way.{name}"), id=name, elem_id=f"data-way-{name}")


def look(name: str, *, explain: bool = True) -> dict[str, Any]:
    """Label, explanation and id of a control."""
    texts = {"label": T(f"data.{name}")} | ({"info": T(f"data.{name}.help")} if explain else {})
    return {**texts, "elem_id": f"data-{name.replace('_', '-').replace('.', '-')}", "elem_classes": ["field"]}


def line(name: str, limit: int = 400, *, explain: bool = True, **more: Any) -> gr.Textbox:
    """One line of text."""
    return gr.Textbox(max_lines=1, max_length=limit, **look(name, explain=explain), **more)


def _found() -> list[tuple[str, str]]:
    return [(T("data.mapping.auto"), "")]


# ---- a file of one's own ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnForm:
    """Controls by the names in own.FIELDS; `boxes` per way; the columns step, the names fold, title and save."""

    fields: dict[str, Any]
    boxes: dict[str, gr.Group]
    read: gr.Button
    reading: gr.Group
    columns: gr.Group
    names: gr.Accordion
    title: gr.Textbox
    save: gr.Button

    @property
    def steps(self) -> list[Any]:
        """What a new file changes, in the order of `own_chosen`."""
        columns = [self.fields[name] for name in COLUMN_FIELDS]
        return [self.reading, self.columns, self.names, self.fields["mapping"], self.fields["split"], *columns]


def build_own(workspace: Path) -> OwnForm:
    """Builds the form where the layout is open."""
    field: dict[str, Any] = {}
    ways = [(T(f"data.from.{name}"), name) for name in own.WAYS]
    field["way"] = gr.Radio(ways, value="file", **look("from", explain=False), show_label=False, container=False)
    boxes, read = _sources(field, workspace)
    with gr.Group(visible=False, elem_classes=["form-section"], elem_id="data-reading") as reading:
        field["mapping"] = gr.Dropdown(
            [*_found(), (T("data.mapping.by_hand"), own.BY_HAND), *mapping_choices()], value="", **look("mapping")
        )
        field["split"] = gr.Dropdown([], value=None, allow_custom_value=True, visible=False, **look("split"))
        field["strict"] = gr.Checkbox(False, **look("strict"))
    with gr.Group(visible=False, elem_classes=["form-section"], elem_id="data-columns-step") as columns:
        gr.Markdown(T("data.columns.lead"), elem_classes=["section-head"])
        for name in COLUMN_FIELDS:
            field[name] = gr.Dropdown([], value=None, allow_custom_value=True, **look(name))
    names = gr.Accordion(T("data.names"), open=False, elem_id="data-names", elem_classes=["data-fold"])
    with names, gr.Group(elem_classes=["form-section"]):
        field["name"], field["author"] = line("fill_name", 200), line("fill_author", 200)
        field["pairs"] = gr.Textbox(lines=2, max_lines=8, placeholder="Qwen => Nova", **look("pairs"))
    with gr.Group(elem_classes=["form-section"], elem_id="data-own-title-box"):
        title = gr.Textbox(
            label=T("data.title_field"),
            info=T("data.title_field.help"),
            max_lines=1,
            max_length=200,
            elem_id="data-own-title",
            elem_classes=["field"],
        )
    save = gr.Button(T("data.save"), variant="primary", elem_id="data-own-save", elem_classes=["primary-action"])
    return OwnForm({name: field[name] for name in own.FIELDS}, boxes, read, reading, columns, names, title, save)


def _sources(field: dict[str, Any], workspace: Path) -> tuple[dict[str, gr.Group], gr.Button]:
    """The three places rows may come from, of which one is shown; the button that reads a path."""
    boxes: dict[str, gr.Group] = {}
    with gr.Group(elem_id="data-from-file", elem_classes=["plain-group"]) as boxes["file"]:
        # No list of suffixes here: the reader's sentence tells what to do with a file of another kind.
        field["file"] = gr.File(label=T("data.file"), elem_id="data-file", height=140)
        gr.Markdown(T("data.file.help"), elem_classes=["quiet", "small"])
    with gr.Group(visible=False, elem_id="data-from-text", elem_classes=["form-section"]) as boxes["text"]:
        field["text"] = gr.Textbox(
            lines=8, max_lines=16, placeholder=T("data.text.example"), max_length=own.LONGEST_PASTED, **look("text")
        )
    with gr.Group(visible=False, elem_id="data-from-path", elem_classes=["form-section"]) as boxes["path"]:
        field["path"] = line("path", 4096, placeholder=T("data.path.example"))
        read = gr.Button(T("data.path.read"), size="md", elem_id="data-path-read")
        folders = "\n".join(f"- `{folder}`" for folder in allowed_folders(workspace))
        gr.Markdown(T("data.path.allowed"), elem_classes=["quiet", "small"])
        gr.Markdown(folders, elem_id="data-folders", elem_classes=["quiet", "small"])
    return boxes, read


def ways_shown(chosen: str) -> list[Any]:
    """Only the controls of the chosen way."""
    return [gr.update(visible=name == chosen) for name in own.WAYS]


def own_again(ways: own.OwnWay) -> Callable[..., dict[str, Any]]:
    """Handler: the rows of the form, when its tab is opened again."""

    def shown(*values: Any) -> dict[str, Any]:
        return ways.shown(dv.Ask(), own.own(values))

    return shown


def own_chosen(ways: own.OwnWay) -> Callable[..., list[Any]]:
    """Handler: another file. What was said about the one before is forgotten; see OwnForm.steps for the order."""

    def looked(*values: Any) -> list[Any]:
        given = own.own(values).model_copy(update={"mapping": "", "columns": {}, "split": ""})
        known, proposed, unknown = ways.columns(given)
        splits = ways.splits(given)
        given = given.model_copy(update={"columns": proposed if unknown else {}})
        found = ways.shown(dv.Ask(), given)
        choices = [("—", ""), *((name, name) for name in known)]
        chosen = bool(known) or not found.get("empty") or bool(splits)
        return [
            found,
            gr.update(visible=chosen),
            gr.update(visible=unknown),
            gr.update(open=ways.has_placeholders(given)),
            gr.update(value=""),
            gr.update(choices=splits, value=None, visible=bool(splits)),
            *(gr.update(choices=choices, value=proposed.get(column, "")) for column in own.COLUMNS),
        ]

    return looked


def own_changed(ways: own.OwnWay) -> Callable[..., tuple[Any, ...]]:
    """Handler: another way to read the same file, or other names."""

    def changed(*values: Any) -> tuple[Any, ...]:
        try:
            given = own.own(values)
        except (Refused, DataError) as error:
            return dv.empty("own", [sentence(error)]), gr.skip()
        return ways.shown(dv.Ask(), given), gr.update(visible=ways.asks_columns(given))

    return changed


# ---- a hub -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubForm:
    """Controls by the names in hub.FIELDS, and the button."""

    fields: dict[str, Any]
    fetch: gr.Button


def build_hub() -> HubForm:
    """Builds the form where the layout is open."""
    field: dict[str, Any] = {}
    gr.Markdown(T("data.hub.lead"), elem_classes=["quiet", "small"], elem_id="data-hub-lead")
    if hub.offline():
        gr.Markdown(T("data.hub.offline"), elem_id="data-hub-offline", elem_classes=["note", "warn"])
    with gr.Group(elem_classes=["form-section"], elem_id="data-hub-box"):
        field["id"] = line("hub_id", 400, placeholder="owner/name")
        hubs = [("Hugging Face", "huggingface"), ("ModelScope 魔搭", "modelscope")]
        field["hub"] = gr.Radio(hubs, value="huggingface", **look("hub"))
        field["subset"], field["split"] = line("hub_subset", 200), line("hub_split", 200)
    more = gr.Accordion(T("data.hub.more"), open=False, elem_id="data-hub-more", elem_classes=["data-fold"])
    with more, gr.Group(elem_classes=["form-section"]):
        choices = [*_found(), *mapping_choices()]
        field["mapping"] = gr.Dropdown(choices, value="", allow_custom_value=True, **look("hub_mapping"))
        field["rows"], field["title"] = line("hub_rows", 20), line("hub_title", 200)
        field["strict"] = gr.Checkbox(False, **look("hub_strict"))
    fetch = gr.Button(T("data.hub.fetch"), variant="primary", elem_id="data-hub-fetch", elem_classes=["primary-action"])
    return HubForm({name: field[name] for name in hub.FIELDS}, fetch)


def check_hub(*values: Any) -> Sequence[dict[str, Any]]:
    """Validator of the hub form."""
    return [judged(problem) for problem in hub.check(*values)]
