"""Chat templates in the language of Modelfiles, equal to the ones trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.go_template import GoTemplateError, render
from studio.ollama_template import (
    CUT_NOTE,
    DATE_NOTE,
    SYSTEM_NOTE,
    THINK_NOTE,
    TOOLS_NOTE,
    Unsayable,
    difference,
    modelfile_template,
)
from studio.records.template import ChatTemplate
from studio.records.template_names import named_template, template_names

EMBER = Path(__file__).resolve().parents[2] / "assets" / "models" / "ember"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LOOP = "{{ bos_token }}{% for m in messages %}"
# The system prompt goes into the last question, as Mistral's newer models were trained.
LATE = (
    "{{- bos_token }}{%- set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{%- for m in (messages[1:] if system else messages) %}{%- if m.role == 'user' %}"
    "{{- '[INST] ' + (system + '\\n\\n' if system and loop.last else '') + m.content + '[/INST]' }}"
    "{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)
# A default system prompt, where none is given.
DEFAULT = (
    "{%- if messages[0].role != 'system' %}{{- '<|system|>Be good.\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, TOKENS)


SOURCES = {name: named_template(name).source for name in template_names() if name != "chatglm2"}
SOURCES |= {"ember": (EMBER / "chat_template.jinja").read_text(encoding="utf-8"), "late": LATE, "default": DEFAULT}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("drop_begin", [True, False])
def test_what_was_learnt_writes_every_conversation_alike(name: str, drop_begin: bool) -> None:
    trained = template(SOURCES[name])
    said, _ = modelfile_template(trained, drop_begin=drop_begin)
    count, other = difference(trained, said, drop_begin=drop_begin)
    assert count >= 20
    assert other == ""


def test_another_template_is_found_out() -> None:
    said, _ = modelfile_template(template(SOURCES["chatml"]), drop_begin=False)
    _, other = difference(template(SOURCES["ember"]), said, drop_begin=False)
    assert other.startswith("user: ")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (LOOP + "{{ loop.index }}{{ m.content }}{% endfor %}", "depends on more than the message before it"),
        (LOOP + "{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}", "leaves messages out or writes them twice"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "changes the order of messages"),
        (LOOP + "{{ m.content }}{% endfor %}{{ messages | length }}", "how it opens an answer depends on the messages"),
    ],
)
def test_what_a_modelfile_cannot_say_is_refused(source: str, said: str) -> None:
    with pytest.raises(Unsayable, match=said):
        modelfile_template(template(source), drop_begin=False)


def test_what_differs_in_rare_cases_is_noted() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content.split('</think>')[-1] | trim }}{% endfor %}"
        "{{ tools or '' }}{{ strftime_now('%Y') }}"
    )
    said, notes = modelfile_template(template(source), drop_begin=False)
    assert notes == [SYSTEM_NOTE, CUT_NOTE, THINK_NOTE, DATE_NOTE, TOOLS_NOTE]
    assert difference(template(source), said, drop_begin=False) == (20, "")


def test_go_templates_are_rendered_as_go_does() -> None:
    values = {"System": "S", "Messages": [{"Role": "user", "Content": "a\n"}, {"Role": "user", "Content": "b"}]}
    assert render("x {{- .System -}} \n y", values) == "xSy"
    assert render("x {{ .System }} y", values) == "x S y"
    assert render('{{ "}} \\"q\\" \\n" }}', values) == '}} "q" \n'
    branch = '{{ if eq $i 0 }}0{{ else if ne $n "" }}1{{ end }}{{ $n = .Role }}'
    loop = f'{{{{ $n := "" }}}}{{{{ range $i, $m := .Messages }}}}{branch}{{{{ end }}}}'
    assert render(loop + "{{ $n }}", values) == "01user"
    assert render("{{ if and .System (eq (len (slice .Messages 1)) 1) }}one{{ end }}", values) == "one"
    assert (
        render('{{ range .Messages }}{{ $.System }}{{ end }}{{ or .Nothing "x" }}{{ not .System }}', values)[:3]
        == "SSx"
    )


@pytest.mark.parametrize(
    "source", ["{{ if .System }}", "{{ end }}", "{{ printf 1 }}", "{{ $x }}", "{{ (len .System }}", "{{ % }}"]
)
def test_broken_go_templates_are_told(source: str) -> None:
    with pytest.raises(GoTemplateError):
        render(source, {"System": "S"})
