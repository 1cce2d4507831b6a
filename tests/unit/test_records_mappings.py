"""Column mappings are data: names, aliases, columns written out, and system prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.presets import datasets
from studio.records.errors import DataError
from studio.records.formats import ReadOptions, read_file
from studio.records.mappings import load_mappings, parse_mapping, system_prompts, write_mapping
from studio.records.places import PRESETS

XTUNER = [
    "alpaca", "alpaca_zh", "arxiv", "code_alpaca", "colors", "crime_kg_assitant", "law_reference", "default",
    "llava", "llava_image_only", "medical", "msagent_react", "oasst1", "openai", "openorca", "pretrain", "sql",
    "stack_exchange", "tiny_codes", "wizardlm",
]  # fmt: skip


def error_of(text: str) -> str:
    with pytest.raises(DataError) as caught:
        parse_mapping(text)
    assert caught.value.field == "data.mapping"
    assert caught.value.message.endswith((".", "?"))
    return caught.value.message


@pytest.mark.parametrize("name", XTUNER)
def test_the_twenty_map_functions_of_xtuner_by_name(name: str) -> None:
    assert parse_mapping(name) == parse_mapping(f"{name}_map_fn") == parse_mapping(f" {name.upper()} ")


def test_names_and_aliases_are_unique() -> None:
    names = [name for mapping in load_mappings() for name in (mapping.name, *mapping.aliases)]
    assert len(names) == len(set(names))
    assert {mapping.refines for mapping in load_mappings()} <= {"", *names}


def test_tasks_bring_their_system_prompt_and_chats_bring_none() -> None:
    prompts = system_prompts()
    assert {"alpaca", "arxiv_gentile", "coder", "colorist", "lawyer", "medical", "moss_sft", "sql"} <= prompts.keys()
    for name, prompt in (("sql", "sql"), ("tiny_codes", "coder"), ("law_reference", "lawyer"), ("medical", "medical")):
        assert parse_mapping(name).system == prompts[prompt]
    assert not any(parse_mapping(name).system for name in ("alpaca", "openai", "wizardlm", "default"))


def test_columns_written_out() -> None:
    mapping = parse_mapping(' Instruction = question , output= "the answer, long" ,system=sys')
    assert mapping.columns == {"instruction": "question", "output": "the answer, long", "system": "sys"}
    assert mapping.shape == "single"
    assert mapping.required == {"question", "the answer, long"}
    assert parse_mapping("text=body").shape == "text"
    assert parse_mapping("chosen=good, rejected=bad, prompt=q").shape == "preference"
    assert parse_mapping("messages=turns, role=who, content=what").roles["human"] == "user"


@pytest.mark.parametrize(
    "columns",
    [
        {"instruction": "问题", "output": "答案"},
        {"instruction": "a b", "output": "c,d", "system": " x "},
        {"text": "a=b"},
        {"messages": "m", "role": "r", "content": "c"},
    ],
)
def test_what_is_written_is_read(columns: dict[str, str]) -> None:
    assert parse_mapping(write_mapping(columns)).columns == columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpacca", "Did you mean 'alpaca'?"),
        ("sqll_map_fn", "Did you mean 'sql'?"),
        ("", "no column mapping called ''"),
        ("a\nb\x00" * 200, "no column mapping called"),
        ("instruction=q, outptu=a", "'outptu', which does not belong there. Did you mean 'output'?"),
        ("instruction=q", "says nothing about 'output'"),
        ("output=a", "says nothing about 'instruction'"),
        ("chosen=a", "says nothing about 'rejected'"),
        ("=", "cannot be read at '='"),
        ("instruction=q,,output=a", "cannot be read at ',output=a'"),
        ("instruction=q, output", "cannot be read at 'output'"),
        ("instruction=, output=a", "'instruction' has no column"),
        ("instruction=q, instruction=r", "'instruction' is named twice"),
        ("text=a, output=b", "'output', which does not belong there"),
    ],
)
def test_faults_in_a_mapping_are_sentences(text: str, expected: str) -> None:
    assert expected in error_of(text)


def test_a_new_mapping_is_one_file_without_code(tmp_path: Path) -> None:
    for path in PRESETS.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "riddles.yaml").write_text(
        'kind: mapping\nshape: single\nlabel: Riddles\nsystem: "Guess."\ntemplate: "{clue} ({letters})"\n'
        "columns: {output: word}\n",
        encoding="utf-8",
    )
    found = next(mapping for mapping in load_mappings(tmp_path) if mapping.name == "riddles")
    assert found.required == {"clue", "letters", "word"}
    assert found.fill({"clue": "{letters}", "letters": "4"}) == "{letters} (4)"


def test_presets_still_find_their_datasets() -> None:
    assert {"custom", "identity"} <= set(datasets())


def test_an_unknown_mapping_stops_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "missing.json", ReadOptions(mapping="nothing_like_it"))
    assert caught.value.field == "data.mapping"
