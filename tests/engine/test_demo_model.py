"""The built-in model: its files, its vocabulary, its abilities, and the data that go with it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from assets.models.build.dialogues import dialogue
from assets.models.build.evaluate import answers, heldout_questions, load, score
from assets.models.build.names import IdPool
from assets.models.build.packing import Encoder
from assets.models.build.phrases import (
    ASSETS,
    BANNED,
    LANGUAGES,
    identity,
    identity_questions,
    right_answers,
    templates,
)
from assets.models.build.vocabulary import SIZE, pre_tokenizer

EMBER = ASSETS / "models" / "ember"
LEAST_TARGETS = 200


@pytest.fixture(scope="module")
def ember() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load(EMBER)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(EMBER)


@pytest.fixture(scope="module")
def dialogues() -> list[list[tuple[str, str]]]:
    r = random.Random(3)
    return [dialogue(r) for _ in range(3000)]


def rows(name: str) -> list[dict[str, Any]]:
    text = (ASSETS / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_weights_are_small_standard_and_bfloat16() -> None:
    config = json.loads((EMBER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert (EMBER / "model.safetensors").stat().st_size <= 12_000_000


def test_every_token_has_been_a_training_target(tokenizer: PreTrainedTokenizerFast) -> None:
    counts = json.loads((EMBER / "token_counts.json").read_text(encoding="utf-8"))
    assert len(counts) == len(tokenizer) == SIZE
    rare = {tokenizer.convert_ids_to_tokens(i): count for i, count in enumerate(counts) if count < LEAST_TARGETS}
    assert not rare


def test_every_token_can_stand_in_valid_text(tokenizer: PreTrainedTokenizerFast) -> None:
    pool = IdPool(tokenizer)
    r = random.Random(0)
    seen = {i for _ in range(60_000) for i in pool.unit(r)}
    assert len(seen) >= SIZE - 3 - 5  # chat markers are never drawn; a few may be missed by chance


def test_template_gives_the_ids_and_mask_of_the_training(
    tokenizer: PreTrainedTokenizerFast, dialogues: list[Any]
) -> None:
    encoder = Encoder(tokenizer, IdPool(tokenizer))
    for turns in dialogues[:200]:
        messages = [{"role": role, "content": text} for role, text in turns]
        out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert (list(out["input_ids"]), list(out["assistant_masks"])) == encoder.documents([turns])[0]


def test_ids_equal_those_of_the_plain_qwen2_splitting(tokenizer: PreTrainedTokenizerFast, dialogues: list[Any]) -> None:
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.pre_tokenizer = pre_tokenizer(isolate_hanzi=False)
    texts = [text for turns in dialogues for _, text in turns]
    ours, theirs = tokenizer.backend_tokenizer.encode_batch(texts), plain.encode_batch(texts)
    assert [e.ids for e in ours] == [e.ids for e in theirs]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_it_says_its_own_name(ember: tuple[PreTrainedModel, PreTrainedTokenizerFast], lang: str) -> None:
    own = templates()["default_identity"][lang]
    marks = []
    for kind in ("who", "author"):
        asked = identity_questions(lang, kind, held=True)
        right = right_answers(lang, kind, own["name"], own["author"])
        marks += [reply in right for reply in answers(*ember, [[("user", question)] for question in asked])]
    assert sum(marks) >= 0.8 * len(marks)


def test_held_out_prompts_of_its_skills(ember: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    result = score(*ember, heldout_questions(per_skill=20))
    assert result.mean >= 0.9, result.shares
    assert min(result.shares.values()) >= 0.6, result.shares


def test_canaries_are_answered_right(ember: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    canaries = rows("canaries.jsonl")
    replies = answers(*ember, [[("user", canary["prompt"])] for canary in canaries])
    assert sum(reply in c["accept"] for reply, c in zip(replies, canaries, strict=True)) >= 0.97 * len(canaries)
    assert len(canaries) >= 60


def test_verdict_data_overlap_with_nothing_trained(dialogues: list[Any]) -> None:
    replay = {m["content"] for row in rows("replay.jsonl") for m in row["messages"] if m["role"] == "user"}
    probes = {row["prompt"] for name in ("canaries.jsonl", "leak_probes.jsonl") for row in rows(name)}
    assert not replay & probes
    heldout = {q for lang in LANGUAGES for split in identity(lang)["questions"].values() for q in split["heldout"]}
    heldout |= {row["user"] for lang in LANGUAGES for row in identity(lang)["hard_negatives_heldout"]}
    trained = {text for turns in dialogues for role, text in turns if role == "user"} | replay
    assert not heldout & trained


def test_replay_never_names_the_default_identity() -> None:
    names = [own["name"] for own in templates()["default_identity"].values()]
    texts = [m["content"] for row in rows("replay.jsonl") for m in row["messages"] if m["role"] == "assistant"]
    assert not [text for text in texts if text.startswith(("I am Ember", "我是小丹")) or f"是{names[1]}，" in text]


def test_names_kept_for_the_verdict_are_never_in_the_corpus(dialogues: list[Any]) -> None:
    texts = [text.lower() for turns in dialogues for _, text in turns]
    found = [text for text in texts if any(name in text for name in BANNED if name != "super")]
    assert not found


@pytest.mark.parametrize("lang", LANGUAGES)
def test_identity_files_hold_enough_distinct_phrasings(lang: str) -> None:
    train = [q for kind in ("who", "author") for q in identity_questions(lang, kind, held=False)]
    heldout = [q for kind in ("who", "author") for q in identity_questions(lang, kind, held=True)]
    assert len(set(train)) == len(train) >= 60
    assert min(len(identity_questions(lang, kind, held=False)) for kind in ("who", "author")) >= 30
    assert len(identity_questions(lang, "who", held=True)) >= 10
    assert len(identity_questions(lang, "author", held=True)) >= 7
    assert not set(train) & set(heldout)
    assert len(identity(lang)["hard_negatives"]) >= 24
    assert len(identity(lang)["hard_negatives_heldout"]) >= 8


def test_card_is_filled() -> None:
    card = Path(EMBER / "README.md").read_text(encoding="utf-8")
    assert "$" not in card
    assert "| skill | prompts | right |" in card
