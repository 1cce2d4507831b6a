"""Which checkpoints may be offered: whole ones only, whatever interrupted their writing or their deletion."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.checkpoints import (
    MANIFEST,
    STATE,
    complete_checkpoints,
    flaw_of,
    is_complete,
    last_checkpoint,
    processes_of,
    remove,
    remove_torn,
    rotate,
    seal,
    settle,
    torn,
)


def checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    """One as the trainer writes it, in small."""
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(32)
    (made / "adapter_model.safetensors").write_bytes(weights)
    with zipfile.ZipFile(made / "optimizer.pt", "w") as archive:
        archive.writestr("data", "x" * 100)
    (made / "README.md").write_text("")
    state = {"global_step": step, "best_model_checkpoint": str(folder / "checkpoint-1")}
    (made / STATE).write_text(json.dumps(state))
    if sealed:
        seal(made)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("damage", [cut, empty], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", STATE])
def test_a_file_that_lacks_its_end(tmp_path: Path, sealed: bool, damage: Callable[[Path], None], name: str):
    made = checkpoint(tmp_path, 4, sealed=sealed)
    assert is_complete(made)
    damage(made / name)
    assert not is_complete(made)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "README.md", STATE])
def test_a_file_that_is_missing(tmp_path: Path, name: str):
    made = checkpoint(tmp_path, 4)
    (made / name).unlink()
    assert not is_complete(made)


def test_of_several_writers_nobody_knows_without_the_list_whether_all_had_come_to_their_end(tmp_path: Path):
    made = checkpoint(tmp_path, 4, sealed=False)
    for rank in (0, 1):
        with zipfile.ZipFile(made / f"rng_state_{rank}.pth", "w") as archive:
            archive.writestr("data", "x")
    assert processes_of(made) == 2
    assert torn(tmp_path) == [made]
    seal(made)
    assert is_complete(made)
    assert not torn(tmp_path)
    (made / "rng_state_1.pth").unlink()
    assert flaw_of(made) == "rng_state_1.pth"
    cut(made / "adapter_model.safetensors")
    assert flaw_of(made) == "adapter_model.safetensors"
    assert torn(tmp_path) == [made]


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1', '{"../x": 1}', "[" * 100_000])
def test_a_list_of_files_that_is_none(tmp_path: Path, text: str):
    made = checkpoint(tmp_path, 4)
    (made / MANIFEST).write_text(text)
    assert not is_complete(made)


@pytest.mark.parametrize("weights", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x04" + bytes(7) + b"null"])
def test_weights_that_are_none(tmp_path: Path, weights: bytes):
    made = checkpoint(tmp_path, 4, sealed=False)
    (made / "adapter_model.safetensors").write_bytes(weights)
    assert not is_complete(made)


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, None, [1, 2, 9, 10]),
        (-1, None, [1, 2, 9, 10]),
        (2, None, [9, 10]),
        (1, None, [10]),
        (2, 2, [2, 10]),
        (1, 2, [2, 10]),
        (3, 1, [1, 9, 10]),
        (9, None, [1, 2, 9, 10]),
        (1, 77, [10]),
    ],
)
def test_the_lowest_steps_go_whatever_the_clock_says(tmp_path: Path, limit: int | None, keep: int | None, left):
    for step in (1, 2, 9, 10):
        made = checkpoint(tmp_path, step)
        os.utime(made, (1e9 - step, 1e9 - step))
    rotate(tmp_path, limit, tmp_path / f"checkpoint-{keep}" if keep else None)
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_deleting_is_not_stopped_by_what_an_earlier_one_left(tmp_path: Path):
    made = checkpoint(tmp_path, 4)
    leftover = tmp_path / ".checkpoint-4.gone"
    leftover.mkdir()
    (leftover / "file").touch()
    remove(made)
    assert names(tmp_path) == []


def test_what_is_torn_is_removed_and_what_is_strange_stays(tmp_path: Path):
    whole = checkpoint(tmp_path, 4)
    (checkpoint(tmp_path, 6) / "optimizer.pt").unlink()
    (tmp_path / ".checkpoint-2.gone").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-8").write_text("a file")
    remove_torn(tmp_path)
    assert [path for path in names(tmp_path) if path != "checkpoint-8"] == ["checkpoint-4", "checkpoint-best"]
    assert complete_checkpoints(tmp_path) == [whole]
    remove_torn(tmp_path / "none")
    assert last_checkpoint(tmp_path / "none") is None


def test_the_best_one_is_found_where_the_checkpoints_are_now(tmp_path: Path):
    checkpoint(tmp_path / "old", 1)
    made = checkpoint(tmp_path / "old", 4)
    before = (made / STATE).read_bytes()
    settle(made)
    assert (made / STATE).read_bytes() == before, "nothing to do"
    moved = (tmp_path / "old").rename(tmp_path / "new") / "checkpoint-4"
    settle(moved)
    assert json.loads((moved / STATE).read_bytes())["best_model_checkpoint"] == str(tmp_path / "new" / "checkpoint-1")
    assert is_complete(moved)
    remove(tmp_path / "new" / "checkpoint-1")
    settle(moved)
    assert is_complete(moved)
