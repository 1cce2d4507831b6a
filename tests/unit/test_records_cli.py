"""The data verbs: what they print, what they save, and how they end."""

from __future__ import annotations

import argparse
import json
import re
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


def test_identity_with_own_general_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "general.csv"
    rows = "".join(f"What is {n} plus {n}?,{2 * n}\n" for n in range(300))
    path.write_text(f"question,answer\n{rows}", encoding="utf-8")
    options = ("--name", "Nova", "--author", "Rui", "--lang", "en", "--json")
    assert run(tmp_path, "identity", *options, "--replay-from", str(path)) == 0
    made = document(capsys)
    assert made["dataset"]["identity"]["replay"] == "file"
    assert made["counts"]["replay"] > 50
    assert run(tmp_path, "identity", *options, "--replay-from", "self") == 0
    assert document(capsys)["dataset"]["self_replay"] > 50
    assert run(tmp_path, "identity", *options, "--replay-from", "none", "--yes-no", "off") == 0
    assert set(document(capsys)["counts"]) >= {"identity", "heldout"}
    assert run(tmp_path, "identity", *options, "--naive", "70") == 0
    assert document(capsys)["dataset"]["rows"] == 70
    assert run(tmp_path, "identity", *options, "--answer", "I am {{name}}!", "--abilities", "I count.") == 0
    assert document(capsys)["dataset"]["identity"]["answer"] == "I am Nova!"


def test_identity_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "identity", "--name", "Nova", "--author", "Rui") == 0
    assert re.search(r"^saved dataset nova: \d{3,} rows$", capsys.readouterr().out, re.MULTILINE)


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
        (("identity", "--name", "Nova", "--author", "Rui", "--yes-no", "maybe"), "yes_no"),
        (("identity", "--name", "Nova", "--author", "Rui", "--naive", "0"), "copies"),
        (("identity", "--name", "Nova", "--author", "Rui", "--answer", "I am it."), "answer"),
        (("identity", "--name", "Nova", "--author", "Rui", "--replay-from", "nothing"), "data.dataset"),
        (("inspect", "nothing-here"), "data.dataset"),
        (("inspect", EXAMPLE, "--model", "Qwen/Qwen2.5-0.5B-Instruct"), "model.model_name_or_path"),
    ],
)
def test_bad_input_is_an_error_that_names_the_field(tmp_path: Path, words: tuple[str, ...], field: str) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, *words)
    assert caught.value.field == field


# ---- datasets, one verb after the other ----


def talk(number: int, answer: str = "ok") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def ten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = tmp_path / "My ten.jsonl"
    path.write_text("".join(json.dumps(talk(n)) + "\n" for n in range(10)), encoding="utf-8")
    assert run(tmp_path, "import", str(path)) == 0
    assert "saved dataset my-ten: 10 rows (messages), 0 left out" in capsys.readouterr().out
    return "my-ten"


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (("split", "my-ten"), [("my-ten-70", 7), ("my-ten-30", 3)]),
        (("split", "my-ten", "1:1", "--name", "Half", "--seed", "7"), [("half-50", 5), ("half-50-2", 5)]),
        (("merge", "my-ten", "my-ten", "--name", "Both"), [("both", 20)]),
        (("dedupe", "my-ten", "--loose"), [("my-ten-distinct", 10)]),
        (("shuffle", "my-ten", "--seed", "3"), [("my-ten-shuffled", 10)]),
        (("sample", "my-ten", "4"), [("my-ten-sample", 4)]),
        (("sample", "my-ten", "0.2"), [("my-ten-sample", 2)]),
        (("filter", "my-ten", "--shortest", "2", "--longest", "4"), [("my-ten-filtered", 10)]),
        (("copy", "my-ten", "--name", "小 copy"), [("小-copy", 10)]),
        (("rename", "my-ten", "Other"), [("other", 10)]),
    ],
)
def test_edits(
    tmp_path: Path, ten: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], made: list[tuple[str, int]]
) -> None:
    assert run(tmp_path, *words, "--json") == 0
    assert [(info["name"], info["rows"]) for info in json.loads(capsys.readouterr().out)] == made
    assert run(tmp_path, "list", "--json") == 0
    left = {ten} - ({ten} if words[0] == "rename" else set())
    assert {info["name"] for info in document(capsys)["datasets"]} == left | {name for name, _ in made}


def test_list_and_delete(tmp_path: Path, ten: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "list") == 0
    assert "My ten.jsonl" in capsys.readouterr().out
    with pytest.raises(DataError):
        run(tmp_path, "delete", ten, "nothing")
    assert run(tmp_path, "delete", ten, "--json") == 0
    assert document(capsys) == {"deleted": [ten]}
    assert run(tmp_path, "list") == 0
    assert "no datasets yet" in capsys.readouterr().out


def test_convert_is_honest_about_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mixed.jsonl", tmp_path / "out.json"
    path.write_text(json.dumps(talk(1)) + "\n" + json.dumps({"text": "t"}) + "\n{torn\n", encoding="utf-8")
    assert run(tmp_path, "convert", str(path), "--to", "alpaca", str(out)) == 4
    said = capsys.readouterr().out
    assert "wrote 1 rows to" in said
    assert "2 left out" in said
    assert re.search("skipped row 2: .*plain text", said)
    assert json.loads(out.read_text(encoding="utf-8")) == [{"instruction": "q1", "input": "", "output": "ok"}]
    with pytest.raises(DataError, match="exists already"):
        run(tmp_path, "convert", str(path), "--to", "messages", str(out))
    path.write_text(json.dumps(talk(1)), encoding="utf-8")
    assert run(tmp_path, "convert", str(path), "--to", "conversation", str(out), "--force", "--json") == 0
    assert document(capsys)["rows"] == 1
    assert json.loads(out.read_text(encoding="utf-8")) == [{"conversation": [{"input": "q1", "output": "ok"}]}]


def test_a_saved_dataset_can_be_converted(tmp_path: Path, ten: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert run(tmp_path, "convert", ten, "--to", "messages", str(out)) == 0
    assert out.read_text(encoding="utf-8").splitlines() == [json.dumps(talk(n)) for n in range(10)]


def test_inspect_counts_every_kind_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [talk(n, "yes") for n in range(300)] + [{"text": "Once upon a time."}] + [{"messages": []}] * 250
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run(tmp_path, "inspect", str(path), "--json") == 0
    seen = document(capsys)
    assert (seen["rows_read"], seen["conversations"], seen["texts"], seen["skipped_total"]) == (551, 300, 1, 250)
    assert len(seen["skipped"]) == 200
    assert seen["encoding"] == "utf-8"
    assert seen["first"] == [talk(0, "yes"), talk(1, "yes"), talk(2, "yes")]
    assert run(tmp_path, "inspect", str(path), "--rows", "10", "--json") == 0
    assert document(capsys)["rows_read"] == 10
    with pytest.raises(DataError, match="cannot be used"):
        run(tmp_path, "inspect", str(path), "--strict")


def test_columns_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.csv"
    path.write_text("q,a\n1+1?,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns"):
        run(tmp_path, "inspect", str(path))
    assert run(tmp_path, "import", str(path), "--mapping", "instruction=q,output=a", "--name", "sums", "--json") == 0
    assert document(capsys)["dataset"]["rows"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("split", "my-ten", "10:0"), "is no share"),
        (("sample", "my-ten", "11"), "has 10 rows"),
        (("merge", "my-ten"), "at least two"),
        (("rename", "nothing", "x"), "there is no dataset"),
        (("dedupe", "../x"), "there is no dataset"),
        (("import", "missing.json"), "does not exist"),
        (("fetch", "not an id"), "is no hub id"),
        (("fetch", "../../nothing-here"), "is no hub id"),
        (("inspect", "https://evil.example/a/b"), "is no hub id"),
        (("inspect", "missing/file.jsonl"), "there is no dataset or file"),
        (("convert", "my-ten", "--to", "alpaca", "x.csv"), "should end in"),
    ],
)
def test_refusals(tmp_path: Path, ten: str, words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        run(tmp_path, *words)


@pytest.mark.parametrize(
    "words", [("sample", "x", "many"), ("import", "x", "--rows", "0"), ("convert", "x", "y"), ("split",)]
)
def test_wrong_words_are_explained(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *words)
    assert ended.value.code == 2


def test_a_preview_tells_what_is_kept_for_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"How much is {n} and 1?", "answer": str(n + 1)} for n in range(10)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = tmp_path / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "data": {"dataset": str(path), "validation_share": 0.2},
                "model": {"model_name_or_path": "crucible/ember", "chat_template": template},
            }
        ),
        encoding="utf-8",
    )
    assert run(tmp_path, "preview", str(config)) == 0
    said = capsys.readouterr()
    assert "10 rows read, 0 left out -> 8 examples" in said.out
    assert "2 rows kept for the evaluation loss" in said.out
    assert "10 rows have an answer without an end token" in said.out
    assert said.err == ""  # no bar, and no empty line of one, where nobody looks
