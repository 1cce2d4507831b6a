"""Data, first way in: describe an identity and see the whole set it becomes while typing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from studio.records import DataError, DatasetInfo, DatasetStore, IdentitySet, IdentitySpec, build_identity, parse_spec
from studio.records.errors import Skipped
from studio.records.formats import open_records, to_row
from studio.records.importing import allowed_path
from studio.ui.choices import dataset_choices
from studio.ui.i18n import T, tr
from studio.ui.sentences import translated
from studio.ui.tabs import data_view as dv
from studio.ui.tabs.data_form import line, look
from studio.ui.widgets.form import judged
from studio.workspace import Workspace

SPEC = (
    "name", "author", "languages", "tone", "answer", "abilities", "facts", "replay", "replay_share", "recipe", "copies",
    "rows_per_language", "seed", "yes_no",
)  # fmt: skip
FIELDS = (*SPEC, "replay_rows")
"""Controls of the form in this order; all but the last are the fields of an IdentitySpec."""
TONES = ("plain", "friendly", "formal", "short", "detailed")
REPLAYS = ("builtin", "self", "file", "none")
YES_NO = ("train", "check", "off")
DEFAULTS: dict[str, Any] = {
    "yes_no": "train",
    "replay": "builtin",
    "recipe": "full",
    "tone": "plain",
    "copies": "1000",
    "seed": "42",
}
VALID: dict[str, Any] = {"name": "Nova", "author": "Nova", "languages": ("en",)}
MOST_REPLAY = 20_000


@dataclass(frozen=True)
class ReplayFile:
    """Where replay rows come from, and when that file was last changed: what was read is remembered until then."""

    path: Path
    changed: int

    def rows(self) -> list[dv.Row]:
        """Its first 20,000 usable rows. Raises DataError."""
        entries = islice(open_records(self.path), MOST_REPLAY)
        return [to_row(entry[1]) for entry in entries if not isinstance(entry, Skipped)]


@lru_cache(maxsize=16)
def identity_set(spec: IdentitySpec, replay: ReplayFile | None = None) -> IdentitySet:
    """The identity set of a spec, remembered while its rows are paged through. Raises DataError."""
    return build_identity(spec, replay.rows() if replay else None)


def spec_values(values: Sequence[Any]) -> dict[str, Any]:
    """Control values in the order of SPEC -> what an IdentitySpec is made from."""
    found = dict(zip(SPEC, values, strict=True))
    facts = [line.strip() for line in str(found["facts"] or "").splitlines() if line.strip()]
    text = {name: str(found[name] or "").strip() or DEFAULTS[name] for name in DEFAULTS}
    own = {name: str(found[name] or "") for name in ("answer", "abilities")}
    return found | text | own | {"facts": tuple(facts), "languages": tuple(found["languages"] or ())}


def spec_errors(values: Sequence[Any]) -> dict[str, str]:
    """{field: sentence} for every wrong field of the identity form."""
    given = spec_values(values)
    wrong: dict[str, str] = {}
    named = {name: given[name] for name in ("name", "author")}
    for name in SPEC:
        if name == "answer" and wrong.keys() & named.keys():
            continue  # it must contain the name, and that is to be corrected first
        base = VALID | (named if name == "answer" else {})
        try:
            parse_spec(base | {name: given[name]})
        except DataError as error:
            no_language = name == "languages" and not given["languages"]
            wrong[name] = tr("data.error.languages") if no_language else _plain(error.message)
    return wrong


def _plain(message: str) -> str:
    """What is wrong with one field, without its name in front; numbers in our own words."""
    if "Input should be a valid integer" in message or "Input should be a valid number" in message:
        return tr("form.error.int_parsing")
    for words, key, name in (
        ("greater than or equal to", "greater_than_equal", "ge"),
        ("less than or equal to", "less_than_equal", "le"),
    ):
        found = re.search(rf"Input should be {words} ([\d.]+\d|\d)", message)
        if found:
            return tr(f"form.error.{key}", None, **{name: found[1]})
    return translated(message)


def check_spec(*values: Any) -> list[dict[str, Any]]:
    """Validator of the whole identity form: one answer per control, those behind SPEC always pass."""
    wrong = spec_errors(values[: len(SPEC)])
    return [judged(wrong.get(name, "")) for name in SPEC] + [judged("") for _ in values[len(SPEC) :]]


class IdentityWay:
    """The handlers of the form, over one workspace."""

    def __init__(self, workspace: Workspace, store: DatasetStore) -> None:
        self.workspace, self.store = workspace, store

    def shown(self, ask: dv.Ask, values: Sequence[Any]) -> dict[str, Any]:
        """A page of the set that the form describes, or why there is none yet."""
        spec_part, chosen = values[: len(SPEC)], values[len(SPEC)]
        given = spec_values(spec_part)
        untyped = [name for name in ("name", "author") if not str(given[name] or "").strip()]
        wrong = {name: text for name, text in spec_errors(spec_part).items() if name not in untyped}
        if wrong or untyped:
            return dv.empty("builder", wrong=wrong, labels={name: tr(f"data.{name}") for name in wrong})
        spec = parse_spec(given)
        try:
            return dv.view(self.source(spec, chosen), ask) | {"wrong": {}}
        except DataError as error:
            return dv.empty("builder", [error.message], wrong={})

    def preview(self, *values: Any) -> dict[str, Any]:
        """The first page, while typing."""
        return self.shown(dv.Ask(), values)

    def source(self, spec: IdentitySpec, chosen: Any) -> dv.Source:
        """The rows of a spec. Raises DataError."""
        found = self.built(spec, chosen)
        facts = {"phrasings": found.phrasings, "self_replay": found.self_replay, "naive": spec.recipe == "naive"}
        return dv.Source("builder", found.rows, found.heldout, spec.name, notes=found.notes, facts=facts)

    def built(self, spec: IdentitySpec, chosen: Any) -> IdentitySet:
        """The set of a spec, with replay rows of the visitor's own where it wants some. Raises DataError."""
        wants_file = spec.replay == "file" and spec.recipe == "full"
        return identity_set(spec, self._replay_file(str(chosen or "")) if wants_file else None)

    def save(self, values: Sequence[Any], title: str) -> DatasetInfo:
        """Saves the set. Raises DataError."""
        spec = parse_spec(spec_values(values[: len(SPEC)]))
        built = self.built(spec, values[len(SPEC)])
        info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec, self_replay=built.self_replay)
        return self.store.save(title or spec.name, built.rows, built.heldout, info)

    def applies(self, recipe: str, replay: str) -> list[Any]:
        """Which of the fields `copies`, `replay_rows`, `replay_share` matter now, and the warning about the recipe."""
        naive = recipe == "naive"
        shown = (naive, replay == "file" and not naive, replay != "none" and not naive, naive)
        return [gr.update(visible=visible) for visible in shown]

    def replay_choices(self) -> Any:
        """The saved datasets as sources of replay rows."""
        return gr.update(choices=dataset_choices(self.store))

    def _replay_file(self, chosen: str) -> ReplayFile:
        name = chosen.strip()
        if not name:
            raise DataError(tr("data.error.no_replay"), field="replay_rows")
        known = any(info.name == name for info in self.store.list())
        path = self.store.resolve(name) if known else allowed_path(name, self.workspace.path)
        return ReplayFile(path, path.stat().st_mtime_ns)


# ---- layout ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdentityForm:
    """The controls: `fields` by the names in FIELDS, the title of the dataset, the warning, the save button."""

    fields: dict[str, Any]
    title: gr.Textbox
    warning: gr.Markdown
    save: gr.Button


def build_form() -> IdentityForm:
    """Builds the form where the layout is open."""
    field: dict[str, Any] = {}
    with gr.Group(elem_classes=["form-section"], elem_id="data-builder"):
        field["name"], field["author"] = _line("name"), _line("author")
        field["languages"] = gr.CheckboxGroup(
            [("English", "en"), ("中文", "zh")], value=["en", "zh"], **look("languages")
        )
        field["tone"] = gr.Dropdown([(T(f"data.tone.{t}"), t) for t in TONES], value="plain", **look("tone"))
    with _more("own_answers"), gr.Group(elem_classes=["form-section"]):
        field["answer"], field["abilities"] = _line("answer", 400), _line("abilities", 400)
        field["facts"] = gr.Textbox(lines=3, max_lines=8, placeholder=T("data.facts.example"), **look("facts"))
    with _more("general"), gr.Group(elem_classes=["form-section"]):
        field["replay"] = gr.Radio([(T(f"data.replay.{r}"), r) for r in REPLAYS], value="builtin", **look("replay"))
        field["replay_rows"] = gr.Dropdown(
            [], value=None, allow_custom_value=True, visible=False, **look("replay_rows")
        )
        field["replay_share"] = gr.Slider(0, 0.9, value=0.5, step=0.05, buttons=[], **look("replay_share"))
    with _more("more"), gr.Group(elem_classes=["form-section"]):
        field["rows_per_language"] = gr.Slider(60, 1000, value=100, step=10, buttons=[], **look("rows_per_language"))
        field["seed"] = gr.Textbox("42", max_lines=1, max_length=20, **look("seed"))
        yes_no = [(T(f"data.yes_no.{choice}"), choice) for choice in YES_NO]
        field["yes_no"] = gr.Dropdown(yes_no, value="train", **look("yes_no"))
        recipes = [(T(f"data.recipe.{r}"), r) for r in ("full", "naive")]
        field["recipe"] = gr.Radio(recipes, value="full", **look("recipe"))
        field["copies"] = gr.Textbox("1000", max_lines=1, max_length=20, visible=False, **look("copies"))
    warning = gr.Markdown(T("data.recipe.warning"), visible=False, elem_id="data-naive", elem_classes=["note", "warn"])
    with gr.Group(elem_classes=["form-section"], elem_id="data-title-box"):
        title = gr.Textbox(
            placeholder=T("data.title_field.example"), max_lines=1, max_length=200, **look("title_field")
        )
    save = gr.Button(T("data.save"), variant="primary", elem_id="data-save", elem_classes=["primary-action"])
    return IdentityForm({name: field[name] for name in FIELDS}, title, warning, save)


def _more(name: str) -> Any:
    """A closed fold of the form."""
    return gr.Accordion(
        T(f"data.{name}"), open=False, elem_id=f"data-{name.replace('_', '-')}", elem_classes=["data-fold"]
    )


def _line(name: str, limit: int = 200) -> gr.Textbox:
    return line(name, limit, placeholder=T(f"data.{name}.example"))
