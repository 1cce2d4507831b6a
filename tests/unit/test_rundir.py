"""The run directory: atomic files, torn lines, states, hostile names."""

import errno
import itertools
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import psutil
import pytest

from studio.chains import where_it_is_now
from studio.config import MergeConfig, RunConfig
from studio.events import Launch, LogEvent, PhaseEvent, RunState, SampleEvent, Status, parse_event
from studio.rundir import READ_CHUNK, TAIL, RunDir, is_alive, observe, write_atomic
from studio.schema import ConfigError, build
from studio.workspace import RunNotFound, Workspace, WorkspaceError, slug

CONFIG = build(RunConfig, {"model_path": "crucible/ember", "data_path": "identity", "name": "Super Nova"})


@pytest.fixture
def ws(workspace) -> Workspace:
    return workspace


@pytest.fixture
def run(ws) -> RunDir:
    return ws.create_run(CONFIG)


def launch(**changes) -> Launch:
    me = psutil.Process()
    facts = {"argv": ["x"], "pid": me.pid, "create_time": me.create_time(), "host": os.uname().nodename}
    return Launch(**(facts | {"started_at": 100.0} | changes))


def test_events_round_trip_with_offsets(run):
    run.append_event(PhaseEvent(name="load"))
    first, offset = run.read_events()
    run.append_event(LogEvent(step=3, loss=float("nan"), grad_norm=1.5))
    second, _ = run.read_events(offset)
    assert [e.type for e in first + second] == ["phase", "log"]
    assert second[0].loss is None
    assert second[0].step == 3


def test_a_torn_last_line_is_left_for_the_next_read_and_repaired_by_the_next_write(run):
    run.append_event(PhaseEvent(name="load"))
    with run.events_file.open("ab") as file:
        file.write(b'{"type":"log","st')
    events, offset = run.read_events()
    assert len(events) == 1
    run.append_event(LogEvent(step=9))
    later, _ = run.read_events(offset)
    assert [e.step for e in later] == [9]


def test_foreign_lines_are_skipped(run):
    run.events_file.write_bytes(
        b'not json\n{"type":"from_the_future"}\n\xff\xfe\n{"type":"phase","name":"train"}\n[]\n'
    )
    assert [e.type for e in run.read_events()[0]] == ["phase"]


def test_reading_goes_in_blocks_and_passes_an_endless_line(run):
    for step in range(50):
        run.append_event(LogEvent(step=step))
    seen, offset = [], 0
    while True:
        events, offset = run.read_events(offset, limit=300)
        if not events:
            break
        seen += [e.step for e in events]
    assert seen == list(range(50))
    run.events_file.write_bytes(b"x" * 1000 + b"\n" + b'{"type":"log","step":1}\n')
    found, offset = [], 0
    for _ in range(20):
        events, offset = run.read_events(offset, limit=100)
        found += events
    assert [e.step for e in found] == [1]


def test_an_offset_beyond_the_end_starts_over(run):
    run.append_event(LogEvent(step=1))
    assert [e.step for e in run.read_events(10**9)[0]] == [1]


def test_hostile_text_stays_text(run):
    text = "</script>\n\u2028${alert(1)}\x00😀"
    run.append_event(SampleEvent(index=0, prompt=text, answer=text, reason="start"))
    assert run.read_events()[0][0].answer == text
    assert run.events_file.read_bytes().count(b"\n") == 1


def test_status_is_replaced_never_half_written(run):
    run.write_status(Status(state=RunState.RUNNING, step=1))
    run.write_status(Status(state=RunState.RUNNING, step=2))
    assert run.read_status().step == 2
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "status.json"]
    run.status_file.write_text('{"state": "runn')
    assert run.read_status() is None


STATUSES = [None, *(Status(state=s, updated_at=200.0) for s in RunState)]


@pytest.mark.parametrize(("status", "alive", "stop"), list(itertools.product(STATUSES, [True, False], [True, False])))
def test_observe_table(status, alive, stop):
    assert observe(status, None, alive=alive, stop_exists=stop) is RunState.QUEUED
    state = observe(status, launch(), alive=alive, stop_exists=stop)
    if status is None:
        assert state is (RunState.STARTING if alive else RunState.FAILED)
    elif status.state in (RunState.FINISHED, RunState.STOPPED, RunState.FAILED):
        assert state is status.state
    elif not alive:
        assert state is RunState.LOST
    else:
        assert state is (RunState.STOPPING if stop else RunState.RUNNING)


@pytest.mark.parametrize("alive", [True, False])
def test_a_resumed_run_is_starting_until_the_new_engine_speaks(alive):
    old = Status(state=RunState.STOPPED, updated_at=50.0)
    assert observe(old, launch(), alive=alive, stop_exists=False) is (RunState.STARTING if alive else RunState.LOST)


def test_a_reused_pid_is_not_alive():
    assert is_alive(launch())
    assert not is_alive(launch(create_time=psutil.Process().create_time() - 60))
    assert not is_alive(None)


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(child.pid).create_time()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not is_alive(launch(pid=child.pid, create_time=created))
    child.wait()


def test_a_run_on_another_host_is_alive_while_it_speaks():
    far = launch(host="elsewhere")
    assert is_alive(far, Status(state=RunState.RUNNING, updated_at=time.time()))
    assert not is_alive(far, Status(state=RunState.RUNNING, updated_at=time.time() - 1000))


def test_create_run_writes_the_whole_configuration_once(ws, run):
    assert run.config().train == CONFIG.train
    assert "per_device_train_batch_size" in run.config_file.read_text(encoding="utf-8")
    assert ws.create_run(CONFIG).id != run.id
    assert run.state() is RunState.QUEUED


def test_a_run_without_a_name_gets_one(ws):
    config = build(RunConfig, {"model_path": "crucible/ember", "data_path": "identity"})
    assert ws.create_run(config).config().name == "ember_qlora_identity"


def test_relative_paths_become_absolute(ws, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    config = ws.create_run(build(RunConfig, {"model_path": "base", "data_path": "rows.jsonl"})).config()
    assert config.data.dataset == str(tmp_path / "rows.jsonl")
    assert config.model.model_name_or_path == str(tmp_path / "base")
    merged = ws.create_run(MergeConfig(base="crucible/ember", adapter="base", out="m")).config()
    assert (merged.base, merged.out, merged.name) == ("crucible/ember", str(tmp_path / "m"), "merge_m")


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "..", "$(rm -rf ~)", "\x00", "a\nb", "😀", "尖米", "x" * 120, "<b>", "CON"]
)
def test_run_ids_are_safe_file_names(ws, name):
    run = ws.create_run(CONFIG.model_copy(update={"name": name}))
    assert run.path.parent == ws.runs
    assert ws.run(run.id).config().name == name
    assert "/" not in slug(name)
    assert slug(name) not in ("", ".", "..")


@pytest.mark.parametrize("run_id", ["", "..", "../runs", "nope", "/etc", "\x00", "a" * 5000])
def test_unknown_runs_are_not_found(ws, run, run_id):
    with pytest.raises(RunNotFound):
        ws.run(run_id)


def test_the_last_run_has_a_short_name(ws, run):
    assert ws.run("last").id == run.id
    assert ws.run("Super-Nova").id == run.id


def test_an_unwritable_workspace_is_one_sentence(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(WorkspaceError, match="--workspace"):
        Workspace(blocker / "ws")


def test_a_broken_configuration_is_listed_and_explained(ws, run):
    run.config_file.write_text("method: [", encoding="utf-8")
    assert ws.list_runs()[0].describe()["kind"] == "broken"
    with pytest.raises(ConfigError):
        run.config()


def test_a_torn_report_reads_as_none(run):
    run.report_file.write_text('{"verdict": ')
    assert run.read_report() is None
    run.report_file.write_text(json.dumps({"verdict": {"passed": True}}))
    assert run.describe()["verdict_passed"] is True


def test_only_one_engine_per_run(run):
    with run.engine_lock(), pytest.raises(TimeoutError):
        run.engine_lock().acquire()


@pytest.mark.parametrize("line", [b"", b"{}", b'{"type": 3}', b'{"type":"log","step":"x"}', b"\x80", b"null"])
def test_parse_event_never_raises(line):
    assert parse_event(line) is None


def test_the_last_status_fits_where_the_first_one_was(run):
    run.write_status(Status(state=RunState.RUNNING, step=123456))
    run.overwrite_status(Status(state=RunState.FAILED))
    assert run.read_status().state is RunState.FAILED


class Counted:
    """A file that tells how much of it is read."""

    def __init__(self, file, read: list[int]) -> None:
        self._file, self._read = file, read

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def seek(self, *place) -> int:
        return self._file.seek(*place)

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._read.append(len(block))
        return block


@pytest.fixture
def bytes_read(monkeypatch) -> list[int]:
    """How many bytes each read of an events file gave."""
    read: list[int] = []
    opened = Path.open

    def counted(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        return Counted(file, read) if self.name == "events.jsonl" and mode == "rb" else file

    monkeypatch.setattr(Path, "open", counted)
    return read


@pytest.fixture
def gigabyte(run) -> RunDir:
    """A run whose events hold a line of a gigabyte without end, between others."""
    lines = [LogEvent(step=step, loss=1.0).model_dump_json().encode() + b"\n" for step in range(1, 2001)]
    with run.events_file.open("wb") as file:
        file.writelines(lines[:1000])
        file.seek(2**30, os.SEEK_CUR)
        file.write(b"\n")
        file.writelines(lines[1000:])
    return run


def test_a_gigabyte_of_events_is_read_once_and_in_blocks(gigabyte, bytes_read):
    size, steps, offset, before = gigabyte.events_file.stat().st_size, [], 0, -1
    tracemalloc.start()
    while offset > before:
        before = offset
        events, offset = gigabyte.read_events(offset)
        steps += [event.step for event in events]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert steps == list(range(1, 2001))
    assert offset == size
    assert max(bytes_read) <= READ_CHUNK
    assert sum(bytes_read) <= size + 2 * READ_CHUNK
    assert peak < 4 * READ_CHUNK


def test_the_state_of_a_run_reads_no_events_and_a_broken_status_only_the_last(gigabyte, bytes_read):
    gigabyte.write_launch(launch(boot_id="before", start_ticks=1))
    gigabyte.write_status(Status(state=RunState.RUNNING, step=1999, updated_at=200.0))
    assert gigabyte.state() is RunState.LOST
    assert bytes_read == []
    gigabyte.status_file.write_text('{"state": "runn')
    assert gigabyte.describe()["step"] == 2000
    assert gigabyte.state() is RunState.LOST
    assert max(bytes_read) <= TAIL


@pytest.mark.parametrize(
    ("heard", "began", "alive", "state"),
    [
        (1, 2, True, RunState.STARTING),
        (1, 2, False, RunState.LOST),
        (2, 2, True, RunState.STOPPED),
        (2, 2, False, RunState.STOPPED),
        (3, 2, False, RunState.STOPPED),
    ],
)
@pytest.mark.parametrize("clock", [-3600.0, 3600.0])
def test_a_status_belongs_to_its_attempt_whatever_the_clock_says(heard, began, alive, state, clock):
    status = Status(state=RunState.STOPPED, attempt=heard, updated_at=100.0 + clock)
    assert observe(status, launch(attempt=began), alive=alive, stop_exists=False) is state


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_an_event_is_there_whole_or_not_at_all(run, monkeypatch, taken):
    run.append_event(LogEvent(step=1))
    before = run.events_file.read_bytes()
    write = os.write

    def full(handle, data):
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:-30]) if taken == 0 else write(handle, data[:taken]) and taken

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            run.append_event(PhaseEvent(name="load"))
    assert run.events_file.read_bytes() == before
    run.append_event(LogEvent(step=2))
    assert [event.step for event in run.read_events()[0]] == [1, 2]


def test_an_event_taken_in_parts_is_one_line(run, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    run.append_event(LogEvent(step=1))
    run.append_event(LogEvent(step=2))
    assert [event.step for event in run.read_events()[0]] == [1, 2]


def test_a_result_whose_successor_never_came_is_given_back(run):
    (run.path / "adapter.old").mkdir()
    (run.path / "model.old").mkdir()
    run.model.mkdir()
    (run.path / ".status.json.x.tmp").touch()
    (run.path / "my.tmp").touch()
    run.clear_leftovers()
    assert run.adapter.is_dir()
    assert (run.path / "model.old").is_dir(), "its successor came: only the deleting is left to do"
    assert not (run.path / ".status.json.x.tmp").exists()
    assert (run.path / "my.tmp").exists()


@pytest.mark.parametrize("what", ["config", "launch", "status"])
def test_a_full_disk_leaves_the_older_file(run, monkeypatch, what):
    run.write_launch(launch())
    run.write_status(Status(state=RunState.RUNNING, step=7))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writers = {
        "config": lambda: write_atomic(run.config_file, "x"),
        "launch": lambda: run.write_launch(launch(attempt=9)),
        "status": lambda: run.write_status(Status(state=RunState.FINISHED, step=9)),
    }
    with pytest.raises(OSError, match="No space"):
        writers[what]()
    assert run.config().name == CONFIG.name
    assert run.read_launch().attempt == 1
    assert run.read_status().step == 7
    assert not list(run.path.glob(".*"))


def test_earlier_runs_are_found_in_a_moved_workspace(ws, tmp_path):
    earlier = ws.create_run(CONFIG)
    for folder in (earlier.adapter, earlier.model):
        folder.mkdir()
    config = {"model_path": earlier.id, "model": {"adapter": str(earlier.adapter)}, "data_path": "identity"}
    later = ws.create_run(build(RunConfig, config))
    merge = ws.create_run(MergeConfig(base=str(earlier.model), adapter=str(earlier.adapter), out="m"))
    moved = Workspace(ws.path.rename(tmp_path / "runs"))  # the name of a folder in it, to be mean
    now = moved.run(earlier.id)
    assert moved.run(later.id).config().model.model_name_or_path == str(now.model)
    assert moved.run(later.id).config().model.adapter == str(now.adapter)
    assert moved.run(merge.id).config().base == str(now.model)
    now.model.rmdir()
    assert moved.run(merge.id).config().base == str(earlier.model), "what is nowhere keeps the name it had"


@pytest.mark.parametrize(
    "reference", ["", "/", "/runs", "/runs/", "runs/x", "/a\x00b/runs/x", "/" + "x" * 5000, "org/m"]
)
def test_what_is_no_folder_of_a_run_stays_as_it_is(tmp_path, reference):
    assert where_it_is_now(reference, tmp_path) == reference
