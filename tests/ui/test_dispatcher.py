"""The queue at work: real dispatcher and studio processes, real engine children of a stand-in engine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from filelock import Timeout

from studio import chat_memory, chat_server, dispatching, processes, resources, run_queue, runner, turns
from studio.cli.chat import _wait_until_ready
from studio.config import RunConfig
from studio.events import ExitCode, RunState, StartedEvent
from studio.rundir import RunDir
from studio.schema import ConfigError, build
from studio.workspace import Workspace
from tests.fake_engine import GO_ON, Studio

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"
CONFIG = build(RunConfig, {"model_path": "crucible/ember", "data_path": "identity", "name": "run"})
PATIENCE_S = 120


@pytest.fixture
def ws(engine: None, workspace: Workspace) -> Iterator[Workspace]:
    """A workspace with the stand-in engine; no dispatcher of it is left."""
    yield workspace
    run_queue.pause_all(workspace)
    until(lambda: not dispatching.at_work(workspace))


def fake(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 8, "pace": 0.01, "slow": 0.0} | options))


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def ended(*runs: RunDir) -> bool:
    return all(run.state() not in (RunState.QUEUED,) and not run.state().live for run in runs)


def starts(run: RunDir) -> int:
    return sum(isinstance(event, StartedEvent) for event in run.read_events()[0])


def dispatchers(workspace: Workspace) -> list[psutil.Process]:
    """Dispatcher processes of a workspace, without their children: those have the same arguments for a moment."""
    found: dict[psutil.Process, int] = {}
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            known = "studio.dispatcher" in argv and str(workspace.path) in argv
            if known and process.status() != psutil.STATUS_ZOMBIE:
                found[process] = process.ppid()
        except psutil.Error:
            continue
    numbers = {process.pid for process in found}
    return [process for process, parent in found.items() if parent not in numbers]


def killed(process: psutil.Process) -> None:
    process.kill()
    psutil.wait_procs([process], timeout=20)


def test_runs_go_one_after_the_other_and_the_dispatcher_ends(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, pace=0.1, hang_at=2)
    runs = [runner.submit(ws, CONFIG.model_copy(update={"name": f"run{number}"})) for number in range(3)]
    assert runs[0].state().live
    assert [run.state() for run in runs[1:]] == [RunState.QUEUED] * 2
    until(lambda: dispatchers(ws))
    for run in runs:
        (run.path / GO_ON).touch()
    most = 0
    while not ended(*runs):
        most = max(most, len(runner.live_runs(ws)))
        time.sleep(0.02)
    assert most == 1
    assert [run.state() for run in runs] == [RunState.FINISHED] * 3
    assert [starts(run) for run in runs] == [1, 1, 1]
    begun = [run.read_launch().started_at for run in runs]
    assert begun == sorted(begun)
    until(lambda: not dispatching.at_work(ws))
    until(lambda: not dispatchers(ws))


def test_a_failed_run_does_not_block_the_next(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, fail="data")
    runs = [runner.submit(ws, CONFIG) for _ in range(3)]
    until(lambda: ended(*runs))
    assert [run.state() for run in runs] == [RunState.FAILED] * 3


def test_a_run_that_cannot_be_started_is_paused_with_the_reason(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    first, spoiled, last = (runner.submit(ws, CONFIG) for _ in range(3))
    spoiled.config_file.write_text("kind: train\ncolour: red\n")
    runner.stop(first)
    until(lambda: last.state() is RunState.RUNNING)
    entry = run_queue.read(spoiled)
    assert entry is not None
    assert entry.paused
    assert "colour" in entry.problem
    assert spoiled.state() is RunState.QUEUED


def test_the_configuration_is_the_one_of_the_moment_it_was_queued(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, hang_at=2)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.chdir(tmp_path)
    first = runner.submit(ws, CONFIG)
    wanted = build(RunConfig, {"model_path": "crucible/ember", "data_path": "rows.jsonl", "lr": 0.0123, "name": "mine"})
    second = runner.submit(ws, wanted)
    frozen = second.config_file.read_bytes()
    monkeypatch.chdir("/")
    runner.stop(first)
    until(lambda: second.state() is RunState.RUNNING)
    assert second.config_file.read_bytes() == frozen
    config = second.config()
    assert isinstance(config, RunConfig)
    assert config.data.dataset == str(data)
    assert config.train.learning_rate == 0.0123


def test_a_killed_dispatcher_takes_nothing_with_it_and_is_replaced(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, hang_at=3)
    first, second, third = (runner.submit(ws, CONFIG) for _ in range(3))
    until(lambda: dispatchers(ws))
    runner.stop(first)
    until(lambda: second.state() is RunState.RUNNING)  # an engine whose parent is the dispatcher
    [at_work] = dispatchers(ws)
    killed(at_work)
    time.sleep(0.3)
    assert second.state() is RunState.RUNNING
    assert third.state() is RunState.QUEUED
    assert runner.look_after(ws)
    until(lambda: dispatchers(ws))
    assert not runner.look_after(ws), "one dispatcher is enough"
    runner.stop(second)
    until(lambda: third.state() is RunState.RUNNING)
    assert [starts(run) for run in (first, second, third)] == [1, 1, 1]


def test_a_studio_looks_after_the_queue_and_the_queue_outlives_the_studio(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    first, second = (workspace.create_run(CONFIG) for _ in range(2))
    for run in (first, second):
        run_queue.enqueue(run)
    studio = Studio(workspace.path, steps=8, hang_at=3, pace=0.01)
    try:
        until(lambda: first.state() is RunState.RUNNING)
        [before] = dispatchers(workspace)
        killed(before)
        until(lambda: [process for process in dispatchers(workspace) if process.pid != before.pid])
        studio.end(signal.SIGKILL)
        assert first.state() is RunState.RUNNING
        assert second.state() is RunState.QUEUED
        runner.stop(first)
        until(lambda: second.state() is RunState.RUNNING)
        assert [starts(run) for run in (first, second)] == [1, 1]
    finally:
        studio.end(signal.SIGKILL)
        run_queue.pause_all(workspace)
        for run in (first, second):
            runner.stop(run)
    until(lambda: not dispatchers(workspace))


def test_two_processes_that_start_at_once_give_one_engine(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    code = (
        "import sys, pathlib; from studio import runner; from studio.workspace import Workspace\n"
        "from studio.config import RunConfig; from studio.schema import build\n"
        f"runner.ENGINE = (sys.executable, {str(FAKE)!r})\n"
        "config = build(RunConfig, {'model_path': 'crucible/ember', 'data_path': 'identity', 'name': 'run'})\n"
        f"print(runner.submit(Workspace(pathlib.Path({str(ws.path)!r})), config).id)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=runner.ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ids = [child.communicate()[0].strip() for child in children]
    assert len(set(ids)) == 3
    assert len(runner.live_runs(ws)) == 1
    assert len(run_queue.entries(ws)) == 2


def test_only_one_dispatcher_works_on_a_workspace(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    run = ws.create_run(CONFIG)
    run_queue.enqueue(run)
    with dispatching.lock(ws):
        argv = [sys.executable, "-m", "studio.dispatcher", str(ws.path), *runner.ENGINE]
        assert subprocess.run(argv, cwd=runner.ROOT, check=False).returncode == 0
    assert run.state() is RunState.QUEUED
    runner.look_after(ws)
    until(lambda: run.state() is RunState.RUNNING)


def test_a_paused_queue_starts_nothing_until_it_goes_on(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    run_queue.pause_all(ws)
    run = runner.submit(ws, CONFIG)
    assert run.state() is RunState.QUEUED
    assert not runner.look_after(ws)
    run_queue.unpause_all(ws)
    assert runner.look_after(ws)
    until(lambda: run.state() is RunState.FINISHED)


def test_an_entry_left_behind_by_a_killed_starter_is_not_started_again(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    monkeypatch.setattr(run_queue, "drop", lambda run: None)  # as if killed right after the engine's record
    run = runner.submit(ws, CONFIG)
    until(lambda: not run.alive())
    assert run.queue_file.exists()
    monkeypatch.undo()
    runner.look_after(ws)
    assert not run.queue_file.exists()
    assert run.state() is RunState.FINISHED
    assert starts(run) == 1


def test_a_moved_workspace_ends_its_dispatcher(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    first, _ = (runner.submit(ws, CONFIG) for _ in range(2))
    until(lambda: dispatchers(ws) and "step 3" in first.log_file.read_text())  # nothing more is written now
    moved = ws.path.with_name("moved")
    ws.path.rename(moved)
    try:
        until(lambda: not dispatchers(ws))
    finally:
        moved.rename(ws.path)
    assert first.state() is RunState.RUNNING


# ---- resume ----------------------------------------------------------------------------------------------------------


def test_a_resume_waits_for_its_turn_and_keeps_its_changes(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    first = runner.submit(ws, CONFIG)
    until(lambda: first.state() is RunState.RUNNING)
    runner.stop(first)
    second = runner.submit(ws, CONFIG)
    runner.resume(first, {"train.learning_rate": 0.003})
    assert first.state() is RunState.QUEUED
    config = first.config()
    assert isinstance(config, RunConfig)
    assert config.train.learning_rate == 0.003
    with pytest.raises(runner.StartRefused, match="only a stopped, failed or lost run"):
        runner.resume(first)
    fake(monkeypatch)
    runner.stop(second)
    until(lambda: first.state().live or first.state() is RunState.FINISHED)
    assert first.read_launch().attempt == 2
    assert "--resume" in first.read_launch().argv


def test_a_refused_resume_changes_nothing(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    run = runner.submit(ws, CONFIG)
    until(lambda: run.state() is RunState.FINISHED and not run.alive())
    run.write_status(run.read_status().model_copy(update={"state": RunState.STOPPED}))
    with monkeypatch.context() as patched:
        patched.setattr(runner, "ENGINE", ("/no/such/program",))
        with pytest.raises(runner.StartRefused, match="cannot be started"):
            runner.resume(run, {"train.learning_rate": 0.003})
    assert not run.changes_file.exists()
    assert not run.queue_file.exists()
    assert run.state() is RunState.STOPPED


def test_a_resume_of_a_run_whose_configuration_is_broken_leaves_nothing_in_the_queue(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    run = runner.submit(ws, CONFIG)
    until(lambda: run.state() is RunState.FINISHED and not run.alive())
    run.write_status(run.read_status().model_copy(update={"state": RunState.STOPPED}))
    run.config_file.write_text("train: [", encoding="utf-8")
    with pytest.raises(ConfigError):
        runner.resume(run)
    assert not run.queue_file.exists()
    assert run.state() is RunState.STOPPED


def test_who_starts_second_is_told_who_holds_the_run(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    run = runner.submit(ws, CONFIG)
    until(lambda: run.state() is RunState.RUNNING)
    launch = run.read_launch()
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(launch.started_at))
    for again in (runner.start, runner.resume):
        with pytest.raises(runner.StartRefused) as refused:
            again(run)
        assert f"process {launch.pid} on {launch.host} since {since}" in str(refused.value)
        assert refused.value.blocking == run.id


# ---- several at once, cards, chat ------------------------------------------------------------------------------------


def card(index: int, free: int = 1 << 34) -> resources.Gpu:
    return resources.Gpu(index, "a card", 1 << 34, free, "1")


def test_cards_are_handed_out_and_written_down(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    monkeypatch.setattr(resources, "cards", lambda: (card(0, 1 << 33), card(1)))
    first, second, third = (runner.submit(ws, CONFIG) for _ in range(3))
    assert [run.read_launch().gpus for run in (first, second)] == [[1], [0]]
    assert third.state() is RunState.QUEUED
    environment = psutil.Process(first.read_launch().pid).environ()
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    [decision] = turns.decisions(ws)
    assert decision.blocking in (first.id, second.id)
    with pytest.raises(runner.StartRefused, match="there is no card 5; this machine has 0, 1"):
        runner.submit(ws, CONFIG, gpus=[5])
    with pytest.raises(runner.StartRefused, match="3 cards cannot be had"):
        runner.submit(ws, CONFIG, gpu_count=3)
    on_processor = runner.submit(ws, CONFIG, gpu_count=0)
    assert psutil.Process(on_processor.read_launch().pid).environ()["CUDA_VISIBLE_DEVICES"] == ""
    run_queue.remove(third)


def test_a_run_on_certain_cards_is_resumed_on_as_many(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    monkeypatch.setattr(resources, "cards", lambda: (card(0), card(1), card(2)))
    run = runner.submit(ws, CONFIG, gpus=[2, 0, 2])
    until(lambda: run.state() is RunState.FINISHED and not run.alive())
    assert run.read_launch().gpus == [0, 2]
    run.write_status(run.read_status().model_copy(update={"state": RunState.STOPPED}))
    runner.resume(run)
    assert len(run.read_launch().gpus) == 2


def test_more_runs_go_at_once_if_the_memory_is_there(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    run_queue.change_settings(ws, max_running=2)
    needed = {"bytes": 1 << 20}
    monkeypatch.setattr(resources, "predicted_bytes", lambda *_: needed["bytes"])
    first, second, third = (runner.submit(ws, CONFIG) for _ in range(3))
    assert [run.state().live for run in (first, second, third)] == [True, True, False]
    run_queue.change_settings(ws, max_running=3)
    needed["bytes"] = 1 << 50
    turns._predicted.cache_clear()
    [decision] = turns.decisions(ws)
    assert decision.reason.startswith("waits for memory: it needs up to 1125899.9 GB, and ")
    run_queue.remove(third)


@pytest.fixture
def chat(ws: Workspace) -> Iterator[chat_server.ChatServer]:
    server = chat_server.start_chat_server(ws, "crucible/ember", {})
    yield server
    server.stop()


def test_a_start_by_hand_is_asked_for_the_chats_memory(
    ws: Workspace, chat: chat_server.ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.needs_chat_memory(ws, CONFIG) is None, "there is room for both"
    monkeypatch.setattr(resources, "predicted_bytes", lambda *_: 1 << 50)
    holder = runner.needs_chat_memory(ws, CONFIG)
    assert holder is not None
    assert (holder.pid, holder.base) == (chat.process.pid, "crucible/ember")
    assert holder.memory_bytes > 1 << 20
    chat.stop()
    assert runner.needs_chat_memory(ws, CONFIG) is None


def test_the_queue_releases_the_chats_memory_and_says_for_whom(
    ws: Workspace,
    chat: chat_server.ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake(monkeypatch)
    monkeypatch.setattr(resources, "predicted_bytes", lambda *_: 1 << 50)
    run = ws.create_run(CONFIG)
    run_queue.enqueue(run)
    with run_queue.locked(ws):
        assert [started.id for started in runner.start_waiting(ws)] == [run.id]
    chat.process.wait(timeout=20)
    assert chat.health() == {"state": "released", "run": run.id}
    assert _wait_until_ready(chat) == ExitCode.OUT_OF_MEMORY
    assert f"run {run.id} needed its memory" in capsys.readouterr().err


def test_a_process_that_only_has_the_chats_old_number_is_left_alone(ws: Workspace) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        record = chat_memory.ChatHolder(**processes.record(bystander.pid), port=5, base="x")
        other = record.model_copy(update={"start_ticks": 1, "create_time": 1.0})
        (ws.path / "chat").mkdir()
        chat_memory.write_record(ws, other)
        assert chat_memory.holders(ws) == []
        assert chat_memory.release(ws, "run") == []
        assert bystander.poll() is None
        chat_memory.write_record(ws, record)
        assert [found.pid for found in chat_memory.release(ws, "run")] == [bystander.pid]
        assert bystander.wait(timeout=20) == -signal.SIGTERM
    finally:
        if bystander.poll() is None:
            os.killpg(bystander.pid, signal.SIGKILL)
            bystander.wait()


def test_a_dispatcher_that_is_asked_for_often_is_there_once(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, hang_at=3)
    for _ in range(3):
        runner.submit(ws, CONFIG)
    assert [runner.look_after(ws) for _ in range(5)] == [False] * 5
    assert len(dispatchers(ws)) == 1
    until(lambda: _held(ws))


def _held(workspace: Workspace) -> bool:
    try:
        with dispatching.lock(workspace).acquire(timeout=0):
            return False
    except Timeout:
        return True
