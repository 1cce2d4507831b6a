"""Our rendering, tokens and loss mask equal those of transformers' apply_chat_template."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from tiny import byte_tokenizer
from transformers import AutoTokenizer

from studio.records.chat_tokenizer import ChatTokenizer, Encoded
from studio.records.conversation import Conversation, Message
from studio.records.errors import DataError
from studio.records.template import ChatTemplate
from studio.records.template_names import named_template, template_names
from tests.unit import test_mask_families as families

pytestmark = pytest.mark.engine
EMBER = Path(__file__).resolve().parents[2] / "assets" / "models" / "ember"

PIECES = [
    "Who are you?", "你是谁？", "I am Sprout.", "我是小芽。", "12 + 7 = 19", "  spaces  inside ",
    "line\nbreak\n\nand more",
    "🔥👩‍👩‍👧‍👦", "龘靐齉爩", "𠀀𠮷", "ﷺ العربية", "Ünïcödé é", "tab\there", "<b>&amp;</b>", "{{ not jinja }}",
    "{% nor this %}",
    "'quotes' \"double\"", "\\g<0> $1 %s", "한국어", "ไทย", "a", " ", "…", "x" * 300, "０１２", "user_2048",
]  # fmt: skip


def conversations(count: int, seed: int = 7) -> list[Conversation]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        turns = [("system", text(rng))] if rng.random() < 0.4 else []
        for _ in range(rng.randint(1, 4)):
            turns += [("user", text(rng)), ("assistant", text(rng))]
        made.append(Conversation(messages=tuple(Message(role=role, content=said) for role, said in turns)))
    return made


def text(rng: random.Random) -> str:
    hanzi = "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(rng.randint(0, 4)))
    joined = "".join(rng.choices(PIECES, k=rng.randint(1, 4))) + hanzi
    return joined if joined.strip() else "ok"


@pytest.fixture(scope="module")
def reference():
    return AutoTokenizer.from_pretrained(EMBER)


@pytest.fixture(scope="module")
def ours() -> ChatTokenizer:
    return ChatTokenizer.from_folder(EMBER)


def test_ids_and_mask_equal_transformers(reference, ours: ChatTokenizer) -> None:
    for conversation in conversations(200):
        expected = reference.apply_chat_template(
            conversation.as_dicts(), return_assistant_tokens_mask=True, return_dict=True
        )
        got = ours.encode(conversation)
        assert got.ids == expected["input_ids"]
        assert got.mask == expected["assistant_masks"]
        assert 0 < sum(got.mask) < len(got.mask)


def test_generation_prompt_equals_transformers(reference, ours: ChatTokenizer) -> None:
    for conversation in conversations(40, seed=11):
        asked = conversation.as_dicts()[:-1]
        expected = reference.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert ours.template.render(asked, add_generation_prompt=True).text == expected


def test_without_marks_the_difference_gives_the_same_mask(ours: ChatTokenizer) -> None:
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", ours.template.source)
    unmarked = ChatTokenizer(ours.backend, ChatTemplate(plain))
    assert not unmarked.template.marks_answers
    for conversation in conversations(60, seed=3):
        assert unmarked.encode(conversation) == ours.encode(conversation)


TEMPLATES = {
    "trim": "{% for m in messages %}\n  {% if m.role == 'user' %}\nU:{{ m.content | trim }}\n"
    "  {% elif m.role == 'assistant' %}"
    "\n{% generation %}A:{{ m.content }}<|im_end|>{% endgeneration %}\n\n  {% endif %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{{ m | tojson }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}"
    "{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}",
    "specials": "{{ pad_token }}{% for m in messages %}{{ dict(a=m.role) }}{% if m.role == 'assistant' %}"
    "{%- generation -%} {{ m['content'].upper() }} {%- endgeneration -%}{% endif %}{{ eos_token }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_other_templates_equal_transformers(reference, ours: ChatTokenizer, name: str) -> None:
    other = ChatTokenizer(ours.backend, ChatTemplate(TEMPLATES[name], ours.template.special_tokens))
    for conversation in conversations(30, seed=5):
        if name in ("trim", "specials") and conversation.messages[0].role == "system":
            with pytest.raises(DataError, match="no place for a system prompt"):  # it would be lost without a word
                other.encode(conversation)
            continue
        expected = reference.apply_chat_template(
            conversation.as_dicts(),
            chat_template=TEMPLATES[name],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        got = other.encode(conversation)
        assert got.ids == expected["input_ids"]
        spans = other.template.render(conversation.as_dicts()).spans
        ends_in_one_token = all(
            len(ours.encode_text(other.template.render(conversation.as_dicts()).text[end - 1 : end])) == 1
            for _, end in spans
        )
        if ends_in_one_token:  # transformers loses the last bytes of a block that ends in the middle of a character
            assert got.mask == expected["assistant_masks"]


@pytest.mark.parametrize("name", template_names())
def test_named_templates_equal_transformers(name: str) -> None:
    """Ids and mask of every template of ours, as any other program gets them from the saved file."""
    reference = byte_tokenizer()
    reference.add_special_tokens({"bos_token": "<s>"})
    named = named_template(name)
    reference.chat_template = named.source
    specials = {"bos_token": "<s>", "eos_token": str(reference.eos_token)}
    tokenizer = ChatTokenizer(reference.backend_tokenizer, ChatTemplate(named.source, specials))
    for conversation in conversations(12, seed=23):
        if name == "minicpm" and conversation.messages[0].role == "system":
            continue
        expected = reference.apply_chat_template(
            conversation.as_dicts(), return_assistant_tokens_mask=True, return_dict=True
        )
        assert tokenizer.encode(conversation) == Encoded(expected["input_ids"], expected["assistant_masks"])


@pytest.mark.parametrize("name", [*families.FAMILIES, "our chatml"])
def test_families_with_tools_are_written_as_transformers_writes_them(name: str) -> None:
    family = families.FAMILIES.get(name) or families.Family(
        named_template("chatml").source, families.chatml, tools=True
    )
    reference = byte_tokenizer()
    reference.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    template = ChatTemplate(family.jinja, {"bos_token": "<s>", "eos_token": "</s>"})
    rng = random.Random(name)
    for conversation in (families.made_up(rng, family) for _ in range(40)):
        for messages, prompt in ((conversation.as_dicts(), False), (conversation.as_dicts()[:-1], True)):
            expected = reference.apply_chat_template(
                messages,
                tools=list(conversation.tools) or None,
                chat_template=family.jinja,
                add_generation_prompt=prompt,
                tokenize=False,
            )
            assert template.render(messages, tools=conversation.tools, add_generation_prompt=prompt).text == expected
