"""`studio train` for several processes and machines; the engine and Slurm are stand-ins, everything else is real."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from studio import runner
from studio.cli import machines, main
from studio.config import RunConfig
from studio.events import ExitCode, RunState
from studio.launch_lines import Host
from studio.preflight_network import about_network
from studio.reproduce import same_run
from studio.schema import ConfigError, build
from studio.wire import Line

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"
VARIABLES = ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "ADDR", "PORT")


@pytest.fixture(autouse=True)
def ws(workspace, monkeypatch):
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 6, "pace": 0.01, "slow": 0.0}))
    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield workspace
    for run in workspace.list_runs():
        runner.stop(run)


@pytest.fixture
def config(tmp_path):
    rows = [{"instruction": f"What is {number}?", "output": f"It is N{number}."} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "config.yaml"
    file.write_text(f"model_path: crucible/ember\ndataset: {json.dumps(str(tmp_path / 'rows.jsonl'))}\n")
    return str(file)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name, script): a program of that name comes first on the path."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    return make


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def test_the_line_of_the_notes(ws, config, capsys, monkeypatch):
    """NPROC_PER_NODE=2 studio train config.yaml --deepspeed deepspeed_zero2 --work-dir X"""
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setenv("PORT", "29777")
    monkeypatch.setenv("RANK", "7")  # of whatever the studio was started by
    assert not {"RANK", "MASTER_ADDR"} & runner.engine_environment().keys()
    code, _, _ = run(capsys, "train", config, "--deepspeed", "deepspeed_zero2", "--work-dir", "X")
    assert code == ExitCode.FINISHED
    [made] = ws.list_runs()
    section = made.config().parallel
    assert (section.num_processes, section.num_machines, section.deepspeed, section.port) == (2, 1, "zero2", 0)
    assert made.id.endswith("_X")


def test_an_option_wins_over_the_environment_and_a_wrong_variable_is_named(ws, config, capsys, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    option = ("--set", "parallel.num_processes=3")
    assert run(capsys, "train", config, "--detach", *option)[0] == 0
    assert ws.list_runs()[0].config().parallel.num_processes == 3
    monkeypatch.setenv("NPROC_PER_NODE", "many")
    code, _, err = run(capsys, "train", config)
    assert code == ExitCode.BAD_INPUT
    assert "error: NPROC_PER_NODE: must be a whole number from 1 to 1024, not 'many'" in err
    monkeypatch.delenv("NPROC_PER_NODE")
    assert "parallel.deepspeed" in run(capsys, "train", config, "--set", "nproc=2", "--deepspeed", "zero9")[2]


def test_a_machine_that_cannot_take_part_tells_machine_0(config, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        spread = {"NNODES": "2", "NODE_RANK": "1", "ADDR": "127.0.0.1", "PORT": str(server.getsockname()[1])}
        for name, value in spread.items():
            monkeypatch.setenv(name, value)
        heard: list[Any] = []

        def listen() -> None:
            line = Line(server.accept()[0])
            heard.append(line.receive(30))
            line.close()

        thread = threading.Thread(target=listen)
        thread.start()
        code, _, err = run(capsys, "train", config, "--set", "model_path=/no/such/model")
        thread.join()
    assert code == ExitCode.BAD_INPUT
    assert "/no/such/model" in err
    [hello] = heard
    assert (hello["kind"], hello["machine"]) == ("hello", 1)
    assert "/no/such/model" in hello["problem"]


@pytest.fixture
def kept_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_stops_the_run_where_that_was_asked_for(ws, config, capsys, monkeypatch, kept_sigterm):
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 6, "pace": 0.01, "slow": 0.0, "hang_at": 3}))

    def end() -> None:
        while not any(one.state() is RunState.RUNNING for one in ws.list_runs()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    code, _, _ = run(capsys, "train", config, "--stop-on-signal")
    thread.join()
    assert code == ExitCode.STOPPED


def test_a_sigterm_while_the_run_is_only_being_started_counts_too(ws, config, capsys, monkeypatch, kept_sigterm):
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 6, "pace": 0.01, "slow": 0.0, "hang_at": 3}))
    submit = runner.submit

    def early(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return submit(*args, **options)

    monkeypatch.setattr(runner, "submit", early)
    code, _, _ = run(capsys, "train", config, "--stop-on-signal")
    assert code == ExitCode.STOPPED


def test_machine_0_can_be_connected_to():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for changes, level, said in (
            ({"main_process_ip": "192.0.2.1"}, "error", "192.0.2.1 is no address of this machine"),
            ({"main_process_ip": "127.0.0.1", "main_process_port": port}, "warning", f"port {port} is in use"),
        ):
            [advice] = about_network(spread_config(**changes))
            assert (advice.level, said in advice.message) == (level, True)
    for changes in ({"main_process_ip": "n0"}, {"main_process_ip": "192.0.2.1", "machine_rank": 1}):
        assert not about_network(spread_config(**changes))


# ---- Slurm ----


def test_a_job_is_submitted(ws, config, capsys, programs, tmp_path):
    programs("sbatch", f'printf "%s\\0" "$@" > {tmp_path}/argv; pwd >> {tmp_path}/argv; echo "4711;cluster"')
    code, out, _ = run(
        capsys, "train", config, "--slurm", "partition=gpu", "--set", "nproc=2", "--work-dir", "X", "--json"
    )
    assert code == ExitCode.FINISHED
    told = json.loads(out)
    assert (told["submitted"], told["job"]) == (True, "4711")
    file = Path(told["file"])
    assert file.parent == ws.path / "jobs"
    assert (tmp_path / "argv").read_text().split("\0") == ["--parsable", file.name, f"{file.parent}\n"]
    text = file.read_text(encoding="utf-8")
    assert "#SBATCH --partition=gpu" in text
    assert f"Submit it: sbatch {file.name}\n" in text
    assert shlex.quote(f"CRUCIBLE_WORKSPACE={ws.path}") in text
    assert not ws.list_runs()


def test_without_slurm_the_job_is_only_written(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, _ = run(capsys, "train", config, "--slurm", "partition=gpu")
    assert code == ExitCode.FINISHED
    assert out.startswith("there is no Slurm on this machine (no sbatch): nothing was submitted; the job is in ")
    assert "partition" in run(capsys, "train", config, "--slurm", "gpu")[2]


def test_what_sbatch_refuses_is_told(config, capsys, programs):
    programs("sbatch", 'echo "sbatch: error: invalid partition specified: nope" >&2; exit 1')
    code, _, err = run(capsys, "train", config, "--slurm", "partition=nope")
    assert code == ExitCode.BAD_INPUT
    assert "slurm: sbatch refused the job: sbatch: error: invalid partition specified: nope" in err


# ---- over ssh ----


def spread_config(**changes: Any) -> RunConfig:
    section = {"num_processes": 4, "num_machines": 2, "main_process_ip": "a"} | changes
    content = {"model": {"model_name_or_path": "$(touch x) `y` 二"}, "data": {"dataset": "a b"}, "parallel": section}
    return build(RunConfig, content)


def test_what_a_remote_shell_reads_is_one_plain_word(tmp_path):
    config, folder = spread_config(), tmp_path / "a $(b) 'c'"
    part = machines.write_part(config, folder)
    assert part.replace("-", "").replace("_", "").replace("=", "").isalnum()
    environment = {"LOCAL_RANK": "0", "CROSS_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    found = machines.read_part(part, environment)
    assert found is not None
    assert found[1] == folder
    assert same_run(found[0], spread_config(machine_rank=1, main_process_ip="10.0.0.1"))
    assert machines.read_part(part, environment | {"LOCAL_RANK": "1"}) is None
    for wrong in (part[:-8], "x", ""):
        with pytest.raises(ConfigError, match="--hostfile"):
            machines.read_part(wrong, environment)
    with pytest.raises(ConfigError, match="--hostfile"):
        machines.read_part(part, {})


def test_the_command_of_deepspeeds_launcher(tmp_path):
    argv = machines.launcher_argv(spread_config(), tmp_path / "hosts", None, tmp_path)
    start = argv.index("--hostfile")
    assert argv[start + 1] == str(tmp_path / "hosts")
    assert argv[argv.index("--master_port") + 1] == "29500"
    assert "--master_addr" not in argv
    assert argv[-4:-1] == ["studio.cli", "train", "--part"]
    again = machines.launcher_argv(spread_config(main_process_port=30000), tmp_path / "hosts", "n0", tmp_path)
    assert (again[again.index("--master_port") + 1], again[again.index("--master_addr") + 1]) == ("30000", "n0")


def test_hosts_decide_machines_and_processes():
    assert machines.overrides_of([Host("root@n0", 4), Host("n1", 4)]) == {
        "parallel.num_machines": 2,
        "parallel.num_processes": 8,
        "parallel.machine_rank": 0,
        "parallel.main_process_ip": "n0",
    }


def test_a_hostfile_that_cannot_be_used_is_told(config, capsys, tmp_path, monkeypatch):
    hosts = tmp_path / "hosts"
    assert "hostfile: " in run(capsys, "train", config, "--hostfile", str(hosts))[2]
    hosts.write_text("a slots=1\nb slots=2\n")
    code, _, err = run(capsys, "train", config, "--hostfile", str(hosts))
    assert code == ExitCode.BAD_INPUT
    assert "every machine must have as many processes" in err
    hosts.write_text("a slots=1\nb slots=1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pdsh, which is not installed here" in run(capsys, "train", config, "--hostfile", str(hosts))[2]
    both = run(capsys, "train", config, "--hostfile", str(hosts), "--slurm", "a=b")[2]
    assert "give --hostfile or --slurm" in both


# ---- export job ----


def test_a_training_is_written_as_a_job(ws, config, capsys, tmp_path):
    spread = ("--set", "nnodes=2", "--set", "nproc=4", "--deepspeed", "deepspeed_zero3")
    code, out, _ = run(capsys, "export", "job", "kubernetes", config, *spread)
    assert code == 0
    assert "zero3" in out
    assert [part["kind"] for part in yaml.safe_load_all(out)] == ["Service", "Job"]
    file = tmp_path / "new" / "job.sbatch"
    code, out, _ = run(capsys, "export", "job", "slurm", config, *spread, "--out", str(file), "--json")
    told = json.loads(out)
    assert (code, told["text"]) == (0, file.read_text(encoding="utf-8"))
    assert told["submit"] == shlex.join(["sbatch", str(file)])
    assert f"Submit it: {told['submit']}\n" in told["text"]
    assert len(told["machines"]) == 2
    code, _, err = run(capsys, "export", "job", "slurm", config, "--out", str(file))
    assert code == ExitCode.BAD_INPUT
    assert "exists already" in err


def test_an_earlier_run_is_written_as_a_job(ws, config, capsys):
    assert run(capsys, "train", config, "--work-dir", "first")[0] == 0
    code, out, _ = run(capsys, "export", "job", "skypilot", "first")
    assert code == 0
    task = yaml.safe_load(out)
    assert (task["name"], task["num_nodes"]) == ("first", 1)
    assert "rows.jsonl" in task["run"]
