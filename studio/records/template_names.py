"""Chat templates by name: what a base model without one of its own can be taught to speak.

The parts of each are data in presets/templates; here they are put together to one Jinja template with
`{% generation %}` marks around everything the model has to write itself: the answer, its suffix and the end token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from studio.records.errors import DataError, nearest, shown

FIELD = "model.chat_template"
FOLDER = Path(__file__).resolve().parents[2] / "presets" / "templates"
_CONTENT = "message['content']"
_TOOLS_HEAD = "You can call these functions; each line describes one as a JSON schema:\n<tools>"
_TOOLS_TAIL = (
    "\n</tools>\nTo call one, write its name and arguments as JSON between these tags:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
)


@dataclass(frozen=True)
class NamedTemplate:
    """A chat template with its name (empty for one without), a label for people, and the texts that end an answer."""

    name: str
    label: str
    source: str
    stop_words: tuple[str, ...] = ()


class Parts(BaseModel):
    """One file of presets/templates.

    `system` and `user` hold the place of the content (`{system}`, `{input}`), `user` perhaps that of the round's number
    (`{round}`). `bos` opens the text where that is more than the model's bos token. `assistant` opens an answer,
    `suffix` closes it, and the model's eos token follows unless `suffix_is_end`. `separator` stands between an answer
    and the next turn. `intro` is a text of its own for `system`. `tools`: function calls can be written too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    bos: str = ""
    intro: str = ""
    system: str = ""
    user: str
    assistant: str = ""
    suffix: str = ""
    suffix_is_end: bool = False
    separator: str = ""
    stop_words: tuple[str, ...] = ()
    tools: bool = False


@cache
def template_names() -> tuple[str, ...]:
    """Every name, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def named_template(name: str) -> NamedTemplate:
    """The template called `name`. Raises DataError (field model.chat_template) with the nearest name."""
    if name not in template_names():
        raise unknown_template(name, template_names())
    parts = _parts(name)
    return NamedTemplate(name, parts.label, _source(parts), parts.stop_words)


def check_template_name(name: str | None, field: str) -> None:
    """Raises DataError for a name nobody knows, where only a name can be given."""
    known = template_names()
    if name and name not in known:
        near = nearest(name[:60], known)
        sentence = f"There is no chat template '{shown(name)}'.{near} Known: {', '.join(known)}. Choose one of them."
        raise DataError(sentence, field=field)


def unknown_template(name: str, known: tuple[str, ...]) -> DataError:
    """The error for a name nobody knows."""
    return DataError(
        f"There is no chat template '{shown(name)}'.{nearest(name[:60], known)} Known: {', '.join(known)}. "
        "Choose one, write a template text, or leave the field empty.",
        field=FIELD,
    )


def _parts(name: str) -> Parts:
    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    same_as = data.pop("same_as", None)
    return Parts.model_validate(_parts(same_as).model_dump() | data if same_as else data)


def _source(parts: Parts) -> str:
    """The Jinja text; every tag eats the white space around it, so only what is written in quotes is written."""
    lines = ["{%- set turn = namespace(round=0) -%}"] if "{round}" in parts.user else []
    lines.append(_bos(parts))
    lines += _tool_list(parts) if parts.tools else []
    lines += ["{%- for message in messages -%}", *_between(parts)]
    lines += ["{%- if message['role'] == 'system' -%}", *_system(parts)]
    lines += ["{%- elif message['role'] == 'user' -%}", *_user(parts)]
    lines += ["{%- elif message['role'] == 'assistant' -%}", *_assistant(parts)]
    lines += ["{%- elif message['role'] == 'tool' -%}", *_tool_result(parts)] if parts.tools else []
    lines += ["{%- else -%}", "{{- raise_exception('this template knows no role ' + message['role']) -}}"]
    lines += ["{%- endif -%}", "{%- endfor -%}"]
    if parts.assistant:
        lines += ["{%- if add_generation_prompt -%}", _text(parts.assistant), "{%- endif -%}"]
    return "\n".join(lines)


def _bos(parts: Parts) -> str:
    return _text(parts.bos) or "{{- bos_token -}}"


def _text(text: str) -> str:
    """Jinja that writes a text as it is; nothing for an empty one."""
    return f"{{{{- {_quoted(text)} -}}}}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _around(pattern: str, place: str, value: str) -> str:
    """Jinja that writes a pattern with `value`, a Jinja expression, in its place."""
    before, after = pattern.split(place)
    return f"{_text(before)}{{{{- {value} -}}}}{_text(after)}"


def _between(parts: Parts) -> list[str]:
    """What stands between an answer and the next turn: the separator, and bos again where eos came before."""
    bos = "" if parts.suffix_is_end else _bos(parts)
    if not (parts.separator or bos):
        return []
    follows = "loop.previtem is defined and loop.previtem['role'] == 'assistant'"
    return [f"{{%- if {follows} -%}}", f"{_text(parts.separator)}{bos}", "{%- endif -%}"]


def _system(parts: Parts) -> list[str]:
    if not parts.system:
        refusal = "raise_exception('there is no place for a system prompt')"
        return [f"{{%- if {_CONTENT} -%}}{{{{- {refusal} -}}}}{{%- endif -%}}"]
    once = " and not tools" if parts.tools else ""
    pattern = parts.system.replace("{intro}", parts.intro)
    return [f"{{%- if {_CONTENT}{once} -%}}", _around(pattern, "{system}", _CONTENT), "{%- endif -%}"]


def _user(parts: Parts) -> list[str]:
    if "{round}" not in parts.user:
        return [_around(parts.user, "{input}", _CONTENT)]
    before, after = parts.user.split("{round}")
    count = "{%- set turn.round = turn.round + 1 -%}"
    return [count, f"{_text(before)}{{{{- turn.round -}}}}{_around(after, '{input}', _CONTENT)}"]


def _assistant(parts: Parts) -> list[str]:
    end = "" if parts.suffix_is_end else "{{- eos_token -}}"
    calls = _tool_calls() if parts.tools else []
    answer = [f"{{{{- {_CONTENT} -}}}}", *calls, f"{_text(parts.suffix)}{end}"]
    return [_text(parts.assistant), "{%- generation -%}", *answer, "{%- endgeneration -%}"]


def _tool_list(parts: Parts) -> list[str]:
    """A system turn with the functions, behind the system prompt if there is one."""
    before, after = parts.system.split("{system}")
    first = "messages[0]['content']"
    return [
        "{%- if tools -%}",
        _text(before),
        f"{{%- if messages[0]['role'] == 'system' and {first} -%}}{{{{- {first} + \"\\n\\n\" -}}}}{{%- endif -%}}",
        _text(_TOOLS_HEAD),
        '{%- for tool in tools -%}{{- "\\n" -}}{{- tool | tojson -}}{%- endfor -%}',
        _text(_TOOLS_TAIL + after),
        "{%- endif -%}",
    ]


def _tool_calls() -> list[str]:
    return [
        "{%- for item in message['tool_calls'] or [] -%}",
        "{%- set call = item['function'] or item -%}",
        f'{{%- if {_CONTENT} or not loop.first -%}}{{{{- "\\n" -}}}}{{%- endif -%}}',
        _text('<tool_call>\n{"name": ') + "{{- call['name'] | tojson -}}" + _text(', "arguments": '),
        "{{- call['arguments'] if call['arguments'] is string else call['arguments'] | tojson -}}",
        _text("}\n</tool_call>") + "{%- endfor -%}",
    ]


def _tool_result(parts: Parts) -> list[str]:
    """Results in the user's place; those of several calls share one turn."""
    before, after = parts.user.split("{input}")
    return [
        f"{{%- if loop.previtem is defined and loop.previtem['role'] == 'tool' -%}}{_text(chr(10))}"
        f"{{%- else -%}}{_text(before)}{{%- endif -%}}",
        _around("<tool_response>\n{input}\n</tool_response>", "{input}", _CONTENT),
        "{%- if loop.nextitem is undefined or loop.nextitem['role'] != 'tool' -%}" + _text(after) + "{%- endif -%}",
    ]
