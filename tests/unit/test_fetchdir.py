"""What may be fetched, and the state of a fetch as its directory tells it."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
import pytest

from studio.events import Launch, RunState
from studio.fetchdir import FetchDir, FetchStatus, fetches, job_for, job_for_folder, new_fetch
from studio.records import DataError
from studio.workspace import Workspace


@pytest.mark.parametrize(
    ("typed", "hub", "name"),
    [
        ("squad", "huggingface", "squad"),
        (" owner/My_set-1.0 ", "huggingface", "owner/My_set-1.0"),
        ("https://huggingface.co/datasets/owner/name", "huggingface", "owner/name"),
        ("huggingface.co/datasets/owner/name/viewer/default/train?row=1#x", "huggingface", "owner/name"),
        ("https://www.modelscope.cn/datasets/owner/name/summary", "modelscope", "owner/name"),
    ],
)
def test_ids(typed: str, hub: str, name: str) -> None:
    job = job_for(typed)
    assert (job.id, job.hub, job.name) == (name, hub, name.split("/")[-1])


@pytest.mark.parametrize(
    "typed",
    ["", " ", "a/b/c", "/etc/passwd", "../x", "a/..", "./a", "~/a", "a b", "a\x00b", "-rf", "owner/", "https://evil.example/a/b",
     "https://huggingface.co/datasets/", "a\nb", "作者/名", "x" * 400],
)  # fmt: skip
def test_no_ids(typed: str) -> None:
    with pytest.raises(DataError, match="is no hub id") as caught:
        job_for(typed)
    assert caught.value.field == "data.dataset"


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"rows": 0}, "data.rows"), ({"split": "x" * 999}, "data.split"), ({"subset": 7}, "data.subset")],
)
def test_wrong_settings_name_the_field(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError) as caught:
        job_for("owner/name", **settings)
    assert caught.value.field == field


def test_a_folder_is_a_job_of_its_own_kind(workspace: Workspace) -> None:
    job = job_for_folder(workspace.path / "." / "runs")
    assert (job.hub, job.id) == ("folder", str(workspace.runs))


@pytest.fixture
def fetch(workspace: Workspace) -> FetchDir:
    return new_fetch(workspace, job_for("owner/name", subset="en"))


def me(**changes: Any) -> Launch:
    facts = {
        "argv": [],
        "pid": os.getpid(),
        "create_time": psutil.Process().create_time(),
        "host": socket.gethostname(),
    }
    return Launch(**facts | changes)


def test_a_new_fetch_is_queued_and_listed(workspace: Workspace, fetch: FetchDir) -> None:
    second = new_fetch(workspace, job_for("owner/name"))
    assert fetch.status().state is RunState.QUEUED
    assert fetch.job().subset == "en"
    assert {item.id for item in fetches(workspace)} == {fetch.id, second.id}
    assert fetch.datasets == workspace.datasets


@pytest.mark.parametrize(
    ("written", "alive", "seen"),
    [
        (None, True, RunState.STARTING),
        (None, False, RunState.LOST),
        (RunState.RUNNING, True, RunState.RUNNING),
        (RunState.RUNNING, False, RunState.LOST),
        (RunState.FINISHED, False, RunState.FINISHED),
        (RunState.FAILED, False, RunState.FAILED),
        (RunState.STOPPED, False, RunState.STOPPED),
    ],
)
def test_states(fetch: FetchDir, written: RunState | None, alive: bool, seen: RunState) -> None:
    fetch.write_launch(me() if alive else me(create_time=1.0))
    if written:
        fetch.write_status(FetchStatus(state=written, done=3, total=9))
        assert fetch.status().done == 3
    assert fetch.status().state is seen


def test_torn_files(workspace: Workspace, fetch: FetchDir) -> None:
    fetch.status_file.write_text('{"state": "runn', encoding="utf-8")
    fetch.launch_file.write_text("[]", encoding="utf-8")
    assert fetch.status().state is RunState.QUEUED
    fetch.job_file.write_text('{"id": "x", "evil": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        fetch.job()
    (workspace.path / "imports" / "stray").write_text("x", encoding="utf-8")
    assert [item.id for item in fetches(workspace)] == [fetch.id]


def test_no_fetch_yet(workspace: Workspace) -> None:
    assert fetches(workspace) == []
