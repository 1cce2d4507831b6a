"""Whatever a file or a field contains, the answer is a result or one sentence, never another exception."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from studio.records import DataError, IdentitySpec, build_identity, parse_spec, read_file
from studio.records.formats import to_row
from studio.records.naming import is_name, slug
from studio.records.store import DatasetStore

ATOMS: list[Any] = [
    None, True, False, 0, -1, 1e308, 10**30, "", " ", "x", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufdd0",
    "a" * 5000, "{{name}}", "{% for %}", "<script>alert(1)</script>", "'; rm -rf / #", "../../etc/passwd", "$(id)",
    "user", "assistant", "system", "loss", [], {}, "\u2028", "👩‍👩‍👧", "０", "null", "\\", '"',
]  # fmt: skip
KEYS = [
    "messages",
    "role",
    "content",
    "loss",
    "conversation",
    "input",
    "output",
    "system",
    "instruction",
    "",
    "\x00",
    "x",
]


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth > 3 or kind < 0.4:
        return rng.choice(ATOMS)
    if kind < 0.65:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def near_miss(rng: random.Random) -> Any:
    """A good row with one thing wrong somewhere."""
    row: Any = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    place: Any = row
    while rng.random() < 0.7 and isinstance(place, (dict, list)) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not isinstance(place[key], (dict, list)) or rng.random() < 0.3:
            place[key] = value(rng)
            break
        place = place[key]
    return row


def is_sentence(error: DataError, field: str = "data.dataset") -> None:
    assert error.field == field
    assert error.message.endswith((".", "?")), error.message
    assert "\n" not in error.message
    assert len(error.message) < 1500
    error.message.encode("utf-8")


def outcome(path: Path) -> str:
    try:
        result = read_file(path)
    except DataError as error:
        is_sentence(error)
        return "refused"
    assert result.rows_read == len(result.conversations) + len(result.skipped)
    assert result.conversations
    for text in [*result.warnings, *(entry.reason for entry in result.skipped)]:
        text.encode("utf-8")
    for conversation in result.conversations:
        json.dumps(to_row(conversation), ensure_ascii=False).encode("utf-8")
    return "read"


@pytest.mark.parametrize("seed", range(8))
def test_random_rows(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    outcomes = []
    for number in range(60):
        make = near_miss if number % 2 else value
        rows = [make(rng) for _ in range(rng.randint(1, 5))]
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        outcomes.append(outcome(path))
        path.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")
        outcomes.append(outcome(path.with_suffix(".json")))
    assert {"refused", "read"} == set(outcomes)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_bytes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    good = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hello 🔥"}]}
    raw = "\n".join(json.dumps(good, ensure_ascii=False) for _ in range(3)).encode()
    path = tmp_path / "set.jsonl"
    for _ in range(60):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(damaged))
            damaged[start : start + rng.randint(0, 6)] = rng.randbytes(rng.randint(0, 6))
        path.write_bytes(bytes(damaged[: rng.randint(0, len(damaged))]))
        outcome(path)


def test_a_ten_megabyte_line(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "字" * 3_500_000}]}
    path = tmp_path / "big.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 10_000_000
    assert outcome(path) == "read"
    path.write_text('{"' + "x" * 10_000_000, encoding="utf-8")
    assert outcome(path) == "refused"


@pytest.mark.parametrize("depth", [50, 900, 5000, 200_000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "deep.json"
    path.write_text('[{"messages": ' + "[" * depth + "]" * depth + "}]", encoding="utf-8")
    assert outcome(path) == "refused"


@pytest.mark.parametrize("text", [atom for atom in ATOMS if isinstance(atom, str)])
def test_hostile_titles_and_references(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing that a text may name lies near it
    name = slug(text)
    assert is_name(name)
    assert Path(name).name == name
    store = DatasetStore(tmp_path / "datasets")
    for reference in (text, f"{text}.json", f"~{text}/x.jsonl"):
        with pytest.raises(DataError) as caught:
            store.resolve(reference)
        is_sentence(caught.value)
        with pytest.raises(DataError) as caught:
            read_file(reference)
        is_sentence(caught.value)
    with pytest.raises(DataError):
        store.load(text)


@pytest.mark.parametrize("text", [atom for atom in ATOMS if isinstance(atom, str)])
@pytest.mark.parametrize("field", ["name", "author", "facts"])
def test_hostile_identities_are_inserted_as_they_are_or_refused(text: str, field: str) -> None:
    values: dict[str, Any] = {"name": "Nova", "author": "Rui", "replay_share": 0.0}
    values[field] = [text] if field == "facts" else text
    try:
        spec = parse_spec(values)
    except DataError as error:
        is_sentence(error, field)
        return
    built = build_identity(spec)
    if text.strip():
        assert any(text.strip() in row["messages"][1]["content"] for row in built.rows)


def test_wrong_types_in_a_spec_name_the_field() -> None:
    for field in IdentitySpec.model_fields:
        for wrong in (object(), {"a": 1}, [[1]], float("nan")):
            with pytest.raises(DataError) as caught:
                parse_spec({"name": "Nova", "author": "Rui", field: wrong})
            assert caught.value.field == field
