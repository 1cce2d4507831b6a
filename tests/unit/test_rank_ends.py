"""How a run with several processes failed, and which process the others wait for; pure, without any process."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from studio.engine import rank_journal
from studio.engine.rank_ends import RankEnd, Stuck, cause, told, warning
from studio.engine.rank_watch import RankWatch
from studio.events import LOST, ExitCode, RankStatus, RunError, RunState
from studio.rundir import RunDir

BAD_DATA = RunError(kind="data", message="data.dataset: row 3 is empty.", field="data.dataset")
NO_MEMORY = RunError(
    kind="memory",
    message="data.max_length: no room.",
    hint="See engine.log.",
    field="data.max_length",
    details={"n": 1},
)
OF_ANOTHER = RunError(kind="disk", message="workspace: process 2 of 3: the disk is full.", details={"rank": 2})
MISSED = RunError(kind="internal", message="The connection to another process was closed.", details={LOST: True})


def end(rank: int, code: int, at: float = 100.0, error: RunError | None = None, **status: Any) -> RankEnd:
    """A process that ended so."""
    return RankEnd(rank, code, at, RankStatus(rank=rank, error=error, **status), "its last words")


@pytest.mark.parametrize(
    ("ends", "first"),
    [
        ([end(0, 0), end(1, 0)], None),
        ([end(0, 1, 99, MISSED), end(1, -9)], 1),
        ([end(0, -15, 101), end(1, 5, 100, NO_MEMORY)], 1),
        ([end(0, -6, 99), end(1, 4, 100, BAD_DATA)], 1),  # NCCL's watchdog aborts those that wait
        ([end(0, 1, 100, MISSED), end(1, -9, 131)], 0),  # it did not end when told to, so it was killed
        ([end(0, -15, 100, updated_at=7), end(1, -15, 100, updated_at=3)], 1),
        ([end(0, 1, 100, MISSED), end(1, 1, 100)], 1),
        ([end(0, 4, 100, BAD_DATA), end(1, 4, 100, BAD_DATA)], 0),
        ([end(0, 1, 99, OF_ANOTHER), end(1, 1, 99, OF_ANOTHER), end(2, 1, 100, NO_MEMORY)], 2),
    ],
    ids=["none", "killed", "memory", "aborted", "hung", "ended", "silent", "both", "told"],
)
def test_the_process_that_failed_first_is_found(ends: list[RankEnd], first: int | None) -> None:
    found = cause(ends)
    assert (found.rank if found else None) == first


def test_a_killed_process_is_named_with_its_machine_and_the_signal() -> None:
    error, code = told(end(3, -9, step=7, busy="save"), 4, "node-b")
    assert error.message == "Process 3 of 4 (node-b) was killed by SIGKILL at step 7, in the middle of save."
    assert "memory ran out" in error.hint
    assert (error.rank, code) == (3, ExitCode.INTERNAL)


def test_what_a_process_says_of_itself_is_kept_with_its_code_and_details() -> None:
    error, code = told(end(1, 5, error=NO_MEMORY), 2, "vm")
    assert (error.message, code) == ("data.max_length: process 1 of 2 (vm): no room.", ExitCode.OUT_OF_MEMORY)
    assert error.details == {"n": 1, "rank": 1}
    assert error.hint == "See engine.rank1.log."
    assert told(end(1, 4, error=BAD_DATA), 2, "vm") == (BAD_DATA, ExitCode.BAD_INPUT)
    silent = told(end(1, 7), 2, "vm")[0]
    assert "exit code 7, after it said: its last words" in silent.message
    assert silent.rank == 1


def test_what_a_process_of_another_machine_says_is_blamed_on_that_one() -> None:
    error, _ = told(end(0, 1, error=OF_ANOTHER), 3, "vm")
    assert (error.message, error.rank) == (OF_ANOTHER.message, 2)


def test_who_gave_up_waiting_names_the_one_it_waited_for() -> None:
    stuck = Stuck(1, "node-b", "batch 7 (step 8)", 1800.0)
    error, code = told(end(0, 1, error=MISSED), 2, "node-a", stuck)
    assert error.message.startswith("Process 1 of 2 (node-b) has been in the middle of batch 7 (step 8) for 1800 s.")
    assert (error.field, error.rank, code) == ("parallel.ddp_timeout", 1, ExitCode.INTERNAL)
    assert "The others wait for it, at most 900 s" in warning(stuck, 2, 900)


def statuses(now: float, *changes: dict[str, Any]) -> list[RankStatus]:
    """Two or more processes at work at step 4, each with a fresh sign of life unless told otherwise."""
    usual: dict[str, Any] = {"step": 4, "batch": 5, "busy": "step", "meetings": 20, "updated_at": now}
    return [RankStatus(rank=rank, **(usual | change)) for rank, change in enumerate(changes)]


def test_a_process_that_falls_silent_is_named() -> None:
    watch = RankWatch(1800)
    for now in range(29):
        assert watch.look(statuses(now, {}, {"updated_at": 0}), now) is None
    stuck = watch.look(statuses(31, {}, {"updated_at": 0}), 31)
    assert stuck
    assert (stuck.rank, stuck.silent, stuck.seconds, stuck.doing) == (1, True, 31, "batch 5 (step 5)")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (({}, {"meetings": 19}), 1),
        (({"busy": "samples"}, {"busy": None}), 0),
        (({}, {}), None),
        (({"state": RunState.FINISHED}, {}), None),
        (({"busy": None, "meetings": 21}, {"busy": None}, {"meetings": 21}), 1),
    ],
    ids=["behind", "asks", "nobody knows", "alone", "of three"],
)
def test_a_process_that_does_not_move_is_named_when_the_others_wait_for_it(
    changes: tuple[dict[str, Any], ...], named: int | None
) -> None:
    watch = RankWatch(1800)
    assert [watch.look(statuses(now, *changes), now) for now in (0, 20, 40, 59)] == [None] * 4
    found = watch.look(statuses(60, *changes), 60)
    assert (found.rank if found else None) == named


def test_whoever_moves_is_waited_for_and_a_short_patience_names_sooner() -> None:
    watch = RankWatch(1800)
    for now in range(0, 300, 20):
        assert watch.look(statuses(now, {"moves": now}, {"meetings": 19}), now) is None
    hasty = RankWatch(30)
    assert hasty.look(statuses(0, {}, {"meetings": 19}), 0) is None
    assert hasty.look(statuses(11, {}, {"meetings": 19}), 11)


def test_a_disk_too_full_for_another_file_does_not_hide_why_a_process_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.ranks.mkdir()
    journal = rank_journal.RankJournal(run, 1)
    journal.update(force=True, phase="train")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rank_journal, "write_atomic", full)
    journal.finish(RunState.FAILED, ExitCode.BAD_INPUT, BAD_DATA)
    assert [(one.state, one.error) for one in run.read_ranks()] == [(RunState.FAILED, BAD_DATA)]


def test_who_misses_the_others_after_a_stop_has_stopped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.ranks.mkdir()
    run.request_stop()
    rank_journal.RankJournal(run, 1).finish(RunState.FAILED, ExitCode.INTERNAL, MISSED)
    assert [(one.state, one.error) for one in run.read_ranks()] == [(RunState.STOPPED, None)]
