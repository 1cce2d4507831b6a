"""Trainings on several machines: all of them started over ssh by DeepSpeed's own launcher, or given to Slurm.

What a remote shell reads is one word of letters and digits that holds the whole configuration: no name in it can be
taken for a command.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio import runner
from studio.cli.follow import follow_or_leave, print_json
from studio.cluster_jobs import FILE_NAMES, SUBMIT, job_name, parse_slurm, slurm
from studio.config import RunConfig
from studio.events import ExitCode
from studio.launch_lines import Host, for_machine, parse_hostfile
from studio.presets import ROOT
from studio.reproduce import same_run
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build
from studio.workspace import Workspace, free_path
from studio.yaml_text import YamlFault, read_text

LAUNCHER = "deepspeed.launcher.runner"
LONGEST_PART = 100_000  # of one argument Linux takes 128 KB
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


# ---- over ssh --------------------------------------------------------------------------------------------------------


def read_hosts(path: str) -> list[Host]:
    """The machines of a hostfile. Raises ConfigError."""
    try:
        return parse_hostfile(read_text(Path(path)))
    except YamlFault as fault:
        raise ConfigError([FieldError("hostfile", str(fault))]) from None


def overrides_of(hosts: list[Host]) -> dict[str, Any]:
    """The fields a hostfile decides, and machine 0's address, which an option may say better."""
    return {
        "parallel.num_machines": len(hosts),
        "parallel.num_processes": sum(host.slots for host in hosts),
        "parallel.machine_rank": 0,
        "parallel.main_process_ip": hosts[0].name.rpartition("@")[2],
    }


def start_everywhere(
    workspace: Workspace, config: RunConfig, hosts: list[Host], *, address: str | None
) -> RunDir | None:
    """Start every machine's part through DeepSpeed's launcher; returns the run if machine 0 is this one.

    `address`: of machine 0, if it was given; else DeepSpeed asks that machine over ssh.

    Raises:
        StartRefused: something is missing here, or a machine could not be started.
    """
    _check_possible()
    config = workspace.freeze(config)
    before = {run.id for run in workspace.list_runs()}
    with tempfile.TemporaryDirectory() as folder:
        hostfile = Path(folder) / "hostfile"
        hostfile.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts), encoding="utf-8")
        argv = launcher_argv(config, hostfile, address, workspace.path)
        done = subprocess.run(argv, cwd=ROOT, env=_launcher_environment(), stdin=subprocess.DEVNULL, check=False)
    mine = _started_here(workspace, config, before)
    if done.returncode:
        if mine:
            mine.request_stop()
        told = "the reason is above, behind its name" + (f"; run {mine.id} here is stopped" if mine else "")
        raise runner.StartRefused(f"hostfile: not every machine could be started; {told}")
    return mine


def launcher_argv(config: RunConfig, hostfile: Path, address: str | None, workspace: Path) -> list[str]:
    """The command of DeepSpeed's launcher that starts one `studio train --part` for every slot."""
    part = write_part(config, workspace)
    if len(part) > LONGEST_PART:
        raise ConfigError(
            [FieldError("hostfile", "the configuration is too long for a command line; shorten its texts")]
        )
    known = ["--master_addr", address] if address else []
    return [
        *(sys.executable, "-m", LAUNCHER, "--hostfile", str(hostfile), "--launcher", "pdsh", "--force_multi"),
        *("--master_port", str(config.parallel.port or 29500), *known, "--no_local_rank", "--module"),
        *("studio.cli", "train", "--part", part),
    ]


def _check_possible() -> None:
    """DeepSpeed writes these into a shell command as they are."""
    if not shutil.which("pdsh"):
        raise runner.StartRefused(
            "hostfile: DeepSpeed's launcher reaches other machines with pdsh, which is not installed here; install it "
            "(apt install pdsh), or start every machine with its own line (export job, or the Train tab, shows them)"
        )
    for path in (sys.executable, str(ROOT)):
        if not _PLAIN.fullmatch(path):
            raise runner.StartRefused(
                f"hostfile: DeepSpeed's launcher cannot start anything from a folder with such a name: {path}; "
                "put Crucible into one of letters, digits and dashes"
            )


def _launcher_environment() -> dict[str, str]:
    """Of the variables that begin with PYTHON, which the launcher sets on every machine, only plain ones."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or _PLAIN.fullmatch(value)
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "DS_ACCELERATOR": _accelerator()}


def _accelerator() -> str:
    from studio import hardware

    return "cuda" if hardware.torch_has_cuda() else "cpu"


def _started_here(workspace: Workspace, config: RunConfig, before: set[str]) -> RunDir | None:
    """The run that has just come into this workspace, if machine 0 is this one."""
    for run in workspace.list_runs():
        if run.id not in before:
            found = run.config()
            if isinstance(found, RunConfig) and same_run(_anywhere(found), _anywhere(config)):
                return run
    return None


def _anywhere(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"main_process_ip": None})})


def write_part(config: RunConfig, workspace: Path) -> str:
    """A configuration and where its run shall be, as one word no shell changes."""
    content = {"config": config.model_dump(mode="json"), "workspace": str(workspace)}
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(content).encode(), 9)).decode()


def read_part(part: str, environment: Mapping[str, str]) -> tuple[RunConfig, Path] | None:
    """What this process of DeepSpeed's launcher is to start; None for all but the first of its machine.

    Raises:
        ConfigError: the word was not written by `write_part`, or not started by the launcher.
    """
    if environment.get("LOCAL_RANK", "0") != "0":
        return None
    try:
        packed = zlib.decompressobj()
        text = packed.decompress(base64.urlsafe_b64decode(part), 16 * LONGEST_PART)
        content = json.loads(text if packed.eof else "")
        config, workspace = build(RunConfig, content["config"]), Path(content["workspace"])
        rank, address = int(environment["CROSS_RANK"]), environment["MASTER_ADDR"]
    except (binascii.Error, zlib.error, ValueError, KeyError, TypeError):
        raise ConfigError([FieldError("part", "this option is for DeepSpeed's launcher; use --hostfile")]) from None
    section = config.parallel.model_copy(update={"main_process_ip": address})
    return for_machine(config.model_copy(update={"parallel": section}), rank), workspace


# ---- Slurm -----------------------------------------------------------------------------------------------------------


def submit_to_slurm(workspace: Workspace, config: RunConfig, options: str, *, as_json: bool) -> int:
    """Write the batch file into the workspace and submit it; where there is no Slurm only the file is written."""
    wanted = parse_slurm(options)
    config = workspace.freeze(config)
    folder = workspace.path / "jobs"
    folder.mkdir(exist_ok=True)
    path = free_path(folder / f"{job_name(config)}-{FILE_NAMES['slurm']}")
    path.write_text(slurm(config, wanted, _program(workspace), path.name), encoding="utf-8")
    found = shutil.which(SUBMIT["slurm"][0])
    if not found:
        message = f"there is no Slurm on this machine (no sbatch): nothing was submitted; the job is in {path}"
        _say(
            {"file": str(path), "submitted": False, "job": None},
            f"{message}; submit it where there is: sbatch {path.name}",
            as_json,
        )
        return ExitCode.FINISHED
    done = subprocess.run(
        [found, "--parsable", path.name],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise runner.StartRefused(f"slurm: sbatch refused the job: {said[:300]}; correct the options or {path}")
    job = done.stdout.strip().partition(";")[0]
    what = f"job {job} is submitted ({path}); see it: squeue -j {job}; its output: {folder}/slurm-{job}.log"
    _say({"file": str(path), "submitted": True, "job": job}, what, as_json)
    return ExitCode.FINISHED


def _program(workspace: Workspace) -> tuple[str, ...]:
    """How `studio` is started on a node that has the same folders."""
    command = Path(sys.executable).with_name("studio")
    studio = (str(command),) if command.is_file() else (sys.executable, str(ROOT / "launch.py"))
    return ("env", f"CRUCIBLE_WORKSPACE={workspace.path}", *studio)


def _say(facts: dict[str, Any], sentence: str, as_json: bool) -> None:
    print_json(facts) if as_json else print(sentence)


# ---- both ------------------------------------------------------------------------------------------------------------


def start_and_follow(
    workspace: Workspace, config: RunConfig, arguments: argparse.Namespace, address: str | None
) -> int:
    """`--hostfile`: start every machine, and follow the run if it is on this one."""
    hosts = read_hosts(arguments.hostfile)
    run = start_everywhere(workspace, config, hosts, address=address)
    if run is None:
        sentence = (
            f"all {len(hosts)} machines have started; the run is on {hosts[0].name}: see it there with runs follow last"
        )
        _say({"id": None, "machines": [host.name for host in hosts]}, sentence, arguments.json)
        return ExitCode.FINISHED
    if arguments.detach:
        _say(
            {"id": run.id, "path": str(run.path)},
            f"{run.id} has started; watch it: runs follow {run.id}",
            arguments.json,
        )
        return ExitCode.FINISHED
    return follow_or_leave(workspace, run, as_json=arguments.json)
