"""Uploads stay as long as a run names them, and go with the last one that does."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from studio import uploads
from studio.config import AnswersConfig
from studio.events import Launch, RunState, Status
from studio.run_deletion import delete_runs
from studio.rundir import RunDir
from studio.uploads import YOUNG_S, new_upload, sweep
from studio.workspace import Workspace


def upload(workspace: Workspace, stem: str = "prompts", age: float = 0.0) -> Path:
    """A folder with a file in it, written so many seconds ago."""
    folder = new_upload(workspace, stem)
    file = folder / "prompts.txt"
    file.write_bytes(b"x" * 1000)
    then = time.time() - age
    for path in (file, folder):
        os.utime(path, (then, then))
    return folder


def asking(workspace: Workspace, folder: Path) -> RunDir:
    """An ended run that was asked the prompts of an upload."""
    config = AnswersConfig(prompts=str(folder / "prompts.txt"), model="crucible/ember", out="a.jsonl")
    run = workspace.create_run(config)
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here"))
    run.write_status(Status(state=RunState.FINISHED, exit_code=0))
    return run


def test_only_what_no_run_names_and_nobody_is_just_bringing_goes(workspace: Workspace) -> None:
    named = upload(workspace, "我的 𠀀", age=2 * YOUNG_S)
    asking(workspace, named)
    young = upload(workspace)
    forgotten = upload(workspace, age=2 * YOUNG_S)
    assert sweep(workspace) == 1000
    assert (named.is_dir(), young.is_dir(), forgotten.exists()) == (True, True, False)


def test_a_file_that_is_still_being_written_is_young(workspace: Workspace) -> None:
    folder = upload(workspace, age=2 * YOUNG_S)
    os.utime(folder / "prompts.txt")
    assert sweep(workspace) == 0
    assert folder.is_dir()


def test_the_next_upload_clears_what_earlier_ones_left(workspace: Workspace) -> None:
    forgotten = upload(workspace, age=2 * YOUNG_S)
    assert new_upload(workspace, "again").is_dir()
    assert not forgotten.exists()


def test_a_link_is_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"x")
    link = new_upload(workspace, "x").with_name("link")
    link.symlink_to(tmp_path / "mine")
    assert sweep(workspace, [str(link)]) == 0
    assert (tmp_path / "mine" / "file").is_file()


def test_an_upload_goes_with_the_last_run_that_names_it(workspace: Workspace) -> None:
    folder = upload(workspace)
    first, second = asking(workspace, folder), asking(workspace, folder)
    delete_runs(workspace, [first.id])
    assert folder.is_dir()
    found = delete_runs(workspace, [second.id])
    assert not folder.exists()
    assert found.bytes >= 1000, "it counts among what was freed"


def test_where_a_configuration_cannot_be_read_nothing_goes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = upload(workspace, age=2 * YOUNG_S)
    run = asking(workspace, folder)
    plain = Path.read_text

    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        if path == run.config_file:
            raise OSError(errno.EIO, "Input/output error")
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read)
    assert sweep(workspace) == 0
    assert folder.is_dir()


def test_without_uploads_no_configuration_is_read(workspace: Workspace, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(uploads, "_configurations", lambda _: 1 / 0)
    assert sweep(workspace) == 0
