"""Chat templates: where a model keeps its own, and rendering a conversation with the answers' places marked.

Rendering follows what transformers' `apply_chat_template` does (same sandbox, same whitespace settings, same extra
functions), so that text made here equals text made there. Inside, each `{% generation %}` block is wrapped in two
noncharacters that are taken out again after rendering: what stood between them is an answer.
"""

from __future__ import annotations

import contextlib
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

from studio.records.conversation import MARKS, broken_text
from studio.records.errors import DataError, shown
from studio.records.template_names import FIELD, NamedTemplate, named_template, template_names, unknown_template

_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK = re.compile("|".join(MARKS))
_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation; `spans` are the (start, end) characters of the generation blocks."""

    text: str
    spans: list[tuple[int, int]]


class ChatTemplate:
    """A compiled chat template. `source` is its text, `marks_answers` whether it has generation blocks.

    `stop_words` are texts that end an answer, beside the model's end token.
    Raises DataError (field model.chat_template) when the text is no valid template.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, stop_words: Sequence[str] = ()
    ) -> None:
        self.source = source
        self.stop_words = tuple(stop_words)
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

    @property
    def today(self) -> str:
        """The date, if the template may write it; else nothing."""
        return _now("%Y-%m-%d") if "strftime_now" in self.source else ""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """The text of a conversation and the places of its answers. Raises DataError when the template refuses it.

        `tools` are the functions the assistant may call, described as JSON schemas.
        """
        self._check_tools(messages, tools)
        try:
            return _unmark(self._write(messages, tools, add_generation_prompt))
        except (*_TEMPLATE_FAULTS, RecursionError) as error:
            refusal = error
        if messages and messages[0]["role"] == "system":
            with contextlib.suppress(*_TEMPLATE_FAULTS, RecursionError):
                without = _unmark(self._write(messages[1:], tools, add_generation_prompt))
                if not messages[0]["content"].strip():
                    return without
                raise no_system_prompt()
        raise DataError(
            f"The chat template cannot write this conversation: {shown(str(refusal), 160)}. "
            "Change the conversation, or choose another chat template.",
            field=FIELD,
        )

    def _write(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, prompt: bool
    ) -> str:
        return self._compiled.render(
            messages=[dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            documents=None,
            add_generation_prompt=prompt,
            **self.special_tokens,
        )

    def _check_tools(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Raises DataError for tools in a template that would leave them out without a word, and for broken ones."""
        calls = [message["tool_calls"] for message in messages if message.get("tool_calls")]
        results = any(message["role"] == "tool" for message in messages)
        for used, word in ((tools, "tools"), (calls, "tool_calls"), (results, "tool")):
            if used and word not in self.source:
                raise DataError(
                    "This chat template cannot write calls of tools. Choose one that can, for example 'chatml', "
                    "or take the tools out of the data.",
                    field=FIELD,
                )
        reason = broken_text(json.dumps([calls, tools], ensure_ascii=False, default=str)) if tools or calls else None
        if reason:
            raise DataError(f"A description or call of a tool {reason}. Correct it in the data.")


def no_system_prompt() -> DataError:
    """The error for a system prompt under a template that knows none."""
    return DataError(
        "This chat template has no place for a system prompt. Remove the system prompt, "
        "or choose another chat template.",
        field=FIELD,
    )


def read_template(folder: Path, override: str | None = None) -> NamedTemplate:
    """The chat template of a model folder, or `override`: a template text or the name of one.

    Raises DataError (field model.chat_template) when there is none or the name is unknown.
    """
    return choose_template(_own_templates(folder), override, folder.name)


def choose_template(own: Mapping[str, str], override: str | None, model: str) -> NamedTemplate:
    """The template to use: `override` (a text, or a name of the model's or of ours), else the model's default one.

    `own` maps the names of the model's templates to their texts. Raises DataError (field model.chat_template).
    """
    wanted = (override or "").strip()
    if "{{" in wanted or "{%" in wanted:
        return NamedTemplate("", "", override or "")
    if wanted in own and wanted != "default":
        return NamedTemplate(wanted, wanted, own[wanted])
    if wanted in template_names():
        return named_template(wanted)
    if wanted:
        raise unknown_template(wanted, tuple(sorted({*template_names(), *own})))
    if "default" in own:
        return NamedTemplate("", "", own["default"])
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
