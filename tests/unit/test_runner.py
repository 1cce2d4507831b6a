"""Starting, stopping and resuming real child processes that speak the run-directory contract."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from studio import chat_server, demo, hardware, processes, remote_code, run_queue, runner, stopping
from studio.config import RunConfig
from studio.events import Launch, RunState, Status
from studio.records import parse_spec
from studio.rundir import RunDir
from studio.schema import build

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"
CONFIG = build(RunConfig, {"model_path": "crucible/ember", "data_path": "identity", "name": "run"})
DEAF = """
import signal, sys, time, pathlib
sys.path.insert(0, {root!r})
from studio.events import Status, RunState
from studio.rundir import RunDir
signal.signal(signal.SIGTERM, signal.SIG_IGN)
RunDir(pathlib.Path(sys.argv[2])).write_status(Status(state=RunState.RUNNING))
time.sleep(600)
"""


@pytest.fixture
def ws(workspace, monkeypatch):
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    space = workspace
    yield space
    for run in space.list_runs():
        launch = run.read_launch()
        if launch and run.alive():
            os.killpg(launch.pid, signal.SIGKILL)


def fake(monkeypatch, **options) -> None:
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"pace": 0.01, "slow": 0.0, "steps": 8} | options))


def wait_for(run: RunDir, *states: RunState) -> RunState:
    while run.state() not in states:
        time.sleep(0.02)
    return run.state()


def test_a_run_goes_from_queued_to_finished(ws, monkeypatch):
    fake(monkeypatch)
    run = ws.create_run(CONFIG)
    assert run.state() is RunState.QUEUED
    runner.start(run)
    assert run.state() in (RunState.STARTING, RunState.RUNNING, RunState.FINISHED)
    assert wait_for(run, RunState.FINISHED, RunState.FAILED) is RunState.FINISHED
    launch = run.read_launch()
    assert launch.argv[-2:] == ["train", str(run.path)]
    assert launch.versions["torch"]
    assert "step 8" in run.log_file.read_text()


def test_only_one_run_is_live_and_the_second_is_told_which(ws, monkeypatch):
    fake(monkeypatch, hang_at=2)
    first, second = ws.create_run(CONFIG), ws.create_run(CONFIG)
    runner.start(first)
    with pytest.raises(runner.StartRefused, match=first.id) as caught:
        runner.start(second)
    assert caught.value.blocking == first.id
    with pytest.raises(runner.StartRefused):
        runner.start(first)
    assert second.state() is RunState.QUEUED


def test_many_starts_at_once_give_one_engine(ws, monkeypatch):
    fake(monkeypatch, hang_at=2)
    run = ws.create_run(CONFIG)
    outcomes: list[str] = []

    def try_start() -> None:
        try:
            runner.start(run)
            outcomes.append("started")
        except runner.StartRefused:
            outcomes.append("refused")

    threads = [threading.Thread(target=try_start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["started"]
    assert run.read_launch().attempt == 1


def test_many_resumes_at_once_give_one_engine(ws, monkeypatch):
    fake(monkeypatch, hang_at=3)
    run = runner.submit(ws, CONFIG)
    wait_for(run, RunState.RUNNING)
    runner.stop(run)
    outcomes: list[str] = []

    def try_resume() -> None:
        try:
            runner.resume(run)
            outcomes.append("resumed")
        except runner.StartRefused as refused:
            outcomes.append(str(refused))

    threads = [threading.Thread(target=try_resume) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("resumed") == 1
    launch = run.read_launch()
    assert launch.attempt == 2
    assert sum(f"process {launch.pid} on {launch.host} since" in outcome for outcome in outcomes) == 4


def test_a_second_run_waits_and_a_refused_start_leaves_nothing_behind(ws, monkeypatch):
    fake(monkeypatch, hang_at=2)
    first = runner.submit(ws, CONFIG)
    second = runner.submit(ws, CONFIG)
    assert second.state() is RunState.QUEUED
    assert [run.id for run, _ in run_queue.entries(ws)] == [second.id]
    run_queue.remove(second)
    assert [run.id for run in ws.list_runs()] == [first.id]
    runner.stop(first)
    monkeypatch.setattr(runner, "ENGINE", ("/no/such/program",))
    with pytest.raises(runner.StartRefused, match="cannot be started"):
        runner.submit(ws, CONFIG)
    with pytest.raises(runner.StartRefused):
        demo.start(ws, parse_spec({"name": "Nova", "author": "us"}))
    assert [run.id for run in ws.list_runs()] == [first.id]
    assert list(ws.datasets.iterdir()) == []


def test_a_run_is_recorded_before_it_can_be_missed(ws, monkeypatch):
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, "-c", "pass"))
    slow = threading.Event()
    monkeypatch.setattr(runner, "_versions", lambda: slow.set() or {})
    seen: list[bool] = []
    real = subprocess.Popen

    def recording(*args, **kwargs):
        seen.append(slow.is_set())
        return real(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", recording)
    runner.submit(ws, CONFIG)
    assert seen[-1], "package versions are looked up before the engine is born, not after"


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_does_not_exist_is_refused(port):
    with pytest.raises(runner.StartRefused, match="does not exist"):
        chat_server.free_port(port)


def test_a_host_that_is_not_this_machine_is_refused_at_once():
    with pytest.raises(runner.StartRefused, match="--host"):
        chat_server.free_port(8000, "203.0.113.7")


def test_the_code_of_models_runs_only_if_both_who_queues_and_who_starts_trust_it(ws, monkeypatch):
    fake(monkeypatch, hang_at=2)

    def queued(*, trusted: bool) -> RunDir:
        monkeypatch.setenv(remote_code.VARIABLE, "1" if trusted else "")
        run = ws.create_run(CONFIG)
        run_queue.enqueue(run)
        return run

    def started(run: RunDir, *, trusted: bool) -> str | None:
        """What the engine was told; None when it was not started."""
        monkeypatch.setenv(remote_code.VARIABLE, "1" if trusted else "")
        with run_queue.locked(ws):
            runner.start_waiting(ws)
        launch = run.read_launch()
        told = psutil.Process(launch.pid).environ().get(remote_code.VARIABLE, "") if launch else None
        runner.stop(run)
        return told

    assert started(queued(trusted=True), trusted=True) == "1"
    assert started(queued(trusted=False), trusted=True) == ""
    run = queued(trusted=True)
    assert started(run, trusted=False) is None
    assert "--trust-remote-code" in run_queue.read(run).problem
    run_queue.unpause(run)
    assert started(run, trusted=True) == "1"


def test_the_load_of_the_run_before_is_no_load(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(hardware, "cpu_cores", lambda: 8)
    monkeypatch.setattr(runner.psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(hardware, "system_load", lambda: 8.0)
    for busy_percent, threads in ((0.0, "8"), (50.0, "4"), (100.0, "1")):
        monkeypatch.setattr(runner.psutil, "cpu_percent", lambda interval, busy=busy_percent: busy)
        assert runner.engine_environment()["OMP_NUM_THREADS"] == threads
    assert "OMP_NUM_THREADS" not in runner.child_environment(), "a dispatcher must not hand it down"


def test_stop_saves_and_stops(ws, monkeypatch):
    fake(monkeypatch, steps=100000)
    run = ws.create_run(CONFIG)
    runner.start(run)
    wait_for(run, RunState.RUNNING)
    assert runner.stop(run) is RunState.STOPPED
    assert run.read_status().exit_code == 3
    assert runner.stop(run) is RunState.STOPPED, "stopping an ended run changes nothing"


def test_a_child_that_ignores_everything_is_killed_and_only_it(ws, monkeypatch, tmp_path):
    script = tmp_path / "deaf.py"
    script.write_text(DEAF.format(root=str(runner.ROOT)))
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(script)))
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = ws.create_run(CONFIG)
    runner.start(run)
    wait_for(run, RunState.RUNNING)
    assert runner.stop(run, stop_grace=0.2, term_grace=0.2) is RunState.LOST
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


FORKING = """
import os, signal, subprocess, sys, time, pathlib
sys.path.insert(0, {root!r})
from studio.events import Status, RunState
from studio.rundir import RunDir
run = RunDir(pathlib.Path(sys.argv[2]))
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf])
own_session = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
(run.path / "children").write_text(str(child.pid) + " " + str(own_session.pid))
run.write_status(Status(state=RunState.RUNNING))
while not run.stop_requested():
    time.sleep(0.02)
run.write_status(Status(state=RunState.STOPPED))
"""


def test_children_an_engine_leaves_behind_are_ended_and_nobody_else(ws, monkeypatch, tmp_path):
    """Loaders of data outlive an engine that is gone, and hold its memory or its lock."""
    script = tmp_path / "forking.py"
    script.write_text(FORKING.format(root=str(runner.ROOT)))
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(script)))
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    run = runner.submit(ws, CONFIG)
    wait_for(run, RunState.RUNNING)
    children = [psutil.Process(int(pid)) for pid in (run.path / "children").read_text().split()]
    assert runner.stop(run, stop_grace=30) is RunState.STOPPED
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_children_of_a_killed_engine_are_gone_before_it_is_resumed(ws, monkeypatch, tmp_path):
    script = tmp_path / "forking.py"
    script.write_text(FORKING.format(root=str(runner.ROOT)))
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(script)))
    run = runner.submit(ws, CONFIG)
    wait_for(run, RunState.RUNNING)
    children = [psutil.Process(int(pid)) for pid in (run.path / "children").read_text().split()]
    os.kill(run.read_launch().pid, signal.SIGKILL)
    wait_for(run, RunState.LOST)
    assert all(child.is_running() for child in children)
    fake(monkeypatch)
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    runner.resume(run)
    assert not any(child.is_running() for child in children)
    assert wait_for(run, RunState.FINISHED) is RunState.FINISHED


def test_a_later_process_with_the_engines_number_is_never_signalled(ws, monkeypatch):
    """The record of a run that was running when the machine went down names the pid of somebody else now."""
    run = ws.create_run(CONFIG)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    fields = processes.record(stranger.pid) | {"start_ticks": 1, "create_time": 1.0}
    run.write_launch(Launch(argv=[], **fields))
    run.write_status(Status(state=RunState.RUNNING, step=3, attempt=1))
    assert run.state() is RunState.LOST
    stopping.signal_group(run.read_launch(), signal.SIGKILL)
    assert runner.stop(run, stop_grace=0.1, term_grace=0.1) is RunState.LOST
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_an_engine_in_a_foreign_process_group_takes_nobody_with_it(ws, monkeypatch):
    """A run started by hand shares its group with the shell: then the process alone is signalled."""
    run = ws.create_run(CONFIG)
    group = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
         "'import time; time.sleep(600)']); print(p.pid, flush=True); p.wait(); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    member = int(group.stdout.readline())
    run.write_launch(Launch(argv=[], **processes.record(member)))
    stopping.signal_group(run.read_launch(), signal.SIGKILL)
    while psutil.pid_exists(member):
        time.sleep(0.02)
    assert group.poll() is None
    group.communicate("\n")


def test_a_stop_whose_asker_was_killed_is_taken_over(ws, monkeypatch, tmp_path):
    """The run hangs and hears no stop file: whoever asked would have sent signals next."""
    script = tmp_path / "hanging.py"
    script.write_text(DEAF.format(root=str(runner.ROOT)).replace("SIG_IGN", "SIG_DFL"))
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(script)))
    run = runner.submit(ws, CONFIG)
    wait_for(run, RunState.RUNNING)
    run.request_stop()
    assert runner.take_over_stops(ws) == [], "somebody may be waiting for it"
    long_ago = time.time() - stopping.ABANDONED_S - 1
    os.utime(run.stop_file, (long_ago, long_ago))
    monkeypatch.setattr(stopping.stop, "__kwdefaults__", {"stop_grace": 0.1, "term_grace": 5.0})
    assert [found.id for found in runner.take_over_stops(ws)] == [run.id]
    assert runner.take_over_stops(ws) == [], "once is enough"
    assert wait_for(run, RunState.LOST) is RunState.LOST


def test_a_stop_waits_for_the_process_it_was_asked_for_not_for_the_resume_after_it(ws, monkeypatch):
    fake(monkeypatch, hang_at=3)
    run = runner.submit(ws, CONFIG)
    wait_for(run, RunState.RUNNING)
    before = run.read_launch()
    run.request_stop()
    wait_for(run, RunState.STOPPED)
    runner.resume(run)
    wait_for(run, RunState.RUNNING)
    monkeypatch.setattr(RunDir, "read_launch", lambda self: before)
    stopping.signal_group(before, signal.SIGKILL)
    assert stopping._wait_until_gone(run, before, 5)
    monkeypatch.undo()
    assert run.state() is RunState.RUNNING


def test_a_killed_engine_is_lost_and_can_be_resumed(ws, monkeypatch):
    fake(monkeypatch, die_at=4)
    run = ws.create_run(CONFIG)
    runner.start(run)
    assert wait_for(run, RunState.LOST, RunState.FINISHED) is RunState.LOST
    fake(monkeypatch)
    runner.resume(run)
    assert wait_for(run, RunState.FINISHED) is RunState.FINISHED
    assert run.read_launch().attempt == 2
    with pytest.raises(runner.StartRefused, match="only a stopped, failed or lost run"):
        runner.resume(run)


def test_a_stop_request_of_an_earlier_attempt_does_not_stop_the_next(ws, monkeypatch):
    fake(monkeypatch, steps=100000)
    run = ws.create_run(CONFIG)
    runner.start(run)
    wait_for(run, RunState.RUNNING)
    runner.stop(run)
    fake(monkeypatch)
    runner.resume(run)
    assert wait_for(run, RunState.FINISHED, RunState.STOPPED) is RunState.FINISHED


def test_a_run_outlives_the_process_that_started_it(ws, monkeypatch):
    fake(monkeypatch, steps=30, pace=0.02)
    run = ws.create_run(CONFIG)
    code = (
        "import sys, os, signal, pathlib; from studio import runner; from studio.rundir import RunDir\n"
        f"runner.ENGINE = (sys.executable, {str(FAKE)!r})\n"
        f"runner.start(RunDir(pathlib.Path({str(run.path)!r})))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=runner.ROOT, check=False)
    assert run.state().live
    assert wait_for(run, RunState.FINISHED, RunState.LOST) is RunState.FINISHED


def test_an_engine_whose_launch_cannot_be_recorded_is_not_left_running(ws, monkeypatch):
    fake(monkeypatch, hang_at=2)
    run = ws.create_run(CONFIG)
    before = set(psutil.Process().children())

    def full(self, launch):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunDir, "write_launch", full)
    with pytest.raises(runner.StartRefused, match="free some disk space"):
        runner.start(run)
    _, alive = psutil.wait_procs(set(psutil.Process().children()) - before, timeout=20)
    assert not alive


def test_an_engine_that_dies_at_once_is_failed_not_starting_forever(ws, monkeypatch):
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, "-c", "import sys; sys.exit('no such thing')"))
    run = ws.create_run(CONFIG)
    runner.start(run)
    assert wait_for(run, RunState.FAILED) is RunState.FAILED
    assert "no such thing" in run.log_file.read_text()


def test_a_taken_port_gives_the_next_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert chat_server.free_port(port) > port
    assert chat_server.free_port() > 0


def test_the_engine_environment_keeps_the_working_directory_off_the_import_path():
    env = runner.engine_environment()
    assert env["PYTHONSAFEPATH"] == "1"
    assert env["OMP_WAIT_POLICY"]


def test_places_among_the_processes_of_a_foreign_launcher_do_not_reach_a_run(monkeypatch):
    foreign = ("RANK", "WORLD_SIZE", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "TORCHELASTIC_USE_AGENT_STORE")
    for name in (*foreign, "NCCL_DEBUG"):
        monkeypatch.setenv(name, "2")
    environment = runner.engine_environment()
    assert {*foreign, "NCCL_DEBUG"} & {*environment} == {"NCCL_DEBUG"}
