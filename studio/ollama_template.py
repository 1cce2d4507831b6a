"""A chat template in the language of Ollama's Modelfiles, learnt from what the Jinja template writes.

The template is asked to write short conversations of words that occur nowhere else. What stands between those words is
all it adds; where that depends on nothing but the roles of two neighbours, it can be said in Go's template language.
Both are then rendered for many conversations and have to be equal, character for character.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.go_template import GoTemplateError, render
from studio.records.errors import DataError
from studio.records.template import ChatTemplate

Message = Mapping[str, str]
_START = ""
_ROLES = ("system", "user", "assistant")
_TURNS = (("user",), ("user", "assistant", "user"), ("user", "assistant", "user", "assistant", "user"))
_LATE_SYSTEM = ("user", "assistant", "system", "user")
CUT_NOTE = "white space around a message is cut in the training and not in Ollama"
THINK_NOTE = "the reasoning of earlier answers, left out in the training, is sent along by Ollama"
DATE_NOTE = "the template writes the date of the day; in Ollama it stays that of the export"
TOOLS_NOTE = "calls of tools are not written in the Modelfile"
SYSTEM_NOTE = "the template knows no system prompt; one that is sent to Ollama is left out"
LATE_NOTE = "a system prompt in the middle of a conversation is left out"


class Unsayable(ValueError):
    """A template that Go's language cannot say; the text is the reason, a part of a sentence."""


@dataclass
class Learnt:
    """What a template writes: `gaps` before a message, by the roles of the one before and of its own; `end` last.

    `late`: the system prompt stands before the last message of the user instead of first; these are its gaps, by the
    role before, and what follows it.
    """

    gaps: dict[tuple[str, str], str] = field(default_factory=dict)
    end: str = ""
    late: dict[str, str] = field(default_factory=dict)
    behind_late: str = ""
    notes: list[str] = field(default_factory=list)


def modelfile_template(template: ChatTemplate, *, drop_begin: bool) -> tuple[str, list[str]]:
    """(the template for a Modelfile, what differs in rare cases). Raises Unsayable with the reason.

    `drop_begin`: the token that begins a text is put there by Ollama, so that the template must not write it.
    """
    learnt = _learn(template)
    begin = template.special_tokens.get("bos_token", "")
    if drop_begin and begin:
        learnt.gaps = {key: text.removeprefix(begin) if key[0] == _START else text for key, text in learnt.gaps.items()}
        learnt.late = {key: text.removeprefix(begin) if key == _START else text for key, text in learnt.late.items()}
    return _said(learnt), learnt.notes


def difference(template: ChatTemplate, said: str, *, drop_begin: bool) -> tuple[int, str]:
    """(conversations compared, the first one both do not write alike or nothing)."""
    begin = template.special_tokens.get("bos_token", "") if drop_begin else ""
    count = 0
    for talk in _conversations(_knows_system(template)):
        wanted = template.render(talk, add_generation_prompt=True).text.removeprefix(begin)
        count += 1
        try:
            if render(said, _as_ollama(talk)) != wanted:
                return count, " / ".join(f"{one['role']}: {one['content']}" for one in talk)
        except GoTemplateError as error:
            return count, str(error)
    return count, ""


def _as_ollama(talk: Sequence[Message]) -> dict[str, Any]:
    """What Ollama gives a template: neighbours of one role as one message, and all system prompts beside them."""
    joined: list[dict[str, str]] = []
    for one in talk:
        if joined and joined[-1]["Role"] == one["role"]:
            joined[-1]["Content"] += f"\n\n{one['content']}"
        else:
            joined.append({"Role": one["role"], "Content": one["content"]})
    system = "\n\n".join(one["content"] for one in talk if one["role"] == "system")
    return {"System": system, "Messages": joined, "Tools": [], "Response": ""}


# ---- learning --------------------------------------------------------------------------------------------------------


def _learn(template: ChatTemplate) -> Learnt:
    learnt = Learnt()
    for roles in _TURNS:
        _take(learnt, roles, _gaps(template, roles))
    if not _knows_system(template):
        learnt.notes.append(SYSTEM_NOTE)
    else:
        _learn_system(learnt, template)
    _note_contents(learnt, template)
    return learnt


def _learn_system(learnt: Learnt, template: ChatTemplate) -> None:
    order, _ = _gaps(template, ("system", *_TURNS[1]))
    if order == [0, 1, 2, 3]:
        for roles in _TURNS:
            _take(learnt, ("system", *roles), _gaps(template, ("system", *roles)))
        try:
            _take(learnt, _LATE_SYSTEM, _gaps(template, _LATE_SYSTEM))
        except (Unsayable, DataError):
            learnt.notes.append(LATE_NOTE)
    elif order == [1, 2, 0, 3]:
        for roles in _TURNS:
            _take_late(learnt, roles, _gaps(template, ("system", *roles)))
    else:
        raise Unsayable("it puts the system prompt where a Modelfile cannot")


def _take(learnt: Learnt, roles: Sequence[str], found: tuple[list[int], list[str]]) -> None:
    """Note the gaps of a conversation. Raises Unsayable when the same neighbours were kept apart otherwise before."""
    order, gaps = found
    if order != list(range(len(roles))):
        raise Unsayable("it changes the order of messages")
    for before, role, gap in zip((_START, *roles), roles, gaps, strict=False):
        if learnt.gaps.setdefault((before, role), gap) != gap:
            raise Unsayable("what it writes before a message depends on more than the message before it")
    if roles is _TURNS[0]:
        learnt.end = gaps[-1]
    elif gaps[-1] != learnt.end:
        raise Unsayable("how it opens an answer depends on the messages before")


def _take_late(learnt: Learnt, roles: Sequence[str], found: tuple[list[int], list[str]]) -> None:
    """The same where the system prompt stands before the last message of the user."""
    order, gaps = found
    if order != [*range(1, len(roles)), 0, len(roles)]:
        raise Unsayable("it puts the system prompt where a Modelfile cannot")
    for before, role, gap in zip((_START, *roles), roles[:-1], gaps, strict=False):
        if learnt.gaps.get((before, role)) != gap:
            raise Unsayable("what it writes before a message depends on the system prompt")
    before = roles[-2] if len(roles) > 1 else _START
    if learnt.late.setdefault(before, gaps[-3]) != gaps[-3] or gaps[-1] != learnt.end:
        raise Unsayable("what it writes before a message depends on more than the message before it")
    if len(learnt.late) > 1 and learnt.behind_late != gaps[-2]:
        raise Unsayable("what it writes behind the system prompt depends on the messages before")
    learnt.behind_late = gaps[-2]


def _gaps(template: ChatTemplate, roles: Sequence[str]) -> tuple[list[int], list[str]]:
    """(the messages in the order they are written in, what stands before, between and behind them)."""
    words = [f"Zq{number}w{role}" for number, role in enumerate(roles)]
    talk = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    text = template.render(talk, add_generation_prompt=True).text
    places = [text.find(word) for word in words]
    if min(places) < 0 or any(text.count(word) > 1 for word in words):
        raise Unsayable("it leaves messages out or writes them twice")
    order = sorted(range(len(words)), key=places.__getitem__)
    gaps, at = [], 0
    for number in order:
        gaps.append(text[at : places[number]])
        at = places[number] + len(words[number])
    return order, [*gaps, text[at:]]


def _knows_system(template: ChatTemplate) -> bool:
    try:
        _gaps(template, ("system", "user"))
    except (Unsayable, DataError):
        return False
    return True


def _note_contents(learnt: Learnt, template: ChatTemplate) -> None:
    """What the template does with the text of a message beside writing it."""
    padded = "  Zq \n"
    if padded not in template.render([{"role": "user", "content": padded}], add_generation_prompt=True).text:
        learnt.notes.append(CUT_NOTE)
    thought = "<think>\nZqt\n</think>\n\nZqa"
    talk = [{"role": role, "content": thought if role == "assistant" else "Zq"} for role in _TURNS[1]]
    if "Zqt" not in template.render(talk, add_generation_prompt=True).text:
        learnt.notes.append(THINK_NOTE)
    if template.today:
        learnt.notes.append(DATE_NOTE)
    if "tools" in template.source:
        learnt.notes.append(TOOLS_NOTE)


# ---- saying ----------------------------------------------------------------------------------------------------------


def _said(learnt: Learnt) -> str:
    """The template in Go's language: every text is quoted, everything around the actions trimmed."""
    lines = ['{{- $before := "" -}}', "{{- range $i, $message := .Messages -}}"]
    for number, role in enumerate(role for role in _ROLES if any(key[1] == role for key in learnt.gaps)):
        lines.append(f'{{{{- {"else if" if number else "if"} eq .Role "{role}" -}}}}')
        lines += [f"  {line}" for line in _message(learnt, role)]
    lines += ["{{- end -}}", "{{- end -}}"]
    lines += ['{{- if eq $before "user" -}}', f"  {_quoted(learnt.end)}", "{{- end -}}"] if learnt.end else []
    text = "\n".join(lines)
    if '"""' in text:
        raise Unsayable("it writes three quotation marks in a row, which end a template in a Modelfile")
    return text


def _message(learnt: Learnt, role: str) -> Iterator[str]:
    gaps = {before: text for (before, own), text in learnt.gaps.items() if own == role}
    if role == "user" and learnt.late:
        yield "{{- if and $.System (eq (len (slice $.Messages $i)) 1) -}}"
        yield from _by_role_before(learnt.late, lambda text: f"{_quoted(text)}{{{{- $.System -}}}}", close=False)
        yield f"{{{{- end -}}}}{_quoted(learnt.behind_late)}"
        yield "{{- else -}}"
        yield from _by_role_before(gaps, _quoted)
        yield "{{- end -}}"
        yield '{{- .Content -}}{{- $before = "user" -}}'
        return
    yield from _by_role_before(gaps, lambda text: f'{_quoted(text)}{{{{- .Content -}}}}{{{{- $before = "{role}" -}}}}')


def _by_role_before(gaps: Mapping[str, str], say: Any, *, close: bool = True) -> Iterator[str]:
    """One branch for each role that may come before; a message after another one is left out."""
    for number, (before, text) in enumerate(gaps.items()):
        yield f'{{{{- {"else if" if number else "if"} eq $before "{before}" -}}}}{say(text)}'
    if close:
        yield "{{- end -}}"


def _quoted(text: str) -> str:
    """An action that writes a text as it is; nothing for an empty one."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}" if text else ""


# ---- proving ---------------------------------------------------------------------------------------------------------

_CONTENTS = (
    "Who are you?",
    '{{ .Role }} and {% if %} are no template, nor is "quoted" \\n',
    "Two\nlines, then\n\ntwo more: 你好，世界！",
    "`code` & <b>tags</b> <|x|> [INST] $5",
    "An end.",
)


def _conversations(with_system: bool) -> Iterator[list[dict[str, str]]]:
    """Conversations of one to four questions, with and without a system prompt."""
    for shift in range(len(_CONTENTS)):
        for turns in range(4):
            roles = ["user", *["assistant", "user"] * turns]
            talk = [
                {"role": role, "content": _CONTENTS[(shift + number) % len(_CONTENTS)]}
                for number, role in enumerate(roles)
            ]
            yield talk
            if with_system:
                yield [{"role": "system", "content": f"Be brief. {_CONTENTS[shift]}"}, *talk]
