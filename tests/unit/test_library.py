"""The library of runs: true lines, kept until something changes; labels; deleting only what nobody needs."""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from studio import labels, library
from studio.config import MergeConfig, RunConfig
from studio.curves import last_values, read_curves, worked_seconds
from studio.events import EvalEvent, FinishedEvent, Launch, LogEvent, RunState, SampleEvent, StartedEvent, Status
from studio.library import Library, matches, read_line
from studio.run_deletion import DeletionRefused, delete_runs
from studio.run_queue import StartRefused
from studio.schema import ConfigError, build


@pytest.fixture
def ws(workspace):
    return workspace


def new(ws, name="one", now=None, **more):
    data = {"name": name, "model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "rows"}} | more
    return ws.create_run(build(RunConfig, data), now)


def process(run, pid=None, started=None):
    """launch.json of a process: this one by default."""
    me = psutil.Process(pid or os.getpid())
    started = started or time.time()
    run.write_launch(
        Launch(argv=[], pid=me.pid, create_time=me.create_time(), host=socket.gethostname(), started_at=started)
    )


def ended(run, state=RunState.FINISHED, passed=True, loss=0.25):
    process(run)
    run.append_event(StartedEvent(t=1000, max_steps=4))
    run.append_event(LogEvent(t=1010, step=4, loss=0.5))
    run.append_event(FinishedEvent(t=1030, step=4, state=state, exit_code=0))
    run.write_status(Status(state=state, step=4, max_steps=4))
    verdict = {"passed": passed, "learned": {"share": 0.9}, "leaked": {"share": 0.0}, "forgot": {"retained": 1.0}}
    run.report_file.write_text(json.dumps({"verdict": verdict, "train_loss": loss}), encoding="utf-8")
    return run


def aged(run, seconds=60):
    """As if the run had not been touched for a while."""
    then = time.time() - seconds
    for path in (run.status_file, run.checkpoints, run.path):
        if path.exists():
            os.utime(path, (then, then))


def test_a_line_has_everything_a_list_shows(ws):
    run = ended(new(ws, "first"))
    (run.adapter).mkdir()
    (run.adapter / "weights").write_bytes(b"x" * 5000)
    labels.rename(run, "My best")
    labels.tag(run, ["good"])
    line = read_line(run)
    shown = {key: line[key] for key in ("name", "title", "config_name", "tags", "state", "method", "model", "dataset")}
    assert shown == {
        "name": "My best",
        "title": "My best",
        "config_name": "first",
        "tags": ["good"],
        "state": "finished",
        "method": "qlora",
        "model": "ember",
        "dataset": "rows",
    }
    assert (line["verdict_passed"], line["learned"], line["leaked"], line["retained"]) == (True, 0.9, 0.0, 1.0)
    assert (line["loss"], line["duration_seconds"]) == (0.25, 30.0)
    assert line["size_bytes"] == sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    assert line["size_bytes"] > 5000


def test_without_a_report_the_loss_is_the_last_one_written(ws):
    run = new(ws)
    run.append_event(LogEvent(step=1, loss=3.0))
    run.append_event(EvalEvent(step=1, eval_loss=2.5))
    run.append_event(LogEvent(step=2, loss=2.0))
    run.append_event(LogEvent(step=3, grad_norm=1.0))
    with run.events_file.open("ab") as file:
        file.write(b'{"type":"log","step":4,"lo')
    assert (read_line(run)["loss"], read_line(run)["eval_loss"]) == (2.0, 2.5)
    assert last_values(new(ws)).loss is None


def test_broken_and_foreign_runs_are_lines_too(ws):
    broken = new(ws)
    broken.config_file.write_text("kind: train\nnonsense: [", encoding="utf-8")
    merge = ws.create_run(build(MergeConfig, {"base": "some/base", "adapter": "a", "out": str(ws.exports / "m")}))
    assert read_line(broken)["kind"] == "unreadable"
    assert (read_line(merge)["kind"], read_line(merge)["model"]) == ("merge", "base")
    assert {line["id"] for line in library.lines(ws)} == {broken.id, merge.id}


def test_work_is_summed_over_the_attempts_without_the_time_between(ws):
    run = new(ws)
    assert worked_seconds(run) is None
    for begin, end in ((1000, 1060), (9000, 9030)):
        run.append_event(StartedEvent(t=begin))
        run.append_event(LogEvent(t=end, step=1))
    with run.events_file.open("ab") as file:
        file.write(b'not json\n{"type":"log","t":99999,"st')
    assert worked_seconds(run) == 90


def test_a_live_run_counts_up_to_now(ws):
    run = new(ws)
    begun = time.time()
    process(run)
    run.append_event(StartedEvent(t=begun - 100))
    run.append_event(LogEvent(t=begun - 40, step=1))
    run.write_status(Status(state=RunState.RUNNING, updated_at=time.time()))
    status = run.read_status().model_copy(update={"updated_at": time.time() + 0.1})
    run.write_status(status)
    assert read_line(run)["live"]
    shown = read_line(run)["duration_seconds"]
    assert 59 < shown < 61 + time.time() - begun


def test_curves_are_joined_where_a_resume_went_on(ws):
    run = new(ws)
    run.append_event(StartedEvent(max_steps=4))
    for step in (1, 2, 3):
        run.append_event(LogEvent(step=step, loss=float(step)))
    run.append_event(EvalEvent(step=3, eval_loss=3.0))
    run.append_event(SampleEvent(step=3, index=0, prompt="p", answer="old", reason="freq"))
    run.append_event(StartedEvent(max_steps=4, resumed_from=2))
    run.append_event(LogEvent(step=3, loss=30.0))
    run.append_event(LogEvent(step=3, grad_norm=1.5))
    run.append_event(SampleEvent(step=4, index=0, prompt="p", answer="new", reason="end"))
    curves = read_curves(run)
    assert [(log.step, log.loss) for log in curves.logs] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert curves.logs[-1].grad_norm == 1.5
    assert curves.evals == []
    assert [sample.answer for sample in curves.samples] == ["new"]
    assert curves.attempts == [0, 2]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", True),
        ("NOVA", True),
        ("ember rows", True),
        ("qlora good", True),
        ("ember absent", False),
        ("ood-tag", True),
    ],
)
def test_search_wants_every_word_somewhere(ws, query, found):
    run = labels.tag(new(ws, "Nova"), ["good-tag"]) and ws.list_runs()[0]
    assert matches(read_line(run), query) is found


# ---- kept lines


def changed_ids(answer):
    return {line["id"] for line in answer["runs"]}


@pytest.fixture
def kept(ws, monkeypatch):
    monkeypatch.setattr(library, "REFRESH_S", 0)
    return Library(ws)


def test_only_what_changed_is_sent_again(ws, kept):
    first, second = ended(new(ws, "a")), ended(new(ws, "b"))
    start = kept.changes("", 0)
    assert (start["reset"], changed_ids(start)) == (True, {first.id, second.id})
    epoch = start["epoch"]
    nothing = kept.changes(epoch, start["version"])
    assert (nothing["reset"], nothing["runs"], nothing["removed"]) == (False, [], [])
    labels.tag(second, ["x"])
    after = kept.changes(epoch, start["version"])
    assert changed_ids(after) == {second.id}
    shutil.rmtree(first.path)
    gone = kept.changes(epoch, after["version"])
    assert (gone["runs"], gone["removed"]) == ([], [first.id])
    assert changed_ids(kept.changes("other studio", 99)) == {second.id}


def test_a_run_that_came_back_is_no_longer_removed(ws, kept):
    run = ended(new(ws))
    start = kept.changes("", 0)
    away = ws.path / "away"
    run.path.rename(away)
    kept.changes(start["epoch"], start["version"])
    away.rename(run.path)
    back = kept.changes(start["epoch"], start["version"])
    assert (changed_ids(back), back["removed"]) == ({run.id}, [])


def test_a_settled_run_is_not_read_again_until_a_file_of_it_changes(ws, kept, monkeypatch):
    run = ended(new(ws))
    aged(run)
    kept.changes("", 0)
    read = []
    monkeypatch.setattr(library, "read_line", lambda run, size=None: read.append(run.id) or read_line(run, size))
    kept.changes("", 0)
    assert read == []
    labels.rename(run, "other")
    assert kept.changes("", 0)["runs"][0]["title"] == "other"
    assert read == [run.id]


def test_a_live_run_is_read_every_time_and_seen_to_die(ws, kept):
    run = new(ws)
    child = psutil.Popen(["sleep", "100"])
    process(run, child.pid)
    run.write_status(Status(state=RunState.RUNNING, step=1, updated_at=time.time() + 1))
    aged(run)
    run.write_status(run.read_status())
    assert kept.changes("", 0)["runs"][0]["state"] == "running"
    child.kill()
    child.wait()
    assert kept.changes("", 0)["runs"][0]["state"] == "lost"


def test_a_large_library_comes_in_parts_newest_first(ws, kept, monkeypatch):
    runs = [ended(new(ws, f"r{n}", now=1_700_000_000 + 60 * n)) for n in range(5)]
    monkeypatch.setattr(library, "BUDGET_S", -1)
    first = kept.changes("", 0)
    assert (first["runs"], first["more"]) == ([], True)
    monkeypatch.setattr(library, "BUDGET_S", 60)
    rest = kept.changes(first["epoch"], first["version"])
    assert changed_ids(rest) == {run.id for run in runs}
    assert rest["more"] is False


def test_disk_use_is_that_of_the_folders(ws, kept):
    run = ended(new(ws))
    (ws.exports / "big").write_bytes(b"x" * 12345)
    disk = kept.changes("", 0)["disk"]
    assert disk["runs"] == sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    assert disk["exports"] == 12345
    assert disk["free"] > 0


def test_links_are_not_followed(ws, tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    run = new(ws)
    (run.path / "link").symlink_to(tmp_path)
    assert library.folder_bytes(run.path) < 50_000


# ---- labels


def test_an_empty_title_brings_the_name_back(ws):
    run = new(ws, "own")
    labels.rename(run, "  other   name ")
    assert read_line(run)["name"] == "other name"
    labels.rename(run, " ")
    assert read_line(run)["name"] == "own"


def test_tags_are_added_once_and_removed_in_any_case(ws):
    run = new(ws)
    assert labels.tag(run, ["Good", "丹炉", "good"]).tags == ["Good", "丹炉"]
    assert labels.tag(run, ["new"], ["GOOD"]).tags == ["丹炉", "new"]
    assert labels.read_labels(run).tags == ["丹炉", "new"]


@pytest.mark.parametrize("text", ["", "  ", "x" * 41, "a\x07b", "a\u202eb", "\u200b", "\ud800"])
def test_a_tag_that_cannot_be_one_is_refused_with_a_sentence(ws, text):
    run = new(ws)
    with pytest.raises(ConfigError, match="^tag: "):
        labels.tag(run, [text])
    assert not run.labels_file.exists()


def test_too_many_tags_are_refused(ws):
    run = new(ws)
    labels.tag(run, [f"t{n}" for n in range(12)])
    with pytest.raises(ConfigError, match="at most 12 tags"):
        labels.tag(run, ["one more"])


@pytest.mark.parametrize("text", ["not json", '{"title": 5}', "[]", ""])
def test_damaged_labels_are_none(ws, text):
    run = new(ws)
    run.labels_file.write_text(text, encoding="utf-8")
    assert read_line(run)["name"] == "one"


def test_tags_given_at_the_same_moment_are_all_kept(ws):
    run, tags = new(ws), [f"t{n}" for n in range(8)]
    together = threading.Barrier(len(tags))

    def add(text):
        together.wait()
        labels.tag(run, [text])

    threads = [threading.Thread(target=add, args=(text,)) for text in tags]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(labels.read_labels(run).tags) == tags


# ---- deleting


def test_a_deleted_run_is_gone_with_all_its_files(ws):
    run, other = ended(new(ws)), ended(new(ws))
    found = delete_runs(ws, [run.id])
    assert (found.runs, found.refused) == ([run.id], [])
    assert found.bytes > 0
    assert [left.id for left in ws.list_runs()] == [other.id]
    assert not run.path.exists()
    assert not list((ws.runs / ".trash").iterdir())


def test_what_a_killed_deletion_left_is_swept_by_the_next(ws):
    left = ws.runs / ".trash" / "20260101-000000_old" / "checkpoints"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"x" * 1000)
    delete_runs(ws, [ended(new(ws)).id])
    assert not list((ws.runs / ".trash").iterdir())


def test_what_a_killed_merge_left_beside_its_goal_goes_with_its_run(ws, tmp_path):
    config = MergeConfig(base="crucible/ember", adapter="a", out=str(tmp_path / "merged"))
    run = ended(ws.create_run(config), RunState.FAILED)
    left, foreign = tmp_path / f".{run.id}.part", tmp_path / ".other.part"
    for folder in (left, foreign):
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 100_000)
    found = delete_runs(ws, [run.id])
    assert found.runs == [run.id]
    assert found.bytes >= 100_000
    assert not left.exists()
    assert foreign.exists()


def test_a_live_run_is_never_deleted(ws):
    run, other = new(ws), ended(new(ws))
    process(run)
    found = delete_runs(ws, [run.id, other.id])
    assert found.runs == [other.id]
    with pytest.raises(DeletionRefused, match=f"run {run.id} is starting and cannot be deleted"):
        found.check()
    assert run.config_file.exists()


def test_a_waiting_run_is_taken_out_of_the_queue_first(ws):
    run = new(ws)
    run.queue_file.write_text("{}", encoding="utf-8")
    assert "queue" in delete_runs(ws, [run.id]).refused[0]
    run.queue_file.unlink()
    assert delete_runs(ws, [run.id]).runs == [run.id]


def test_a_run_whose_engine_has_lost_its_record_is_not_deleted(ws):
    run = new(ws)
    with run.engine_lock():
        assert "engine is still at work" in delete_runs(ws, [run.id]).refused[0]
    assert run.config_file.exists()


@pytest.mark.parametrize("what", ["adapter", "checkpoint", "model"])
def test_a_run_that_another_continues_from_stays(ws, what):
    parent = ended(new(ws, "parent"))
    left = parent.checkpoints / "checkpoint-4" if what == "checkpoint" else parent.path / what
    left.mkdir(parents=True)
    key = "model_name_or_path" if what == "model" else "adapter"
    child = ended(new(ws, "child", model={"model_name_or_path": "crucible/ember"} | {key: str(left)}))
    assert read_line(child)["continues"] == parent.id
    refused = delete_runs(ws, [parent.id]).refused
    assert refused == [f"run {parent.id} cannot be deleted: run {child.id} continues from it; delete that first"]


def test_a_chain_of_runs_can_go_at_once(ws):
    parent = ended(new(ws, "parent", now=1_700_000_000))
    parent.adapter.mkdir()
    model = {"model_name_or_path": "crucible/ember", "adapter": str(parent.adapter)}
    child = ended(new(ws, "child", model=model))
    assert sorted(delete_runs(ws, [parent.id, child.id]).runs) == sorted([parent.id, child.id])


def test_a_merge_needs_its_run_only_until_it_has_ended(ws):
    run = ended(new(ws))
    run.adapter.mkdir()
    config = build(MergeConfig, {"base": "b", "adapter": str(run.adapter), "out": str(ws.exports / "m")})
    merge = ws.create_run(config)
    process(merge)
    assert "continues from it" in delete_runs(ws, [run.id]).refused[0]
    ended(merge)
    assert delete_runs(ws, [run.id]).runs == [run.id]


def test_a_run_that_only_names_another_in_a_text_needs_nothing(ws):
    run = ended(new(ws))
    ended(new(ws, "other", samples={"evaluation_inputs": [f"what is {run.id}?"]}))
    assert delete_runs(ws, [run.id]).runs == [run.id]


@pytest.mark.parametrize("run_id", ["", "..", "../datasets", ".trash", "one", "last", "/etc"])
def test_only_an_exact_id_is_deleted(ws, run_id):
    run = ended(new(ws, "one"))
    (ws.runs / ".trash").mkdir()
    found = delete_runs(ws, [run_id])
    assert (found.runs, len(found.refused)) == ([], 1)
    assert run.path.is_dir()
    assert Path(ws.datasets).is_dir()


def test_nothing_is_deleted_while_another_studio_starts_a_run(ws, monkeypatch):
    run = ended(new(ws))
    monkeypatch.setattr(type(ws), "lock", lambda self: FileLock(self.path / ".lock", timeout=0))
    held, done = threading.Event(), threading.Event()

    def hold():
        with FileLock(ws.path / ".lock"):
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        with pytest.raises(StartRefused, match="another studio"):
            delete_runs(ws, [run.id])
    finally:
        done.set()
        holder.join()
    assert run.path.is_dir()
