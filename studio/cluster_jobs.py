"""A run as a job of somebody else's scheduler: text for Slurm, SkyPilot and Kubernetes, ready to be filled in.

Pure: from a configuration to text; nothing is submitted here. Every job starts `studio train` once on each machine,
which starts that machine's processes; the scheduler only says which machine this is and where machine 0 is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import yaml

from studio.config import RunConfig
from studio.reproduce import command_line
from studio.schema import ConfigError, FieldError

JobKind = Literal["slurm", "skypilot", "kubernetes"]
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)
FILE_NAMES: dict[JobKind, str] = {"slurm": "job.sbatch", "skypilot": "job.sky.yaml", "kubernetes": "job.k8s.yaml"}
"""What the text is called when it is saved."""
SUBMIT: dict[JobKind, tuple[str, ...]] = {
    "slurm": ("sbatch",),
    "skypilot": ("sky", "launch"),
    "kubernetes": ("kubectl", "apply", "-f"),
}
"""The command that gives the file, its last argument, to the scheduler."""
LONGEST_NAME = 40
_OPTION = re.compile(r"[a-z][a-z0-9-]{0,40}")
_VALUE = re.compile(r"[\w.:/@+=%\[\]-]{1,200}", re.ASCII)
# Decided by the configuration: another value would start machines nobody waits for.
_OURS = {
    "nodes": "parallel.num_machines",
    "ntasks-per-node": "one command a machine",
    "ntasks": "one command a machine",
}


def job_text(kind: JobKind, config: RunConfig, program: Sequence[str] = ("studio",), *, file: str | None = None) -> str:
    """The whole text of a job. `file`: what it will be called."""
    file = file or FILE_NAMES[kind]
    if kind == "slurm":
        return slurm(config, program=program, file=file)
    return skypilot(config, program, file) if kind == "skypilot" else kubernetes(config, program, file)


def _in_comment(name: str) -> str:
    """A file's name as a shell takes it; whatever it holds, it stays in its line."""
    return shlex.quote("".join(sign if sign.isprintable() else "?" for sign in name))


def job_name(config: RunConfig) -> str:
    """The run's name as every scheduler takes it: small letters, digits and dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", (config.name or config.data.dataset).lower()).strip("-")[:LONGEST_NAME]
    return plain.strip("-") if plain[:1].isalpha() else f"run-{plain}".strip("-")[:LONGEST_NAME]


def _command(config: RunConfig, program: Sequence[str]) -> str:
    """The training as an array of the shell called `train`, without which machine this is and where machine 0 is.

    With its last option the run saves and stops when the scheduler tells the command to end.
    """
    spread = config.parallel.model_copy(update={"machine_rank": 0, "main_process_ip": None})
    argv = command_line(config.model_copy(update={"parallel": spread}), program)
    start = len(program) + 1 + (argv[len(program) + 1 : len(program) + 2] not in ([], ["--set"]))
    lines = [argv[:start], *(argv[place : place + 2] for place in range(start, len(argv), 2)), ["--stop-on-signal"]]
    return "\n".join(["train=(", *(f"  {shlex.join(line)}" for line in lines), ")"])


def _options(config: RunConfig, machine: str, address: str) -> str:
    """The options that differ between the machines, as shell: from the scheduler's variables."""
    if config.parallel.num_machines == 1:
        return ""
    return f' --set "parallel.machine_rank={machine}" --set "parallel.main_process_ip={address}"'


# ---- Slurm -----------------------------------------------------------------------------------------------------------


def parse_slurm(text: str) -> dict[str, str]:
    """`partition=gpu,account=x,time=08:00:00` -> options of sbatch by their long names.

    Raises:
        ConfigError: no name=value, a name or value no option can have, or one that the configuration decides.
    """
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        name, value = name.strip().lstrip("-"), value.strip()
        if not equals or not _OPTION.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _wrong(
                f"{part[:60]!r} is no option; write name=value with commas between: partition=gpu,time=08:00:00"
            )
        if name in _OURS:
            raise _wrong(f"{name} is decided by {_OURS[name]}; leave it out")
        if name in found:
            raise _wrong(f"{name} is given twice; keep one")
        found[name] = value
    return found


def _wrong(message: str) -> ConfigError:
    return ConfigError([FieldError("slurm", message)])


_SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={machines}
#SBATCH --ntasks-per-node=1
{options}
#
# {about} Submit it: sbatch {file}
#
# To fill in or check:
{missing}#   - Crucible, the workspace, the model and the data must be readable under the same paths on every machine
set -euo pipefail
{command}
{address}# One task a machine; it starts the processes of its machine itself. When one fails, all of them end.
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \\
  bash -c {script} crucible "${{train[@]}}"
"""
CORES_A_PROCESS = 4


def slurm(
    config: RunConfig,
    options: Mapping[str, str] | None = None,
    program: Sequence[str] = ("studio",),
    file: str = FILE_NAMES["slurm"],
) -> str:
    """The text of a batch file for sbatch. `options`: of sbatch, by their long names; `gpus-per-node=0` asks for none.

    Its output goes to slurm-JOB.log in the folder it is submitted from.
    """
    spread, each = config.parallel, config.parallel.processes_per_machine
    usual = {"gpus-per-node": str(each), "cpus-per-task": str(each * CORES_A_PROCESS), "output": "slurm-%j.log"}
    wanted = {**usual, **(options or {})}
    if wanted["gpus-per-node"] == "0":
        del wanted["gpus-per-node"]
    address = 'MAIN_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"\nexport MAIN_NODE\n'
    return _SLURM.format(
        name=job_name(config),
        machines=spread.num_machines,
        options="\n".join(f"#SBATCH --{name}={value}" for name, value in wanted.items()),
        about=_about(config),
        file=_in_comment(file),
        missing=_missing(options or {}),
        command=_command(config, program),
        address=address if spread.num_machines > 1 else "",
        script=shlex.quote('exec "$@"' + _options(config, "$SLURM_NODEID", "$MAIN_NODE")),
    )


def _missing(given: Mapping[str, str]) -> str:
    """What nobody has said yet, as lines of a comment."""
    lines = []
    wanted = [name for name in ("partition", "account", "time") if name not in given]
    if wanted:
        names, them = " and ".join(filter(None, [", ".join(wanted[:-1]), wanted[-1]])), "them" if wanted[1:] else "it"
        lines.append(f'{names} as your cluster wants {them}: lines like "#SBATCH --{wanted[0]}=..." above')
    if not {"gpus-per-node", "cpus-per-task"} <= given.keys():
        lines.append("cards and processor cores of one machine, above")
    return "".join(f"#   - {line}\n" for line in lines)


def _about(config: RunConfig) -> str:
    machines, each = config.parallel.num_machines, config.parallel.processes_per_machine
    processes = f"{each} process{'es' * (each > 1)}{' each' * (machines > 1)}"
    return f"A training on {machines} machine{'s' * (machines > 1)} with {processes}, written by Crucible."


# ---- SkyPilot and Kubernetes -----------------------------------------------------------------------------------------


class _Text(str):
    """A text of several lines, written as a block."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and lists below their key further to the right."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists too."""
        return super().increase_indent(flow, False)


_Dumper.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


_SKYPILOT = """\
# {about} Start it: sky launch {file}
#
# To fill in or check:
#   - resources: a kind of card your clouds have ("sky show-gpus"), with the number of processes of one machine
#   - file_mounts: where the model and the data come from, if the command below names files
#   - workdir: the folder with Crucible; it is copied to every machine
{head}
# file_mounts:
#   /models/my-model: s3://my-bucket/my-model
#   /data/rows.jsonl: ./rows.jsonl

{tail}"""


def skypilot(config: RunConfig, program: Sequence[str] = ("studio",), file: str = FILE_NAMES["skypilot"]) -> str:
    """A SkyPilot task: YAML with comments on what to fill in."""
    spread = config.parallel
    where = (".venv/bin/studio",) if tuple(program) == ("studio",) else tuple(program)
    address = 'MAIN_NODE="$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)"\n' if spread.num_machines > 1 else ""
    own = _options(config, "$SKYPILOT_NODE_RANK", "$MAIN_NODE")
    script = f'{_command(config, where)}\n{address}exec "${{train[@]}}"{own}\n'
    head = {
        "name": job_name(config),
        "resources": {"accelerators": f"H100:{spread.processes_per_machine}"},
        "num_nodes": spread.num_machines,
        "workdir": ".",
    }
    tail = {"setup": _Text("python3 launch.py install\n"), "run": _Text(script)}
    return _SKYPILOT.format(about=_about(config), file=_in_comment(file), head=_yaml(head), tail=_yaml(tail))


_KUBERNETES = """\
# {about} Start it: kubectl apply -f {file}
# Follow it: kubectl logs -f job/{name}; end it: kubectl delete -f {file}
#
# To fill in or check:
#   - image: an image with Crucible in it, in which "studio" is a command (python launch.py install makes it)
#   - volumes: "workspace" keeps the runs of machine 0; "models" and "data" are mounted where the command looks for them
#   - resources: cards of one machine; without cards leave "nvidia.com/gpu" out
#   - one pod for each machine; they find each other by the headless Service
{service}---
{job}"""


def kubernetes(config: RunConfig, program: Sequence[str] = ("studio",), file: str = FILE_NAMES["kubernetes"]) -> str:
    """An Indexed Job, one pod for each machine, and the headless Service by which they meet: YAML with comments."""
    name = job_name(config)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        # Machines meet before any of them is ready, so that not-ready ones must have addresses too.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": name}},
    }
    machines = config.parallel.num_machines
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completions": machines,
            "parallelism": machines,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "template": {"spec": _pod(config, name, program)},
        },
    }
    text = {"service": _yaml(service), "job": _yaml(job)}
    return _KUBERNETES.format(about=_about(config), file=_in_comment(file), name=name, **text)


def _pod(config: RunConfig, name: str, program: Sequence[str]) -> dict[str, Any]:
    own = _options(config, "$JOB_COMPLETION_INDEX", f"{name}-0.{name}")
    folder = 'export CRUCIBLE_WORKSPACE="/workspace/machine-$JOB_COMPLETION_INDEX"'
    # The first pod has a name once it has a place, which may take as long as it likes.
    wait = f"until getent hosts {name}-0.{name} > /dev/null; do sleep 2; done\n" if own else ""
    script = f'{_command(config, program)}\n{folder}\n{wait}exec "${{train[@]}}"{own}\n'
    card = {"nvidia.com/gpu": config.parallel.processes_per_machine}
    mounts = {"workspace": "/workspace", "models": "/models", "data": "/data", "shared-memory": "/dev/shm"}
    claims: list[dict[str, Any]] = [
        {"name": volume, "persistentVolumeClaim": {"claimName": volume}} for volume in ("workspace", "models", "data")
    ]
    # Between processes of one machine NCCL talks through shared memory, of which a pod has 64 MB otherwise.
    claims.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    return {
        "subdomain": name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 600,
        "containers": [
            {
                "name": "train",
                "image": "registry.example.com/crucible:latest",
                "command": ["bash", "-c", _Text(re.sub(r"\$(?=[$(])", "$$", script))],  # as Kubernetes wants its own
                "resources": {"limits": card},
                "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in mounts.items()],
            }
        ],
        "volumes": claims,
    }
