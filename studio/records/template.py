"""Chat templates: where a model keeps its own, and rendering a conversation with the answers' places marked.

Rendering follows what transformers' `apply_chat_template` does (same sandbox, same whitespace settings, same extra
functions), so that text made here equals text made there. Inside, each `{% generation %}` block is wrapped in two
noncharacters that are taken out again after rendering: what stood between them is an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from studio.records.conversation import MARKS
from studio.records.errors import DataError, nearest, shown

FIELD = "model.chat_template"
_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK = re.compile("|".join(MARKS))
_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}"
    "{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
BUILT_IN = {"chatml": CHATML}


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation; `spans` are the (start, end) characters of the generation blocks."""

    text: str
    spans: list[tuple[int, int]]


class ChatTemplate:
    """A compiled chat template. `source` is its text, `marks_answers` whether it has generation blocks.

    Raises DataError (field model.chat_template) when the text is no valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.marks_answers = bool(_TAG.search(source))
        try:
            self._compiled = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            where = f" in line {line}" if line else ""
            raise DataError(
                f"The chat template is not valid{where}: {shown(str(error), 160)}. "
                "Correct it, or leave the field empty.",
                field=FIELD,
            ) from None

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> Rendered:
        """The text of a conversation and the places of its answers. Raises DataError when the template refuses it."""
        try:
            marked = self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (*_TEMPLATE_FAULTS, RecursionError) as error:
            raise DataError(
                f"The chat template cannot write this conversation: {shown(str(error), 160)}. "
                "Change the conversation, or choose another chat template.",
                field=FIELD,
            ) from None
        return _unmark(marked)


def read_template(folder: Path, override: str | None = None) -> str:
    """The chat template of a model folder, or `override`: a template text or the name of one.

    Raises DataError (field model.chat_template) when there is none or the name is unknown.
    """
    return choose_template(_own_templates(folder), override, folder.name)


def choose_template(own: Mapping[str, str], override: str | None, model: str) -> str:
    """The template to use: `override` (a text or a name), else the one of `own` called default.

    `own` maps the names of the model's templates to their texts. Raises DataError (field model.chat_template).
    """
    wanted = (override or "").strip()
    if "{{" in wanted or "{%" in wanted:
        return override or ""
    named = {**BUILT_IN, **own}
    if (wanted or "default") in named:
        return named[wanted or "default"]
    if wanted:
        raise DataError(
            f"There is no chat template '{shown(wanted)}'.{nearest(wanted[:60], named)} "
            f"Known: {', '.join(sorted(named))}. Choose one, write a template text, or leave the field empty.",
            field=FIELD,
        )
    raise DataError(f"The model {model} has no chat template. Set model.chat_template, for example to 'chatml'.", FIELD)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder; empty when there is no such file. Raises DataError when it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        raise _unreadable(path, TypeError("not an object"))
    return content


def _own_templates(folder: Path) -> dict[str, str]:
    """Name -> text; the unnamed one is called default. A .jinja file wins over the one in the JSON files."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        found.update(named_templates(read_json(folder / name).get("chat_template")))
    files = {"default": folder / "chat_template.jinja"}
    files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    for name, path in files.items():
        try:
            found[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from None
    return found


def named_templates(value: Any) -> dict[str, str]:
    """Name -> text of a `chat_template` entry in any of the shapes transformers writes."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path.name} in the model folder {path.parent.name} cannot be read ({type(error).__name__}). "
        "Copy the model again.",
        field="model.model_name_or_path",
    )


def _unmark(marked: str) -> Rendered:
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    length = last = 0
    for match in _MARK.finditer(marked):
        parts.append(marked[last : match.start()])
        length += len(parts[-1])
        last = match.end()
        if match.group() == MARKS[0]:
            opened.append(length)
        elif opened:
            spans.append((opened.pop(), length))
    parts.append(marked[last:])
    return Rendered("".join(parts), sorted(spans))


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`: the part of the text the model itself writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_mark"), [], [], body)
        block.set_lineno(line)
        return block

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{MARKS[0]}{caller()}{MARKS[1]}"


class _SafeNamespace(Namespace):
    """Jinja's namespace without names that start with an underscore: no way to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _SafeDict:
    """`dict(...)` for templates, without the attributes of the real type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the attribute {name} is not allowed")


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_SafeDict(), namespace=_SafeNamespace)
    return environment
