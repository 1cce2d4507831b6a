"""Token tables in the cache: made once, found again, never half; large files are not made while somebody waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from studio.config import DataSection
from studio.records import DataError, DatasetStore, mappings, sources
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.mappings import known_mappings, load_mappings
from studio.records.places import EMBER
from studio.records.sources import NotCounted, Recipe, Tables, fingerprint, mixed, recipes
from studio.records.token_table import FACTS, IDS, TokenTable


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return ChatTokenizer.from_folder(EMBER)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "tokens")


def pair(number: int, text: str = "Add") -> dict[str, str]:
    return {"instruction": f"{text} {number} and 1", "output": f"{number} + 1 = {number + 1}"}


def rows_file(path: Path, count: int = 20, text: str = "Add") -> Path:
    path.write_text("".join(json.dumps(pair(n, text)) + "\n" for n in range(count)), encoding="utf-8")
    return path


def made(tables: Tables, chat: ChatTokenizer, path: Path, **settings: Any) -> tuple[Recipe, TokenTable]:
    training, _ = recipes(DataSection(dataset=str(path), **settings), DatasetStore(path.parent / "datasets"), chat)
    return training[0], tables.get(training[0])


def test_a_table_holds_the_tokens_of_every_row(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = rows_file(tmp_path / "rows.jsonl")
    path.write_text(path.read_text(encoding="utf-8") + '{"instruction": "x"}\nnot json\n', encoding="utf-8")
    recipe, table = made(tables, chat, path)
    assert len(table) == 20
    assert (table.facts.rows_read, table.facts.skipped_total, table.facts.format) == (22, 2, "alpaca")
    assert [row for row, _ in table.facts.skipped] == [21, 22]
    text = chat.backend.decode(table.tokens(3).tolist(), skip_special_tokens=False)
    assert "Add 3 and 1" in text
    start, end = table.trained(3)[0].tolist()
    assert chat.backend.decode(table.tokens(3)[start:end].tolist(), skip_special_tokens=False) == "3 + 1 = 4<|im_end|>"
    assert (tables.folder / recipe.key / FACTS).is_file()


def test_the_same_content_is_made_once_and_any_difference_anew(
    tmp_path: Path, tables: Tables, chat: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = sources.write_table
    monkeypatch.setattr(
        sources, "write_table", lambda recipe, *rest: written.append(recipe.key) or original(recipe, *rest)
    )
    path = rows_file(tmp_path / "rows.jsonl")
    for _ in range(2):
        made(tables, chat, path)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (1, 1))
    made(tables, chat, copy)
    assert len(written) == 1
    made(tables, chat, path, system="Be short.")
    made(tables, chat, path, max_samples=5)
    made(tables, ChatTokenizer.from_folder(EMBER, "chatml"), path)
    made(tables, chat, rows_file(path, 21))
    assert len(set(written)) == len(written) == 5


def test_the_same_bytes_under_another_suffix_are_other_rows(
    tmp_path: Path, tables: Tables, chat: ChatTokenizer
) -> None:
    lines, text = rows_file(tmp_path / "rows.jsonl"), tmp_path / "rows.txt"
    text.write_bytes(lines.read_bytes())
    assert len(made(tables, chat, lines)[1]) == 20
    assert len(made(tables, chat, text)[1]) == 1


def test_another_mapping_file_makes_another_table(
    tmp_path: Path, tables: Tables, chat: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = made(tables, chat, rows_file(tmp_path / "rows.jsonl"))
    before = recipe.key
    changed = [m.model_copy(update={"system": "Be short."}) if m.name == "alpaca" else m for m in load_mappings()]
    monkeypatch.setattr(mappings, "load_mappings", lambda: tuple(changed))
    known_mappings.cache_clear()
    try:
        assert recipe.key != before
    finally:
        known_mappings.cache_clear()


def test_rows_behind_a_limit_are_not_left_out(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ["broken"] + [json.dumps(pair(n)) for n in range(5)] + ["broken"] * 50
    path.write_text("\n".join(lines), encoding="utf-8")
    facts = made(tables, chat, path, max_samples=5)[1].facts
    assert (facts.rows_read, facts.skipped_total) == (6, 1)


def test_a_limit_reads_no_further(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    _, table = made(tables, chat, rows_file(tmp_path / "rows.jsonl", 5000), max_samples=7)
    assert len(table) == 7
    assert table.rows.tolist() == list(range(1, 8))


def test_a_torn_table_is_made_anew(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = rows_file(tmp_path / "rows.jsonl")
    recipe, table = made(tables, chat, path)
    place = tables.folder / recipe.key
    expected = table.encoded(19)
    for damage in (
        lambda: (place / IDS).write_bytes(b"123"),
        lambda: (place / FACTS).write_text("{"),
        lambda: (place / FACTS).unlink(),
    ):
        damage()
        assert made(tables, chat, path)[1].encoded(19) == expected


def test_nothing_stays_behind_when_a_file_cannot_be_used(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "x", "output": None}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 1"):
        made(tables, chat, path)
    assert [file.name for file in tables.folder.iterdir() if not file.name.endswith(".lock")] == []


def test_strict_refuses_bad_rows(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = rows_file(tmp_path / "rows.jsonl")
    path.write_text(path.read_text(encoding="utf-8") + '{"instruction": "x", "output": ""}\n', encoding="utf-8")
    assert len(made(tables, chat, path)[1]) == 20
    with pytest.raises(DataError, match="21"):
        made(tables, chat, path, strict=True)


def test_a_large_file_is_not_made_while_somebody_waits(
    tmp_path: Path, tables: Tables, chat: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rows_file(tmp_path / "rows.jsonl")
    data, store = DataSection(dataset=str(path)), DatasetStore(tmp_path / "datasets")
    monkeypatch.setattr(sources, "INLINE_BYTES", 100)
    with pytest.raises(NotCounted) as caught:
        mixed(data, store, chat, tables, wait=False)
    assert (caught.value.done, caught.value.total) == (0, 0)
    key = recipes(data, store, chat)[0][0].key
    tables.folder.mkdir(exist_ok=True)
    progress = tables.folder / f"{key}.progress"
    progress.write_text("[300, 1000]", encoding="utf-8")
    with pytest.raises(NotCounted) as caught:
        mixed(data, store, chat, tables, wait=False)
    assert (caught.value.done, caught.value.total) == (300, 1000)
    os.utime(progress, (1, 1))  # whoever wrote it is gone
    with pytest.raises(NotCounted) as caught:
        mixed(data, store, chat, tables, wait=False)
    assert caught.value.total == 0
    seen: list[tuple[int, int]] = []
    found, _ = mixed(data, store, chat, tables, lambda done, total: seen.append((done, total)))
    assert len(found[0].table) == 20
    assert seen[-1][0] == seen[-1][1] == path.stat().st_size
    assert not progress.exists()
    assert len(mixed(data, store, chat, tables, wait=False)[0][0].table) == 20


def test_the_least_used_tables_go_first(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    keys = []
    for number in range(3):
        recipe, _ = made(tables, chat, rows_file(tmp_path / f"{number}.jsonl", 20, f"Add{number}"))
        os.utime(tables.folder / recipe.key / FACTS, (number + 1, number + 1))
        keys.append(recipe.key)
    tables.prune(keep=keys[0], limit=2 * sources.size_of(tables.folder / keys[1]) + 100)
    assert sorted(path.name for path in tables.folder.iterdir() if path.is_dir()) == sorted([keys[0], keys[2]])


def test_a_killed_maker_leaves_no_half_table(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 3000)
    program = (
        "import sys, os, signal\n"
        "from studio.records import sources\n"
        "from pathlib import Path\n"
        "from studio.config import DataSection\n"
        "from studio.records import DatasetStore\n"
        "from studio.records.chat_tokenizer import ChatTokenizer\n"
        "from studio.records.places import EMBER\n"
        f"tables = sources.Tables(Path({str(tables.folder)!r}))\n"
        f"data = DataSection(dataset={str(path)!r})\n"
        "def report(done, total):\n"
        "    print(done, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"store = DatasetStore(Path({str(tmp_path)!r}))\n"
        "sources.mixed(data, store, ChatTokenizer.from_folder(EMBER), tables, report)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tables.folder.glob("*.part"))
    assert len(made(tables, chat, path)[1]) == 3000
    assert not list(tables.folder.glob("*.part"))


def test_fingerprints_follow_the_content_of_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one", encoding="utf-8")
    first = fingerprint(folder)
    (folder / "b.txt").write_text("two", encoding="utf-8")
    assert fingerprint(folder) != first
    (folder / "b.txt").unlink()
    assert fingerprint(folder) == first
    time.sleep(0.01)
    (folder / "a.txt").write_text("eno", encoding="utf-8")
    assert fingerprint(folder) != first


def test_faults_of_further_sources_name_their_field(tmp_path: Path, chat: ChatTokenizer) -> None:
    path, store = rows_file(tmp_path / "rows.jsonl"), DatasetStore(tmp_path / "datasets")
    with pytest.raises(DataError) as caught:
        recipes(DataSection(dataset=str(path), sources=["nowhere"]), store, chat)
    assert caught.value.field == "data.sources"
    with pytest.raises(DataError) as caught:
        recipes(DataSection(dataset=str(path), validation_dataset="nowhere"), store, chat)
    assert caught.value.field == "data.validation_dataset"


def test_pictures_are_left_out_with_a_reason(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A furnace."}]
    rows = [
        {"id": "1", "image": "a.jpg", "conversations": turns},
        {"id": "2", "image": "b.jpg", "conversations": turns},
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    _, table = made(tables, chat, path)
    assert len(table) == 0
    assert table.facts.skipped == ((1, sources._PICTURE), (2, sources._PICTURE))


def test_what_is_done_in_another_way_is_said(tmp_path: Path, tables: Tables, chat: ChatTokenizer) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}) + "\n", encoding="utf-8")
    notes = " ".join(made(tables, chat, path, split="test")[1].facts.notes)
    assert "the better answer of each is trained" in notes
    assert "has no splits, so all of it is read, not test alone" in notes
    plain = " ".join(made(tables, chat, rows_file(tmp_path / "rows.jsonl"))[1].facts.notes)
    assert "better answer" not in plain
    assert "splits" not in plain
