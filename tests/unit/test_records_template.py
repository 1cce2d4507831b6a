"""Chat templates: where they are found, what they may do, and which tokens carry loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, Message
from studio.records.errors import DataError
from studio.records.template import ChatTemplate, read_template
from studio.records.template_names import named_template

CHATML = named_template("chatml").source
TURNS = [("user", "q1"), ("assistant", "ans1"), ("user", "q2"), ("assistant", "ans2 🔥")]


def talk(*turns: tuple[str, str], train: tuple[bool, ...] | None = None) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns), train=train)


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    """One token per byte, and three control tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "</s>")])
    return tokenizer


def trained_text(backend: Tokenizer, template: str, conversation: Conversation) -> str:
    """The answers that carry loss, as the tokens say, separated by |."""
    tokenizer = ChatTokenizer(backend, ChatTemplate(template, {"eos_token": "</s>"}))
    encoded = tokenizer.encode(conversation)
    groups: list[list[int]] = []
    for index, flag in enumerate(encoded.mask):
        if flag and (not index or not encoded.mask[index - 1]):
            groups.append([])
        if flag:
            groups[-1].append(encoded.ids[index])
    table = {char: byte for char, byte in zip(_byte_chars(), range(256), strict=True)}
    texts = []
    for group in groups:
        raw = b"".join(
            text.encode() if (text := backend.id_to_token(i)).startswith(("<|", "</")) else bytes([table[text]])
            for i in group
        )
        texts.append(raw.decode())
    return "|".join(texts)


def _byte_chars() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


PLAIN = CHATML.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
REWRITES = (  # like models that drop the thinking of earlier turns and write an empty one for the last
    "{%- for m in messages -%}{%- if m.role == 'user' -%}[U]{{ m.content }}{%- else -%}[A]"
    "{%- if loop.last -%}<think></think>{%- endif -%}{{ m.content }}</s>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}[A]{%- endif -%}"
)
LLAMA2 = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"  # noqa: E501
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "ans1<|im_end|>|ans2 🔥<|im_end|>"),
        (PLAIN, "ans1<|im_end|>|ans2 🔥<|im_end|>"),
        (REWRITES, "ans1</s>|<think></think>ans2 🔥</s>"),
        (LLAMA2, " ans1 </s>| ans2 🔥 </s>"),
        (NO_END, "ans1\n|ans2 🔥\n"),
    ],
)
def test_answers_with_their_end_carry_loss(backend: Tokenizer, template: str, expected: str) -> None:
    assert trained_text(backend, template, talk(*TURNS)) == expected


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_only_trained_answers_carry_loss(backend: Tokenizer, template: str) -> None:
    conversation = talk(*TURNS, train=(False, False, False, True))
    assert trained_text(backend, template, conversation) == "ans2 🔥<|im_end|>"


def test_marks_leave_no_trace_in_the_text() -> None:
    marked = ChatTemplate(CHATML).render(talk(*TURNS).as_dicts())
    assert marked.text == ChatTemplate(PLAIN).render(talk(*TURNS).as_dicts()).text
    assert [marked.text[start:end] for start, end in marked.spans] == ["ans1<|im_end|>", "ans2 🔥<|im_end|>"]


def test_padding_of_the_given_tokenizer_does_not_leak_in(backend: Tokenizer) -> None:
    padded = Tokenizer.from_str(backend.to_str())
    padded.enable_padding(length=500)
    padded.enable_truncation(5)
    ours, theirs = (ChatTokenizer(item, ChatTemplate(CHATML)).encode(talk(*TURNS)) for item in (backend, padded))
    assert ours == theirs
    assert padded.padding is not None


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set ns = namespace(__class__=1) %}x",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}x",
        "{{ messages.append(1) }}",
        "{{ dict.__globals__ }}{{ dict.fromkeys.__globals__.x }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{{ raise_exception('no system role here') }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.x }}",
        "{{ messages | nofilter }}",
        "{% if %}",
        "{% generation %}",
        "{{ nothing() }}",
    ],
)
def test_hostile_or_broken_templates_get_a_sentence(template: str) -> None:
    with pytest.raises(DataError) as caught:
        ChatTemplate(template).render(talk(*TURNS).as_dicts())
    assert caught.value.field == "model.chat_template"
    assert "chat template" in caught.value.message


def test_where_the_template_is_found(tmp_path: Path, backend: Tokenizer) -> None:
    with pytest.raises(DataError, match="no tokenizer.json"):
        ChatTokenizer.from_folder(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="has no chat template. Set model.chat_template, for example to 'chatml'"):
        ChatTokenizer.from_folder(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config", "eos_token": {"content": "</s>"}}), encoding="utf-8")
    assert ChatTokenizer.from_folder(tmp_path).template.special_tokens == {"eos_token": "</s>"}
    assert read_template(tmp_path).source == "config"
    several = [{"name": "default", "template": "first"}, {"name": "rag", "template": "second"}]
    config.write_text(json.dumps({"chat_template": several}), encoding="utf-8")
    assert (read_template(tmp_path).source, read_template(tmp_path, "rag").source) == ("first", "second")
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert read_template(tmp_path).source == "file"
    assert read_template(tmp_path, "{{ mine }}").source == "{{ mine }}"
    assert read_template(tmp_path, " chatml ").source == CHATML
    assert read_template(tmp_path, "  ").source == "file"
    with pytest.raises(DataError, match="Did you mean 'chatml'"):
        read_template(tmp_path, "chat_ml")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_broken_model_files_get_a_sentence(tmp_path: Path, backend: Tokenizer, name: str) -> None:
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_bytes(b'{"a": \xff')
    with pytest.raises(DataError, match=f"{name}.*cannot be read") as caught:
        ChatTokenizer.from_folder(tmp_path)
    assert caught.value.field == "model.model_name_or_path"


def test_tokens_only_the_config_knows_are_added(tmp_path: Path, backend: Tokenizer) -> None:
    backend.save(str(tmp_path / "tokenizer.json"))
    tokens = {"900": {"content": "<tool>", "special": True}, "901": {"content": "<note>", "special": False}}
    config = {"chat_template": CHATML, "added_tokens_decoder": tokens}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = ChatTokenizer.from_folder(tmp_path)
    assert len(tokenizer.encode_text("<tool>")) == len(tokenizer.encode_text("<note>")) == 1
