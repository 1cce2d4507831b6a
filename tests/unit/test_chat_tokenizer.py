"""Records to token ids: texts, batches, special tokens, pieces for display."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from studio.records.chat_tokenizer import ChatTokenizer, Encoded
from studio.records.conversation import Conversation, Message, PlainText
from studio.records.errors import DataError
from studio.records.template import ChatTemplate
from studio.records.template_names import named_template

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATE = named_template("zephyr").source


@pytest.fixture
def backend() -> Tokenizer:
    """One token per byte; asked to add tokens it puts <s> in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>", "<pad>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return tokenizer


def chat(backend: Tokenizer, template: str = TEMPLATE, **specials: str) -> ChatTokenizer:
    return ChatTokenizer(backend, ChatTemplate(template, {**SPECIALS, **specials}, ["###"]))


def talk(question: str = "q", answer: str = "a", **more: object) -> Conversation:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Conversation.model_validate({"messages": messages, **more})


def test_special_tokens_by_name(backend: Tokenizer) -> None:
    tokenizer = chat(backend)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (256, 257, 257)
    assert chat(backend, pad_token="<pad>").pad_id == 258
    assert chat(backend, eos_token="<nowhere>").eos_id is None
    bare = ChatTokenizer(backend, ChatTemplate(TEMPLATE))
    assert (bare.bos_id, bare.eos_id, bare.pad_id) == (None, None, None)
    assert tokenizer.stop_words == ("###",)


def test_every_token_of_a_plain_text_is_trained(backend: Tokenizer) -> None:
    encoded = chat(backend).encode(PlainText(text="hi 🔥"))
    assert encoded.ids[0] == 256
    assert encoded.ids[-1] == 257
    assert len(encoded.ids) == 2 + len("hi 🔥".encode())
    assert encoded.mask == [1] * len(encoded.ids)


def test_a_plain_text_gets_no_token_the_tokenizer_does_not_add(backend: Tokenizer) -> None:
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    assert chat(backend).encode(PlainText(text="a")).ids[-1] == 257
    assert len(chat(backend).encode(PlainText(text="a")).ids) == 2
    assert len(ChatTokenizer(backend, ChatTemplate(TEMPLATE)).encode(PlainText(text="a")).ids) == 1


def test_the_first_token_is_not_doubled(backend: Tokenizer) -> None:
    """The template writes <s>, and the tokenizer would add one of its own if asked."""
    assert chat(backend).encode(talk()).ids.count(256) == 1
    assert chat(backend).encode_many([talk()]) == [chat(backend).encode(talk())]
    assert 256 not in chat(backend).encode_text("a")


def test_control_tokens_in_a_content_are_what_the_model_would_see(backend: Tokenizer) -> None:
    encoded = chat(backend).encode(talk("a</s>b", "c</s>d"))
    assert encoded.ids.count(257) == 3
    assert [token for token, flag in zip(encoded.ids, encoded.mask, strict=True) if flag].count(257) == 2


def test_a_batch_equals_one_by_one_and_keeps_its_places(backend: Tokenizer) -> None:
    template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no bad words') }}{% endif %}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = chat(backend, template)
    records = [talk("q", f"a{n}" * n) if n % 3 else PlainText(text=f"text {n}") for n in range(1, 60)]
    records.insert(7, talk("bad", "a"))
    results = tokenizer.encode_many(records)
    assert len(results) == len(records)
    assert isinstance(results[7], DataError)
    assert "no bad words" in results[7].message
    others = [(r, result) for n, (r, result) in enumerate(zip(records, results, strict=True)) if n != 7]
    assert all(result == tokenizer.encode(record) for record, result in others)
    assert tokenizer.encode_many([]) == []


def test_the_fingerprint_tells_apart_what_encodes_otherwise(backend: Tokenizer) -> None:
    same = chat(Tokenizer.from_str(backend.to_str())).fingerprint
    assert chat(backend).fingerprint == same
    others = [chat(backend, named_template("mistral").source), chat(backend, eos_token="<pad>")]
    backend.add_tokens(["hello"])
    others.append(chat(backend))
    assert len({same, *(other.fingerprint for other in others)}) == 4


def test_the_fingerprint_of_a_dated_template_changes_with_the_day(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE
    monkeypatch.setattr("studio.records.template._now", lambda pattern: "monday")
    monday, plain = chat(backend, dated).fingerprint, chat(backend).fingerprint
    monkeypatch.setattr("studio.records.template._now", lambda pattern: "tuesday")
    assert chat(backend, dated).fingerprint != monday
    assert chat(backend).fingerprint == plain


def test_pieces_of_a_byte_level_vocabulary(backend: Tokenizer) -> None:
    backend.add_tokens(["Ġhello"])
    tokenizer = chat(backend)
    ids = tokenizer.encode_text("é\n</s>a b")
    assert tokenizer.pieces(ids) == ["<C3>", "<A9>", "\n", "</s>", "a", " ", "b"]
    assert tokenizer.pieces([10_000]) == ["\N{REPLACEMENT CHARACTER}"]
    whole = Tokenizer(
        models.BPE({"Ã": 0, "©": 1, "Ã©": 2, "Ġ": 3, "ĠÃ©": 4, "ä": 5, "½": 6}, [("Ã", "©"), ("Ġ", "Ã©")])
    )
    whole.decoder = decoders.ByteLevel()
    assert chat(whole).pieces([2, 4, 0, 5, 6]) == ["é", " é", "<C3>", "<E4>", "<BD>"]


def test_pieces_of_a_sentencepiece_vocabulary() -> None:
    vocabulary = {"<unk>": 0, "▁hello": 1, "lo": 2, "<0xE4>": 3, "<0x0A>": 4, "Ġ": 5}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert chat(backend).pieces([1, 2, 3, 4, 5]) == [" hello", "lo", "<E4>", "\n", "Ġ"]
    backend.decoder = None
    assert chat(backend).pieces([1]) == [" hello"]


def test_answers_are_found_where_the_tokenizer_changes_the_text(backend: Tokenizer) -> None:
    """A normalizer makes tokens and characters differ in number; white space at an edge may have no token at all."""
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    template = "{% for m in messages %}{{ m.content }} |{% endfor %}"
    encoded = chat(backend, template).encode(talk("ﬁ½", "ﷺ ①\u3000"))
    texts = [piece for piece, flag in zip(chat(backend).pieces(encoded.ids), encoded.mask, strict=True) if flag]
    assert "".join(texts).endswith("1  |")
    assert encoded.ids[: encoded.mask.index(1)] == chat(backend).encode_text("ﬁ½ |")


def test_a_template_that_writes_half_a_character(backend: Tokenizer) -> None:
    tokenizer = chat(
        backend, "{{ messages[0].content }}\ud800{% generation %}{{ messages[1].content }}{% endgeneration %}"
    )
    (refused,) = tokenizer.encode_many([talk()])
    assert isinstance(refused, DataError)
    assert "surrogate" in refused.message


def test_from_a_folder_by_name(tmp_path: Path, backend: Tokenizer) -> None:
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SPECIALS), encoding="utf-8")
    tokenizer = ChatTokenizer.from_folder(tmp_path, "gemma")
    assert tokenizer.stop_words == ("<end_of_turn>",)
    assert tokenizer.template.source == named_template("gemma").source
    assert isinstance(tokenizer.encode(talk()), Encoded)
    assert tokenizer.ends_answers


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (TEMPLATE, True),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", False),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}", True),
        ("{% for m in messages %}x{% generation %}{{ m.content }}{% endgeneration %}</s>{% endfor %}", False),
    ],
)
def test_whether_answers_end(backend: Tokenizer, template: str, ends: bool) -> None:
    assert chat(backend, template).ends_answers is ends
