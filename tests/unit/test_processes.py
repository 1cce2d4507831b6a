"""A process on record is that very process, not another one with its number: clocks, reboots, zombies, containers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from studio import processes
from studio.events import Launch

SLEEPER = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


def launch(pid: int = 0, **changes: object) -> Launch:
    return Launch.model_validate(processes.record(pid or os.getpid()) | {"argv": ["x"]} | changes)


def test_a_process_is_found_again():
    assert processes.visible(launch())
    assert processes.runs(launch())


def test_the_creation_time_moves_with_the_clock_and_does_not_matter():
    real = psutil.Process().create_time()
    assert processes.runs(launch(create_time=real - 3600)), "the clock was set forward since"
    assert processes.runs(launch(create_time=real + 3600)), "the clock was set back since"


@pytest.mark.parametrize("later", [-1, 1, 10_000])
def test_a_pid_that_was_handed_out_again(later):
    ticks = processes.record(os.getpid())["start_ticks"]
    assert not processes.runs(launch(start_ticks=ticks + later))


def test_after_a_reboot_no_process_is_the_old_one():
    assert not processes.runs(launch(boot_id="before"))


@pytest.mark.parametrize("seconds", [-60, 60])
def test_where_the_kernel_tells_no_more_the_creation_time_decides(seconds):
    real = psutil.Process().create_time()
    older = {"start_ticks": None, "boot_id": None, "pid_namespace": None}
    assert processes.runs(launch(**older))
    assert not processes.runs(launch(**older, create_time=real + seconds))


def test_a_machine_may_be_renamed_while_a_run_is_at_work():
    renamed = launch(host="another name")
    assert processes.visible(renamed)
    assert processes.runs(renamed)


@pytest.mark.parametrize("changes", [{"boot_id": "x"}, {"pid_namespace": "x"}, {"boot_id": None}], ids=str)
def test_another_machine_or_container_cannot_be_looked_into(changes):
    assert not processes.visible(launch(host="elsewhere", **changes))
    assert processes.visible(launch(host=socket.gethostname(), **changes))


def test_a_zombie_has_ended_and_so_has_one_that_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    born = launch(child.pid)
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not processes.runs(born)
    assert not processes.runs(born.model_copy(update={"start_ticks": None, "boot_id": None}))
    child.wait()
    assert not processes.runs(born)
    never = launch(child.pid)
    assert not processes.runs(never)


@pytest.mark.parametrize("name", ["a b", ") Z 1 (", "\n) R 0 ", "((("])
def test_a_name_of_a_command_that_looks_like_fields(tmp_path: Path, name: str):
    program = tmp_path / name
    program.symlink_to(sys.executable)
    child = subprocess.Popen([str(program), "-c", SLEEPER], executable=str(program), stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert processes.runs(launch(child.pid))
    finally:
        child.kill()
        child.communicate()
    assert not processes.runs(launch(child.pid))


@pytest.mark.parametrize(("text", "attempt"), [("3", 3), ("", None), ("x", None), ("-1", None), ("1e3", None)])
def test_which_attempt_a_process_was_told(text, attempt):
    assert processes.marked_attempt({processes.ATTEMPT_MARK: text}) == attempt
    assert processes.marked_attempt({}) is None


def sleeper(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that does not care for SIGTERM and is in a session of its own."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], env=os.environ | environment, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_what_an_engine_leaves_behind_is_ended_and_nothing_else(tmp_path: Path):
    run = tmp_path / "run 1"
    left = [sleeper(processes.marks(run, 1)), sleeper(processes.marks(run, 2))]
    others = [sleeper({}), sleeper(processes.marks(tmp_path / "run 10", 1))]
    try:
        assert sorted(processes.end_remains(run)) == sorted(child.pid for child in left)
        assert all(child.poll() is not None for child in left)
        assert [child.poll() for child in others] == [None, None]
        assert processes.end_remains(run) == []
    finally:
        for child in left + others:
            child.kill()
            child.communicate()
