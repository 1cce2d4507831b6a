"""How much memory is left by every bound, and the guard that speaks before the kernel kills: on made-up numbers.

The same under real limits: tests/engine/test_out_of_memory.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from studio.engine import memory_guard
from studio.engine.activity import activity_of, batch, current, during
from studio.engine.failure import explain
from studio.engine.memory_guard import MemoryGuard, enough_left, least_left
from studio.engine.shortage import MemoryShort, Place
from studio.events import ExitCode
from studio.memory_room import Group, Room, control_groups, mapped, resident, rooms, tightest

MB, GB = 1 << 20, 1 << 30
ROOT = Path(__file__).resolve().parents[2]


def group_files(folder: Path, limit: str, used: str, **stat: int) -> None:
    """The files of a control group of version 1 or 2, whichever `limit` is named for."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if (folder / "v2").exists() else V1
    for name, text in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{text}\n", encoding="ascii")
    (folder / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()), encoding="ascii")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def proc(folder: Path, text: str) -> Path:
    (folder / "cgroup").write_text(text, encoding="ascii")
    return folder


def test_a_group_of_version_1_and_those_around_it(tmp_path: Path) -> None:
    outer = tmp_path / "memory" / "a"
    group_files(outer, str(4 * GB), str(GB), total_inactive_file=0)
    group_files(outer / "b", str(2 * GB), str(GB), total_inactive_file=100 * MB, total_active_file=28 * MB, cache=5)
    found = control_groups(proc(tmp_path, "8:cpu,memory:/a/b\n0::/\n"), tmp_path)
    assert [group.folder for group in found] == [outer / "b", outer]
    limits = {room.limit: room for room in rooms(found) if room.bound == "control_group"}
    assert limits.keys() == {2 * GB, 4 * GB}
    # Files kept in memory are given back before anybody is killed.
    assert limits[2 * GB].free == GB + 128 * MB
    assert limits[4 * GB].used == GB


def test_a_group_of_version_2_seen_from_inside_its_container(tmp_path: Path) -> None:
    (tmp_path / "v2").touch()
    group_files(tmp_path, str(GB), str(GB // 2), inactive_file=MB, total_inactive_file=7 * MB)
    found = control_groups(proc(tmp_path, "0::/kubepods/pod1\n"), tmp_path)  # the host's path is not there
    assert [group.folder for group in found] == [tmp_path]
    (room,) = [room for room in rooms(found) if room.bound == "control_group"]
    assert room.free == GB // 2 + MB


@pytest.mark.parametrize("limit", ["max", "", "9223372036854771712", "x"])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    group_files(tmp_path, limit, "1")
    group = Group(tmp_path, *V1, ())
    assert [room.bound for room in rooms((group,)) if room.bound == "control_group"] == []


def test_files_that_are_not_there_say_nothing(tmp_path: Path) -> None:
    assert control_groups(tmp_path / "none", tmp_path) == ()
    assert control_groups(proc(tmp_path, "0::/x\n1:memory:/y\n"), tmp_path) == ()


def test_the_machine_always_bounds() -> None:
    machine = next(room for room in rooms(()) if room.bound == "machine")
    assert 0 < machine.free <= machine.limit
    assert machine.limit >= psutil.virtual_memory().total
    assert 0 < resident() < mapped()
    assert tightest(()).free <= machine.free


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux")
def test_an_address_space_with_a_limit_is_seen() -> None:
    program = (
        "import resource, studio.memory_room as m\n"
        "most = m.mapped() + (300 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "room = m.tightest()\n"
        "print(room.bound, room.limit == most, 200 << 20 < room.free < 301 << 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["address_space", "True", "True"]


# ---- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [128 * MB, GB, 16 * GB, 512 * GB])
def test_what_must_be_left_fits_the_limit(limit: int) -> None:
    room = Room("control_group", limit, limit)
    assert 0 < least_left(room) < enough_left(room) <= limit // 4
    assert enough_left(room) <= 4 * GB


def test_an_allocator_that_says_no_itself_is_left_to_it() -> None:
    assert least_left(Room("address_space", 8 * GB, 0)) == 0


def nobody(*_: object) -> None:
    raise AssertionError("the last word was not the guard's")


def test_little_left_is_raised_where_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [Room("machine", 8 * GB, 4 * GB)]
    monkeypatch.setattr(memory_guard, "rooms", lambda _: list(left))

    def work() -> None:
        with MemoryGuard(Place, nobody).watching(), during("samples"):
            left[0] = Room("machine", 8 * GB, enough_left(left[0]) - 1)
            while True:
                time.sleep(0.01)

    with pytest.raises(MemoryShort) as caught:
        work()
    assert caught.value.room == left[0]
    found = activity_of(caught.value)
    assert found is not None
    assert found.name == "samples"


@pytest.mark.parametrize("chained", [True, False])
def test_a_library_that_makes_something_else_of_it_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, chained: bool
) -> None:
    left = [Room("machine", 8 * GB, 4 * GB)]
    monkeypatch.setattr(memory_guard, "rooms", lambda _: list(left))

    def library() -> None:
        left[0] = Room("machine", 8 * GB, enough_left(left[0]) - 1)
        told = ""
        while not told:
            try:
                time.sleep(0.01)
            except MemoryError as error:
                told = str(error)
                if chained:
                    raise RuntimeError("weights could not be converted") from error
        raise RuntimeError("weights could not be converted")

    def work() -> None:
        with MemoryGuard(Place, nobody).watching(), during("load"):
            library()

    with pytest.raises((MemoryShort, RuntimeError)) as caught:
        work()
    told, code = explain(caught.value)
    assert (told.kind, code) == ("memory", ExitCode.OUT_OF_MEMORY)
    assert told.details["activity"] == "load"
    assert told.details["available_bytes"] == left[0].free


def test_an_error_of_another_activity_stays_what_it_is() -> None:
    """A lack of memory that a library got over says nothing about what goes wrong later."""

    def work() -> None:
        with during("load"):
            activity = current()
            assert activity is not None
            activity.short = MemoryShort(Room("machine", 8 * GB, 1))
        with during("step"):
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        work()


def test_work_that_fits_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(memory_guard, "rooms", lambda _: looked.append(1) or [Room("machine", 8 * GB, 4 * GB)])
    with MemoryGuard(Place, nobody).watching():
        while len(looked) < 5:
            time.sleep(0.01)


def test_at_the_very_last_the_guard_ends_the_process_itself() -> None:
    program = (
        "import time\n"
        "from studio.engine import memory_guard as g\n"
        "from studio.engine.shortage import Place\n"
        "from studio.memory_room import Room\n"
        "g.rooms = lambda _: [Room('control_group', 1 << 30, 1 << 20)]\n"
        "def last(error, code): print(error.kind, error.details['phase'], int(code), flush=True)\n"
        "with g.MemoryGuard(lambda: Place('train', 3), last).watching():\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 5
    assert done.stdout.split() == ["memory", "train", "5"]
    assert "1 MB of 1.0 GB were left" in done.stderr


# ---- what the engine is busy with ------------------------------------------------------------------------------------


def test_the_innermost_activity_is_remembered() -> None:
    def work() -> None:
        with during("step"), during("samples"):
            batch(rows=3, length=7)
            raise ValueError("x")

    assert current() is None
    with pytest.raises(ValueError, match="x") as caught:
        work()
    found = activity_of(caught.value)
    assert found is not None
    assert (found.name, found.shape) == ("samples", {"rows": 3, "length": 7})
    assert current() is None
    batch(rows=1)  # outside of everything: nothing to say
