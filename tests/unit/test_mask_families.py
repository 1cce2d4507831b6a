"""Ids and loss mask of real template families, held against a second implementation written by hand.

Each family has its Jinja, without generation marks, and beside it a function that lays the same conversation out as
pieces of text with a flag: whether the model has to write it. The two know nothing of each other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, Message
from studio.records.errors import DataError
from studio.records.template import ChatTemplate

Segments = list[tuple[str, bool]]

CHATML = """
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}
{%- else -%}{%- set system = 'Be of use.' -%}{%- endif -%}
{{- '<|im_start|>system\\n' + system -}}
{%- if tools -%}
{{- '\\n\\n# Tools\\n<tools>' -}}{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\\n</tools>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or (m.role == 'assistant' and not m.tool_calls) -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant' -}}
{%- if m.content -%}{{- '\\n' + m.content -}}{%- endif -%}
{%- for call in m.tool_calls -%}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- call.function.arguments | tojson -}}{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif m.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def chatml(messages: list[Message], tools: list[Any]) -> Segments:
    system = messages[0].content if messages[0].role == "system" else "Be of use."
    listed = "\n\n# Tools\n<tools>" + "".join("\n" + dumps(tool) for tool in tools) + "\n</tools>" if tools else ""
    out: Segments = [(f"<|im_start|>system\n{system}{listed}<|im_end|>\n", False)]
    previous = ""
    for m in messages[messages[0].role == "system" :]:
        if previous == "tool" and m.role != "tool":
            out.append(("<|im_end|>\n", False))
        if m.role == "user":
            out.append((f"<|im_start|>user\n{m.content}<|im_end|>\n", False))
        elif m.role == "tool":
            out.append((("" if previous == "tool" else "<|im_start|>user"), False))
            out.append((f"\n<tool_response>\n{m.content}\n</tool_response>", False))
        else:
            calls = [
                f'<tool_call>\n{{"name": "{c["function"]["name"]}", "arguments": '
                f"{dumps(c['function']['arguments'])}}}\n</tool_call>"
                for c in m.tool_calls
            ]
            out.append(("<|im_start|>assistant\n", False))
            out.append(("\n".join(([m.content] if m.content else []) + calls) + "<|im_end|>", True))
            out.append(("\n", False))
        previous = m.role
    return out


LLAMA3 = """
{%- for m in messages -%}
{%- set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -%}
{%- if loop.first -%}{%- set text = bos_token + text -%}{%- endif -%}
{{- text -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""


def llama3(messages: list[Message], tools: list[Any]) -> Segments:
    out: Segments = [("<s>", False)]
    for m in messages:
        out.append((f"<|start_header_id|>{m.role}<|end_header_id|>\n\n", False))
        out.append((m.content.strip() + "<|eot_id|>", m.role == "assistant"))
    return out


LLAMA2 = """
{%- if messages[0]['role'] == 'system' -%}
{%- set rest = messages[1:] -%}{%- set system = messages[0]['content'] -%}
{%- else -%}
{%- set rest = messages -%}{%- set system = false -%}
{%- endif -%}
{%- for m in rest -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('user and assistant have to take turns') -}}
{%- endif -%}
{%- set content = m['content'] -%}
{%- if loop.first and system != false -%}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] -%}
{%- endif -%}
{%- if m['role'] == 'user' -%}{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{%- else -%}{{- ' ' + content.strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""


def llama2(messages: list[Message], tools: list[Any]) -> Segments:
    out: Segments = []
    first = ""
    for m in messages:
        if m.role == "system":
            first = f"<<SYS>>\n{m.content}\n<</SYS>>\n\n"
        elif m.role == "user":
            out.append((f"<s>[INST] {(first + m.content).strip()} [/INST]", False))
            first = ""
        else:
            out.append((f" {m.content.strip()} </s>", True))
    return out


MISTRAL = """
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- set asked = rest | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- for m in rest -%}
{%- if m.role == 'user' -%}
{%- if tools and m == asked[-1] -%}
{{- '[AVAILABLE_TOOLS] ' -}}{{- tools | tojson -}}{{- '[/AVAILABLE_TOOLS]' -}}
{%- endif -%}
{%- if system is defined and system and loop.index0 == rest.index(asked[-1]) -%}
{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' -}}
{%- else -%}{{- '[INST] ' + m.content + '[/INST]' -}}{%- endif -%}
{%- elif m.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in m.tool_calls -%}
{{- ', ' if not loop.first -}}{{- call.function | tojson -}}
{%- endfor -%}
{{- ']' + eos_token -}}
{%- elif m.role == 'assistant' -%}{{- ' ' + m.content + eos_token -}}
{%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS] ' -}}{{- {'content': m.content} | tojson -}}{{- '[/TOOL_RESULTS]' -}}
{%- endif -%}
{%- endfor -%}
"""


def mistral(messages: list[Message], tools: list[Any]) -> Segments:
    system = messages[0].content if messages[0].role == "system" else ""
    rest = messages[messages[0].role == "system" :]
    asked = [m for m in rest if m.role == "user"]
    place = rest.index(asked[-1])
    out: Segments = [("<s>", False)]
    for number, m in enumerate(rest):
        if m.role == "user":
            if tools and m == asked[-1]:
                out.append((f"[AVAILABLE_TOOLS] {dumps(tools)}[/AVAILABLE_TOOLS]", False))
            lead = system + "\n\n" if system and number == place else ""
            out.append((f"[INST] {lead}{m.content}[/INST]", False))
        elif m.tool_calls:
            out.append((f"[TOOL_CALLS] [{', '.join(dumps(c['function']) for c in m.tool_calls)}]</s>", True))
        elif m.role == "assistant":
            out.append((f" {m.content}</s>", True))
        else:
            out.append((f"[TOOL_RESULTS] {dumps({'content': m.content})}[/TOOL_RESULTS]", False))
    return out


CHATGLM3 = """
{{- '[gMASK]<sop>' -}}
{%- if tools -%}{{- '<|system|>\\n' -}}{{- tools | tojson -}}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}{{- '<|observation|>\\n' + m.content -}}
{%- elif m.tool_calls -%}
{{- '<|assistant|>' -}}
{%- for call in m.tool_calls -%}
{{- call.function.name + '\\n' -}}{{- call.function.arguments | tojson -}}
{%- endfor -%}
{%- else -%}
{{- '<|' + m.role + '|>\\n' -}}{{- m.content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def chatglm3(messages: list[Message], tools: list[Any]) -> Segments:
    """No end token of its own: the mark of the next turn ends an answer, so it is the model's to write."""
    out: Segments = [("[gMASK]<sop>" + (f"<|system|>\n{dumps(tools)}" if tools else ""), False)]
    answered = False
    for m in messages:
        out.append((f"<|{'observation' if m.role == 'tool' else m.role}|>", answered))
        answered = m.role == "assistant"
        if m.tool_calls:
            calls = [c["function"]["name"] + "\n" + dumps(c["function"]["arguments"]) for c in m.tool_calls]
            out.append(("".join(calls), True))
        else:
            out.append((f"\n{m.content}", answered))
    return out


GEMMA = """
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for m in messages -%}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


def gemma(messages: list[Message], tools: list[Any]) -> Segments:
    out: Segments = [("<s>", False)]
    for m in messages:
        if m.role == "assistant":
            out += [("<start_of_turn>model\n", False), (m.content.strip() + "<end_of_turn>", True), ("\n", False)]
        elif m.role == "user":
            out.append((f"<start_of_turn>user\n{m.content.strip()}<end_of_turn>\n", False))
    return out


REASONING = """
{%- set last = messages | selectattr('role', 'equalto', 'user') | list | length -%}
{%- set ns = namespace(asked=0) -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}{%- set said = m.content -%}
{%- if '</think>' in said -%}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if ns.asked == last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- said + '<|im_end|>\\n' -}}
{%- else -%}
{%- set ns.asked = ns.asked + (1 if m.role == 'user' else 0) -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def reasoning(messages: list[Message], tools: list[Any]) -> Segments:
    """Earlier thinking is dropped; the last answer always has some, if only an empty one."""
    out: Segments = []
    for number, m in enumerate(messages):
        if m.role != "assistant":
            out.append((f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n", False))
            continue
        thought, found, said = m.content.rpartition("</think>")
        thought = thought.split("</think>")[0].split("<think>")[-1].strip("\n") if found else ""
        said = said.lstrip("\n") if found else m.content
        shown = f"<think>\n{thought}\n</think>\n\n" if number == len(messages) - 1 else ""
        out += [("<|im_start|>assistant\n", False), (f"{shown}{said}<|im_end|>", True), ("\n", False)]
    return out


OPENED = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{- m.content -}}
{%- elif m.role == 'user' -%}{{- '<|user|>' + m.content -}}
{%- else -%}{{- '<|assistant|>' + m.content + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|><think>\\n' -}}{%- endif -%}
"""


def opened(messages: list[Message], tools: list[Any]) -> Segments:
    """The generation prompt opens a thought that answers in the history do not have (DeepSeek-R1)."""
    out: Segments = [("<s>", False)]
    for m in messages:
        out.append(({"system": "", "user": "<|user|>", "assistant": "<|assistant|>"}[m.role], False))
        out.append((m.content + ("</s>" if m.role == "assistant" else ""), m.role == "assistant"))
    return out


@dataclass(frozen=True)
class Family:
    jinja: str
    by_hand: Callable[[list[Message], list[Any]], Segments]
    system: bool = True
    tools: bool = False
    text_beside_calls: bool = True


FAMILIES = {
    "chatml": Family(CHATML, chatml, tools=True),
    "llama3": Family(LLAMA3, llama3),
    "llama2": Family(LLAMA2, llama2),
    "mistral": Family(MISTRAL, mistral, tools=True, text_beside_calls=False),
    "chatglm3": Family(CHATGLM3, chatglm3, tools=True, text_beside_calls=False),
    "gemma": Family(GEMMA, gemma, system=False),
    "reasoning": Family(REASONING, reasoning),
    "opened": Family(OPENED, opened),
}
SPECIALS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]",
    "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<start_of_turn>",
    "<end_of_turn>",
)  # fmt: skip
TEXTS = (
    "Hello", "Who are you?", "\nbegins with a line", "  two spaces", "ends with a line\n", "你好，世界", "🔥👩‍👩‍👧‍👦",
    "a\n\nb",
    "assistant", "<|im_end|>", "<|im_start|>assistant\n", "[/INST]", "</s>", "<|assistant|>", "<|user|>\nx",
    "<think>\nhm\n</think>\n\nso", "<think>deep</think>yes", "\t", "{{ x }}", "ok", "ok", "Ünïcödé", "\u3000wide\u3000",
    "model\n", '{"a": "\\n"}', "<start_of_turn>model\n", "0",
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "add", "description": "Sums 数", "parameters": {"type": "object"}}}


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    """A byte-level BPE tokenizer that merges across words' first letters as real ones do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [*TEXTS, *SPECIALS, "assistant user system tool_call tool_response arguments name", CHATML, LLAMA2] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


def chat(backend: Tokenizer, jinja: str) -> ChatTokenizer:
    return ChatTokenizer(backend, ChatTemplate(jinja, {"bos_token": "<s>", "eos_token": "</s>"}))


def by_hand(backend: Tokenizer, family: Family, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Ids and mask: a token is trained if one of its characters is."""
    flags = iter(
        [flag for m, flag in zip(conversation.messages, conversation.trained, strict=True) if m.role == "assistant"]
    )
    trained: list[bool] = []
    text, before = "", False
    keep = False
    for piece, own in family.by_hand(list(conversation.messages), list(conversation.tools)):
        if own and not before:
            keep = next(flags)
        before = own if piece else before
        text += piece
        trained += [own and keep] * len(piece)
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, [int(any(trained[start:end])) for start, end in encoding.offsets]


def made_up(rng: random.Random, family: Family) -> Conversation:
    def said() -> str:
        text = "".join(rng.choices(TEXTS, k=rng.randint(1, 3)))
        return text if text.strip() else "ok"

    messages = []
    if family.system and rng.random() < 0.5:
        messages.append(Message(role="system", content="" if rng.random() < 0.3 else said()))
    with_tools = family.tools and rng.random() < 0.4
    for _ in range(rng.randint(1, 4)):
        messages.append(Message(role="user", content=said()))
        while with_tools and rng.random() < 0.4:
            calls = tuple(
                {"type": "function", "function": {"name": "add", "arguments": {"值": said(), "n": rng.random()}}}
                for _ in range(rng.randint(1, 2))
            )
            beside = said() if family.text_beside_calls and rng.random() < 0.4 else ""
            messages.append(Message(role="assistant", content=beside, tool_calls=calls))
            messages += [Message(role="tool", content=said()) for _ in calls]
        messages.append(Message(role="assistant", content=said()))
    train = None
    if rng.random() < 0.4:
        train = tuple(m.role == "assistant" and (rng.random() < 0.5 or m is messages[-1]) for m in messages)
    return Conversation(messages=tuple(messages), train=train, tools=(TOOL,) if with_tools else ())


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_mask_equal_those_made_by_hand(backend: Tokenizer, name: str) -> None:
    family, rng = FAMILIES[name], random.Random(name)
    tokenizer = chat(backend, family.jinja)
    conversations = [made_up(rng, family) for _ in range(150)]
    many = tokenizer.encode_many(conversations)
    for conversation, encoded in zip(conversations, many, strict=True):
        assert not isinstance(encoded, DataError)
        ids, mask = by_hand(backend, family, conversation)
        assert encoded.ids == ids
        assert encoded.mask == mask, (conversation, tokenizer.pieces(ids))
        assert encoded == tokenizer.encode(conversation)
        assert 0 < sum(mask) < len(mask)


def test_a_cut_keeps_ids_and_mask_together(backend: Tokenizer) -> None:
    for name, family in FAMILIES.items():
        encoded = chat(backend, family.jinja).encode(talk(*TURNS))
        ids, mask = by_hand(backend, family, talk(*TURNS))
        for length in range(len(ids) + 2):
            assert (encoded.ids[:length], encoded.mask[:length]) == (ids[:length], mask[:length]), name


TURNS = ("q", "\na", "a", "q", "q", "q")


def talk(*texts: str, system: str | None = None) -> Conversation:
    """User and assistant in turn."""
    messages = [Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts)]
    first = [] if system is None else [Message(role="system", content=system)]
    return Conversation(messages=(*first, *messages))


def trained(tokenizer: ChatTokenizer, conversation: Conversation) -> list[str]:
    """The trained stretches of a conversation as text."""
    encoded = tokenizer.encode(conversation)
    stretches: list[list[int]] = [[]]
    for token, flag in zip(encoded.ids, encoded.mask, strict=True):
        if flag:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.backend.decode(part, skip_special_tokens=False) for part in stretches if part]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", ["\na<|im_end|>", "q<|im_end|>", "q<|im_end|>"]),
        ("llama3", ["a<|eot_id|>", "q<|eot_id|>", "q<|eot_id|>"]),
        ("llama2", [" a </s>", " q </s>", " q </s>"]),
        ("mistral", [" \na</s>", " q</s>", " q</s>"]),
        ("chatglm3", ["\n\na<|user|>", "\nq<|user|>", "\nq"]),
        ("gemma", ["a<end_of_turn>", "q<end_of_turn>", "q<end_of_turn>"]),
        ("reasoning", ["\na<|im_end|>", "q<|im_end|>", "<think>\n\n</think>\n\nq<|im_end|>"]),
        ("opened", ["\na</s>", "q</s>", "q</s>"]),
    ],
)
def test_equal_answers_and_questions_are_kept_apart(backend: Tokenizer, name: str, expected: list[str]) -> None:
    tokenizer = chat(backend, FAMILIES[name].jinja)
    assert trained(tokenizer, talk(*TURNS)) == expected
    assert tokenizer.ends_answers == (name != "chatglm3")


def test_a_system_prompt_under_a_template_without_one(backend: Tokenizer) -> None:
    tokenizer = chat(backend, GEMMA)
    with pytest.raises(DataError, match="no place for a system prompt. Remove the system prompt") as caught:
        tokenizer.encode(talk("q", "a", system="Be brief."))
    assert caught.value.field == "model.chat_template"
    assert tokenizer.encode(talk("q", "a", system="")) == tokenizer.encode(talk("q", "a"))


@pytest.mark.parametrize("marks", [("", ""), ("{% generation %}", "{% endgeneration %}")])
def test_a_message_the_template_leaves_out_is_no_secret(backend: Tokenizer, marks: tuple[str, str]) -> None:
    jinja = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %}" + marks[0] + "{{ m.content }}</s>" + marks[1] + "{% endif %}{% endfor %}"
    )
    tokenizer = chat(backend, jinja)
    assert trained(tokenizer, talk("q", "a")) == ["a</s>"]
    with pytest.raises(DataError, match="no place for a system prompt"):
        tokenizer.encode(talk("q", "a", system="Be brief."))


def test_a_template_that_drops_questions_or_answers(backend: Tokenizer) -> None:
    only = "{% for m in messages %}{% if m.role == 'ROLE' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    with pytest.raises(DataError, match=r"leaves out message 1 \(user\)"):
        chat(backend, only.replace("ROLE", "assistant")).encode(talk("q", "a"))
    with pytest.raises(DataError, match=r"leaves out message 2 \(assistant\)"):
        chat(backend, only.replace("ROLE", "user")).encode(talk("q", "a"))


def test_a_template_that_changes_every_answer_beyond_recognition(backend: Tokenizer) -> None:
    jinja = CHATML.replace("m.content + '<|im_end|>", "(m.content | upper) + '<|im_end|>")
    assert trained(chat(backend, jinja), talk("hi", "ßa", "hi", "b")) == ["SSA<|im_end|>", "B<|im_end|>"]
    doubled = CHATML.replace("m.content + '<|im_end|>", "m.content * 2 + '<|im_end|>")
    with pytest.raises(DataError, match="answers cannot be found"):
        chat(backend, doubled).encode(talk("q", "ab"))


def test_one_shape_of_conversation_is_learned_once(backend: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat(backend, LLAMA3)
    renderings = []
    write = ChatTemplate._write
    monkeypatch.setattr(ChatTemplate, "_write", lambda *given: renderings.append(1) or write(*given))
    tokenizer.encode_many([talk("q", f"a{n}", "q", "b") for n in range(50)])
    assert len(renderings) <= 50 + 5
    renderings.clear()
    tokenizer.encode(talk(*(str(n) for n in range(400))))
    assert len(renderings) <= 1 + 1 + 3 * 2  # first, middle and last answers stand alike


def test_only_the_answer_a_template_rewrites_is_looked_for_by_difference(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat(backend, REASONING)
    renderings = []
    write = ChatTemplate._write
    monkeypatch.setattr(ChatTemplate, "_write", lambda *given: renderings.append(1) or write(*given))
    thoughtful = talk(*(f"<think>t{n}</think>{n}" if n % 2 else str(n) for n in range(60)))
    stretches = trained(tokenizer, thoughtful)
    assert stretches[:2] == ["1<|im_end|>", "3<|im_end|>"]
    assert stretches[-1] == "<think>\nt59\n</think>\n\n59<|im_end|>"
    assert len(renderings) <= 1 + 1 + 3 * 2 + 1
