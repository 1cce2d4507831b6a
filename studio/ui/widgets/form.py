"""A form derived from a configuration model: one control per field, errors inside the field, no list of fields here.

Numbers are text fields on purpose: Gradio turns an empty number field into 0 and rounds what it cannot show.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import gradio as gr
from pydantic import BaseModel

from studio.prompts import as_line
from studio.schema import ConfigError, FieldError, FieldSpec, build, flatten, nest, walk
from studio.ui.fieldtexts import help_key, label_key
from studio.ui.i18n import T, current_request, language_of, table
from studio.ui.sentences import translated
from studio.ui.widgets.sources import choice_control, entries_control

# These say what a file is; a person has nothing to choose there.
FIXED = ("kind", "schema_version")
RADIO_CHOICES = 3
UNSET = ""


def error_text(error: FieldError, request: gr.Request | None = None) -> str:
    """The sentence of an error in the visitor's language, by its code; the model's own English where there is none."""
    language = language_of(request or current_request())
    texts = table(language)
    said = _sentence(error, texts) or first_up(_told(error, language))
    if not error.entry:
        return said
    name = texts.get(label_key(f"{error.path}.{error.name}"), error.name)
    key = "form.error.entry.field" if name else "form.error.entry"
    return texts[key].format(entry=error.entry, name=name, said=said)


def _told(error: FieldError, language: str) -> str:
    """What the model says, translated where it is known, without the dotted name that a rule between fields begins
    with: the page shows it at that field."""
    sentence = re.sub(r"^[a-z_]+(\.[a-z_]+)+: ", "", error.message)
    return translated(sentence, language)


def _sentence(error: FieldError, texts: Mapping[str, str]) -> str:
    """The text for the error's code; "" where there is none."""
    path = f"{error.path}.{error.name}" if error.name else error.path
    text = texts.get(f"form.error.{error.code}:{path}") or texts.get(f"form.error.{error.code}")
    try:
        if text:
            return text.format(**error.context)
    except (KeyError, IndexError):  # the context lacks a number the sentence wants
        return error.message
    return ""


def first_up(text: str) -> str:
    """A text with a capital."""
    return text[:1].upper() + text[1:]


def judged(problem: str) -> dict[str, Any]:
    """The answer of a validator: what is wrong with a value, or "" when all is well."""
    return dict(gr.validate(not problem, problem))


def to_control(spec: FieldSpec, value: Any) -> Any:
    """A configuration value as its control shows it."""
    if spec.kind == "bool" and not spec.optional:
        return bool(value)
    if spec.item:
        entries = value if isinstance(value, list) else [] if value is None else [value]
        return [_shown_entry(spec.item, entry) for entry in entries]
    if value is None:
        return UNSET
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return _joined([as_line(item) for item in value], "\n" if spec.ui.multiline else ", ")
    return str(value)


def from_control(spec: FieldSpec, shown: Any) -> Any:
    """What a control shows as a configuration value; text of numbers stays text and is judged by the model."""
    if spec.item:
        return [_read_entry(spec.item, entry) for entry in shown] if isinstance(shown, list) else shown or []
    if isinstance(shown, bool):
        return shown
    text = "" if shown is None else str(shown)
    if spec.kind == "list":
        return _items(spec, text)
    if not spec.ui.multiline:
        text = text.strip()
    if not text.strip():
        return None if spec.optional or spec.kind != "str" else ""
    return text


def _shown_entry(item: type[BaseModel], entry: Any) -> dict[str, Any]:
    """One entry of a list of sections as {path: control value}; a bare name is the value of its first field."""
    specs = walk(item)
    given = entry.model_dump() if isinstance(entry, BaseModel) else entry
    flat = flatten(item, given) if isinstance(given, Mapping) else {specs[0].path: given}
    return {spec.path: to_control(spec, flat.get(spec.path, spec.default)) for spec in specs}


def _read_entry(item: type[BaseModel], shown: Any) -> Any:
    """What the control shows for one entry as a mapping; anything else is left to the model to refuse."""
    if not isinstance(shown, Mapping):
        return shown
    specs = {spec.path: spec for spec in walk(item)}
    found = {name: from_control(specs[name], value) if name in specs else value for name, value in shown.items()}
    needed = {name: "" for name, spec in specs.items() if not spec.optional and found.get(name, "") is None}
    return {name: value for name, value in (found | needed).items() if value is not None}


def _joined(items: list[str], separator: str) -> str:
    """Items as one text; as a JSON list when one of them could not be told apart again."""
    text = separator.join(items)
    plain = all(item and item.strip() == item and separator.strip(" ") not in item for item in items)
    return text if plain and _is_json_list(text) is None else json.dumps(items, ensure_ascii=False)


def _is_json_list(text: str) -> list[str] | None:
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _items(spec: FieldSpec, text: str) -> Any:
    listed = _is_json_list(text)
    if listed is not None:
        return listed
    if spec.ui.multiline:
        return [line.strip() for line in text.splitlines() if line.strip()]
    names = [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]
    # A field that also takes a word or a pattern (all-linear) keeps it as such; plain names make a list.
    is_word = len(names) == 1 and str in get_args(spec.annotation) and not re.fullmatch(r"[\w.]+", names[0])
    return names[0] if is_word else names


def _chosen(spec: FieldSpec, value: Any, look: Mapping[str, Any]) -> Any:
    """The control of a switch or of a few choices."""
    if spec.kind == "bool" and not spec.optional:
        return gr.Checkbox(value, **look)
    if spec.kind == "bool":
        three = [(T("form.automatic"), UNSET), (T("form.on"), "true"), (T("form.off"), "false")]
        return gr.Radio(three, value=value, **look)
    choices = list(spec.choices or ())
    return (gr.Radio if len(choices) <= RADIO_CHOICES else gr.Dropdown)(choices, value=value, **look)


def _typed(spec: FieldSpec, value: Any, look: Mapping[str, Any]) -> Any:
    """The control of a text, a number or a list of texts."""
    lines = 3 if spec.ui.multiline else 1
    return gr.Textbox(value, lines=lines, max_lines=8 if lines > 1 else 1, **look)


class Form:
    """The controls of one model. Create it inside ``gr.Blocks``, then :meth:`place` fields until none is left.

    ``suggestions`` gives the path of a text field a drop-down of values; anything else may still be typed there.
    ``lists`` does so for a long text and for the fields of an entry of a list of sections, by the name of the list
    the page asks for (see `choices.all_choices`).
    """

    def __init__(
        self,
        model: type[BaseModel],
        suggestions: Mapping[str, Sequence[tuple[str, str]]] | None = None,
        lists: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.specs = [spec for spec in walk(model) if spec.path not in FIXED]
        self.suggestions = dict(suggestions or {})
        self.lists = dict(lists or {})
        self._placed: dict[str, Any] = {}

    # ---- building ------------------------------------------------------------------------------------------------

    def paths(self, *, advanced: bool) -> list[str]:
        """Paths of the basic or the advanced fields, in order of declaration."""
        return [spec.path for spec in self.specs if spec.ui.advanced is advanced]

    def sections(self) -> list[str]:
        """Names of the sections that have advanced fields, in order."""
        return list(dict.fromkeys(spec.section for spec in self.specs if spec.ui.advanced))

    def place(self, paths: Sequence[str]) -> None:
        """Build the controls of ``paths`` here, in the layout that is open."""
        for path in paths:
            if path in self._placed:
                raise ValueError(f"the field {path} has a control already")
            self._placed[path] = self._control(self.spec(path))

    def place_rest(self, section: str) -> None:
        """Build the advanced controls of a section that are not placed yet."""
        rest = [s.path for s in self.specs if s.section == section and s.ui.advanced and s.path not in self._placed]
        self.place(rest)

    def spec(self, path: str) -> FieldSpec:
        """The field at ``path``."""
        return next(spec for spec in self.specs if spec.path == path)

    def __getitem__(self, path: str) -> Any:
        return self._placed[path]

    @property
    def components(self) -> list[Any]:
        """All controls in order of declaration; KeyError while a field has none."""
        return [self._placed[spec.path] for spec in self.specs]

    def _control(self, spec: FieldSpec) -> Any:
        names = " · ".join((spec.name, *spec.ui.aliases))
        look: dict[str, Any] = {
            "label": T(label_key(spec.path)),
            "info": f"`{names}` {T(help_key(spec.path))}",
            "elem_id": "f-" + spec.path.replace(".", "-"),
            "elem_classes": ["field"],
            "visible": self._applies(spec, self.defaults()),
        }
        if spec.item:
            return entries_control(spec, self.lists, look)
        value = to_control(spec, spec.default)
        if spec.path in self.lists:
            return choice_control(spec, self.lists[spec.path], value, look)
        if spec.path in self.suggestions:
            choices = list(self.suggestions[spec.path])
            return gr.Dropdown(choices, value=value or None, allow_custom_value=True, **look)
        return _chosen(spec, value, look) if spec.kind == "bool" or spec.choices else _typed(spec, value, look)

    # ---- values --------------------------------------------------------------------------------------------------

    def defaults(self) -> dict[str, Any]:
        """{path: control value} before anything is typed."""
        return {spec.path: to_control(spec, spec.default) for spec in self.specs}

    @staticmethod
    def _applies(spec: FieldSpec, shown: Mapping[str, Any]) -> bool:
        return spec.ui.when is None or shown.get(spec.ui.when[0]) in spec.ui.when[1]

    def mapping(self, values: Sequence[Any]) -> dict[str, Any]:
        """Control values in the order of :attr:`components` -> nested mapping, without what does not apply."""
        shown = {spec.path: value for spec, value in zip(self.specs, values, strict=True)}
        flat: dict[str, Any] = {}
        for spec in self.specs:
            value = from_control(spec, shown[spec.path])
            # An emptied field that needs a value must be named as empty, not quietly become its default.
            if self._applies(spec, shown):
                flat[spec.path] = "" if value is None and not spec.optional else value
        return nest(flat)

    def config(self, values: Sequence[Any]) -> BaseModel:
        """The validated model. Raises ConfigError naming every wrong field."""
        return build(self.model, self.mapping(values))

    def errors(self, values: Sequence[Any]) -> dict[str, FieldError]:
        """{path: error} of what the controls show; {} when all is well."""
        try:
            self.config(values)
        except ConfigError as error:
            return {self.blamed(item): item for item in reversed(error.errors)}  # of several in one field the first
        return {}

    def blamed(self, error: FieldError) -> str:
        """The path of the field an error belongs to; a rule between fields names one at the start of its sentence."""
        if error.path:
            return error.path
        known = {spec.path for spec in self.specs}
        return next((word.strip(",.:;") for word in error.message.split() if word.strip(",.:;") in known), "")

    def validator(self, *values: Any) -> list[dict[str, Any]]:
        """For ``validator=`` of an event that has all controls as inputs: the error of each field, inside the field."""
        wrong = self.errors(values)
        return [judged(error_text(wrong[spec.path]) if spec.path in wrong else "") for spec in self.specs]

    def show(self, mapping: Mapping[str, Any], *, keep: Sequence[str] = ()) -> list[Any]:
        """Updates that make the controls show a mapping over the defaults; fields in ``keep`` stay as they are."""
        flat = flatten(self.model, mapping)
        shown = self.defaults() | {s.path: to_control(s, flat[s.path]) for s in self.specs if s.path in flat}
        return [
            gr.update(visible=self._applies(spec, shown))
            if spec.path in keep
            else gr.update(value=_held(self._placed[spec.path], shown[spec.path]), visible=self._applies(spec, shown))
            for spec in self.specs
        ]

    def applying(self, shown: Mapping[str, Any]) -> set[str]:
        """Paths of the fields that matter while the controls show ``{path: value}``."""
        return {spec.path for spec in self.specs if self._applies(spec, shown)}


def _held(control: Any, shown: Any) -> Any:
    """What a control holds to show a value: an empty drop-down None, an empty box no tick."""
    if isinstance(control, gr.Dropdown):
        return shown or None
    return bool(shown) if isinstance(control, gr.Checkbox) else shown
