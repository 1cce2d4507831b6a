"""The data verbs: what they print, what they save, and how they end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from studio.cli import data
from studio.records import DataError, identity_texts
from studio.records.places import DATA

EXAMPLE = str(DATA / "examples" / "messages.jsonl")


@pytest.fixture(autouse=True)
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    (tmp_path / "replay.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(identity_texts, "DATA", tmp_path)


def run(tmp_path: Path, *words: str) -> int:
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["data", *words, "--workspace", str(tmp_path / "workspace")])
    return int(arguments.func(arguments))


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_identity_is_saved_and_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--name",
        "小芽 [bold]",
        "--author",
        "Rui",
        "--fact",
        "It likes tea.",
        "--replay",
        "0.25",
        "--rows",
        "60",
    )
    assert run(tmp_path, "identity", *options, "--lang", "zh", "--tone", "formal", "--out", "My set", "--json") == 0
    made = document(capsys)
    assert made["dataset"]["name"] == "my-set"
    assert made["counts"]["identity"] == 60
    assert made["counts"]["rows"] == made["dataset"]["rows"] == 80
    assert run(tmp_path, "inspect", "my-set", "--json") == 0
    seen = document(capsys)
    assert (seen["format"], seen["rows_read"], seen["conversations"], seen["skipped"]) == ("messages", 80, 80, [])
    assert 0 < seen["trained_tokens"] < seen["tokens"]
    assert len(seen["first"]) == 3


def test_identity_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "identity", "--name", "Nova", "--author", "Rui") == 0
    assert "saved dataset nova: 384 rows" in capsys.readouterr().out


def test_inspect_in_words_shows_skipped_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    good = Path(EXAMPLE).read_text(encoding="utf-8")
    path.write_text(good + '{"messages": []}\n' * 25, encoding="utf-8")
    assert run(tmp_path, "inspect", str(path)) == 0
    out = capsys.readouterr().out
    assert "rows: 29 read, 25 skipped, 4 conversations" in out
    assert "skipped row 5: it has no messages" in out
    assert "… and 5 more" in out
    assert "植物园几点开门？" in out


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("identity", "--name", "a\nb", "--author", "Rui"), "name"),
        (("identity", "--name", "Nova", "--author", "{{author}}"), "author"),
        (("identity", "--name", "Nova", "--author", "Rui", "--tone", "loud"), "tone"),
        (("identity", "--name", "Nova", "--author", "Rui", "--replay", "2"), "replay_share"),
        (("identity", "--name", "Nova", "--author", "Rui", "--rows", "3"), "rows_per_language"),
        (("inspect", "nothing-here"), "data.dataset"),
        (("inspect", EXAMPLE, "--model", "Qwen/Qwen2.5-0.5B-Instruct"), "model.model_name_or_path"),
    ],
)
def test_bad_input_is_an_error_that_names_the_field(tmp_path: Path, words: tuple[str, ...], field: str) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, *words)
    assert caught.value.field == field
