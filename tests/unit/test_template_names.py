"""The chat templates that can be chosen by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, Message
from studio.records.errors import DataError
from studio.records.template import ChatTemplate, choose_template
from studio.records.template_names import FOLDER, named_template, template_names

# What XTuner knows, and ChatML.
NAMES = [
    "baichuan2_chat", "baichuan_chat", "chatglm2", "chatglm3", "chatml", "code_llama_chat", "cohere_chat",
    "deepseek_coder", "deepseek_moe", "deepseek_v2", "deepseekcoder", "default", "gemma", "internlm2_chat",
    "internlm_chat", "llama2_chat", "llama3_chat", "minicpm", "minicpm3", "mistral", "mixtral", "moss_sft", "phi3_chat",
    "qwen_chat", "vicuna", "wizardcoder", "wizardlm", "zephyr",
]  # fmt: skip
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]
SYSTEM = {"role": "system", "content": "sys"}
# The answer's own end, where it is not the model's eos token.
ENDS = {
    "chatml": "<|im_end|>", "internlm2_chat": "<|im_end|>", "qwen_chat": "<|im_end|>", "minicpm3": "<|im_end|>",
    "internlm_chat": "<eoa>", "deepseek_v2": "<｜end▁of▁sentence｜>", "gemma": "<end_of_turn></s>",
    "cohere_chat": "<|END_OF_TURN_TOKEN|>", "llama3_chat": "<|eot_id|>", "phi3_chat": "<|end|>",
}  # fmt: skip
STOPS = {
    "chatml": ["<|im_end|>"], "internlm2_chat": ["<|im_end|>"], "minicpm3": ["<|im_end|>", "<|endoftext|>"],
    "qwen_chat": ["<|im_end|>", "<|endoftext|>"], "internlm_chat": ["<eoa>"], "moss_sft": ["<eoc>", "<eom>"],
    "deepseek_v2": ["<｜end▁of▁sentence｜>"], "gemma": ["<end_of_turn>"], "cohere_chat": ["<|END_OF_TURN_TOKEN|>"],
    "llama3_chat": ["<|eot_id|>"], "phi3_chat": ["<|end|>"],
}  # fmt: skip


def template(name: str) -> ChatTemplate:
    return ChatTemplate(named_template(name).source, SPECIALS)


def test_every_name_is_there() -> None:
    assert list(template_names()) == sorted(NAMES)
    assert len({named_template(name).label for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_answers_are_marked(name: str) -> None:
    end = ENDS.get(name, "</s>")
    for messages in (
        TALK,
        [{"role": "system", "content": ""}, *TALK],
        *([] if name == "minicpm" else [[SYSTEM, *TALK]]),
    ):
        rendered = template(name).render(messages)
        assert [rendered.text[start:stop] for start, stop in rendered.spans] == [f"a1{end}", f"a2{end}"]
        outside = [
            rendered.text[b:c] for (_, b), (c, _) in zip([(0, 0), *rendered.spans], rendered.spans, strict=False)
        ]
        assert "u1" in outside[0]
        assert "u2" in outside[1]
        assert ("sys" in outside[0]) == (messages[0] is SYSTEM)
        assert template(name).render([m for m in messages if m["content"]]).text == rendered.text
        before = template(name).render(messages[:-1], add_generation_prompt=True).text
        assert rendered.text == f"{before}a2{end}"  # what is trained is what generation continues with
    assert named_template(name).stop_words == tuple(STOPS.get(name, []))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "internlm2_chat",
            "<s><|im_start|>system\nsys<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>",
        ),
        ("default", "<s><|System|>:sys\n<|User|>:u1\n<|Bot|>:a1</s>\n<s><|User|>:u2\n<|Bot|>:a2</s>"),
        ("internlm_chat", "<s><|System|>:sys\n<|User|>:u1<eoh>\n<|Bot|>:a1<eoa>\n<|User|>:u2<eoh>\n<|Bot|>:a2<eoa>"),
        (
            "chatglm2",
            "[gMASK]<sop>sys\n[Round 1]\n\n问：u1\n\n答：a1</s>\n\n[gMASK]<sop>[Round 2]\n\n问：u2\n\n答：a2</s>",
        ),
        (
            "chatglm3",
            "[gMASK]<sop><|system|>\nsys<|user|>\nu1<|assistant|>\na1</s>\n[gMASK]<sop><|user|>\nu2<|assistant|>\na2</s>",
        ),
        ("mistral", "<s>[INST] sys [/INST]\n[INST] u1 [/INST]a1</s>\n<s>[INST] u2 [/INST]a2</s>"),
        ("baichuan2_chat", "<s>sys\n<reserved_106>u1<reserved_107>a1</s>\n<s><reserved_106>u2<reserved_107>a2</s>"),
        ("moss_sft", "<s>sys\n<|Human|>: u1<eoh>\na1</s>\n<s><|Human|>: u2<eoh>\na2</s>"),
        (
            "deepseek_v2",
            "<s>sys\n\nUser: u1\n\nAssistant: a1<｜end▁of▁sentence｜>User: u2\n\nAssistant: a2<｜end▁of▁sentence｜>",
        ),
        (
            "gemma",
            "<s><start_of_turn>system\nsys<end_of_turn>\n<start_of_turn>user\nu1<end_of_turn>\n<start_of_turn>model\na1"
            "<end_of_turn></s>\n<s><start_of_turn>user\nu2<end_of_turn>\n<start_of_turn>model\na2<end_of_turn></s>",
        ),
        (
            "llama3_chat",
            "<s><|start_header_id|>system<|end_header_id|>\n\nsys<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "u1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nu2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na2<|eot_id|>",
        ),
        (
            "phi3_chat",
            "<s><|system|>\nsys<|end|>\n<|user|>\nu1<|end|>\n<|assistant|>\na1<|end|>\n<|user|>\nu2<|end|>\n"
            "<|assistant|>\na2<|end|>",
        ),
        ("zephyr", "<s><|system|>\nsys\n<|user|>\nu1\n<|assistant|>\na1</s>\n<s><|user|>\nu2\n<|assistant|>\na2</s>"),
    ],
)
def test_the_whole_text(name: str, expected: str) -> None:
    assert template(name).render([SYSTEM, *TALK]).text == expected


@pytest.mark.parametrize("name", ["llama2_chat", "vicuna", "wizardlm", "wizardcoder", "deepseek_coder"])
def test_an_intro_comes_with_a_system_prompt_only(name: str) -> None:
    text = template(name).render([SYSTEM, *TALK[:2]]).text
    assert len(text) > len(template(name).render(TALK[:2]).text) + 40
    assert "{" not in text
    assert "sys\n" in text


def test_without_bos_and_eos_nothing_is_written_for_them() -> None:
    bare = ChatTemplate(named_template("default").source)
    assert bare.render(TALK).text == "<|User|>:u1\n<|Bot|>:a1\n<|User|>:u2\n<|Bot|>:a2"


def test_an_old_name_means_the_same() -> None:
    assert named_template("deepseekcoder").source == named_template("deepseek_coder").source


def test_no_place_for_a_system_prompt() -> None:
    with pytest.raises(DataError, match="no place for a system prompt"):
        template("minicpm").render([SYSTEM, *TALK])


@pytest.mark.parametrize("wrong", ["internlm2-chat", "Internlm2_chat", "internlm2", "INTERNLM2CHAT"])
def test_an_unknown_name_answers_with_the_nearest(wrong: str) -> None:
    with pytest.raises(DataError, match="Did you mean 'internlm2_chat'") as caught:
        choose_template({}, wrong, "model")
    assert caught.value.field == "model.chat_template"


@pytest.mark.parametrize("wrong", ["../models/ember", "/etc/passwd", "x" * 5000, "chatml.yaml", "\0", "🔥"])
def test_a_name_is_no_path(wrong: str) -> None:
    with pytest.raises(DataError, match="There is no chat template"):
        named_template(wrong)


def test_the_models_own_names_win_but_its_default_has_none() -> None:
    own = {"default": "own", "chatml": "own chatml"}
    assert choose_template(own, None, "m").source == "own"
    assert choose_template(own, "chatml", "m").source == "own chatml"
    assert choose_template(own, "default", "m") == named_template("default")
    assert choose_template(own, "gemma", "m").stop_words == ("<end_of_turn>",)


def test_the_files_hold_text_only() -> None:
    for path in FOLDER.iterdir():
        assert path.suffix == ".yaml"
        assert "{%" not in path.read_text(encoding="utf-8")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"数": [1, 2]}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "sums", "parameters": {"type": "object"}}}
WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "user", "content": "1+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL["function"]]},
    {"role": "tool", "content": "3"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "Three."},
]
CALLED = '<tool_call>\n{"name": "add", "arguments": {"数": [1, 2]}}\n</tool_call>'


@pytest.mark.parametrize("name", ["chatml", "qwen_chat", "internlm2_chat", "minicpm3"])
def test_calls_of_tools_in_chatml(name: str) -> None:
    rendered = template(name).render(WITH_TOOLS, tools=[TOOL])
    answers = [rendered.text[start:end] for start, end in rendered.spans]
    assert answers == [f"{CALLED}\n{CALLED}<|im_end|>", "Three.<|im_end|>"]
    head, _, rest = rendered.text.partition("<|im_end|>\n<|im_start|>user\n1+2?")
    assert head.startswith("<s><|im_start|>system\nYou can call")
    assert '"description": "sums"' in head
    result = "<tool_response>\n3\n</tool_response>"
    assert f"<|im_start|>user\n{result}\n{result}<|im_end|>\n<|im_start|>assistant\nThree." in rest
    with_system = template(name).render([SYSTEM, *WITH_TOOLS], tools=[TOOL]).text
    assert with_system.startswith("<s><|im_start|>system\nsys\n\nYou can call")
    assert with_system.count("system") == 1


@pytest.mark.parametrize("name", sorted({*NAMES} - {"chatml", "qwen_chat", "internlm2_chat", "minicpm3"}))
def test_tools_elsewhere_are_refused(name: str) -> None:
    for messages, tools in ((WITH_TOOLS, [TOOL]), (WITH_TOOLS, None), (TALK, [TOOL])):
        with pytest.raises(DataError, match="cannot write calls of tools. Choose one that can, for example 'chatml'"):
            template(name).render(messages, tools=tools)


@pytest.mark.parametrize("bad", ["\ud800", "\ufdd0"])
def test_broken_characters_in_tools_get_a_sentence(bad: str) -> None:
    calls = [{"function": {"name": "add", "arguments": {"x": bad}}}]
    messages = [TALK[0], {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(DataError, match="description or call of a tool contains"):
        template("chatml").render(messages)


@pytest.mark.parametrize("name", NAMES)
def test_without_marks_the_same_answers_are_found(name: str) -> None:
    """The names' own marks against the search for answers in templates without marks."""
    backend = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([*SPECIALS.values(), *{end for end in ENDS.values() if end != "<end_of_turn></s>"}])
    backend.add_special_tokens(["<end_of_turn>"])
    conversation = Conversation(messages=tuple(Message(**message) for message in TALK))
    source = named_template(name).source
    plain = re.sub(r"\{%- (end)?generation -%\}", "", source)
    marked, found = (
        ChatTokenizer(backend, ChatTemplate(text, SPECIALS)).encode(conversation) for text in (source, plain)
    )
    assert marked == found
