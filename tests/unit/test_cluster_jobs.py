"""What starts a run on several machines: lines for a shell, the notes' environment, hostfiles, jobs of schedulers."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from studio.cli.train import load_config
from studio.cluster_jobs import JOB_KINDS, job_name, job_text, parse_slurm, slurm
from studio.config import RunConfig
from studio.launch_lines import Host, for_machine, machine_lines, parse_hostfile, spread_of
from studio.reproduce import same_run
from studio.schema import ConfigError, build, merge, parse_overrides

MACHINES = {"parallel.num_processes": 6, "parallel.num_machines": 3, "parallel.main_process_ip": "10.0.0.1"}
EVIL = "a 'b' $(touch evil) \"$HOME\" `touch evil` ; touch evil $$(x) 二 😀"


def configuration(**changes: Any) -> RunConfig:
    layer = {"model.model_name_or_path": "crucible/ember", "data.dataset": "identity", "name": "Nova 二号: a/b"}
    return build(RunConfig, merge(RunConfig, layer | MACHINES | {"data.system": EVIL}, changes))


def given(argv: list[str]) -> RunConfig:
    """The configuration `studio train` would make of its arguments."""
    values = [value for option, value in zip(argv, argv[1:], strict=False) if option == "--set"]
    return load_config(None, parse_overrides(values))


def test_every_machine_has_a_line_that_a_shell_reads_as_it_is_meant() -> None:
    config = configuration()
    lines = machine_lines(config, ("python", "launch.py"))
    assert len(lines) == 3
    for rank, line in enumerate(lines):
        argv = shlex.split(line)
        assert argv[:3] == ["python", "launch.py", "train"]
        assert same_run(given(argv), for_machine(config, rank))


# ---- the environment of the notes ----


@pytest.mark.parametrize(
    ("environment", "file", "options", "expected"),
    [
        ({}, {}, {}, {}),
        ({"PORT": "8080", "ADDR": "x", "NODE_RANK": "y"}, {}, {}, {}),
        ({"NPROC_PER_NODE": "2"}, {}, {}, {"num_machines": 1, "num_processes": 2}),
        ({"NPROC_PER_NODE": "2", "PORT": "1"}, {}, {}, {"num_machines": 1, "num_processes": 2}),
        (
            {"NPROC_PER_NODE": "4", "NNODES": "2", "NODE_RANK": "1", "ADDR": "n0", "PORT": "29600"},
            {"num_processes": 3},
            {},
            {
                "num_machines": 2,
                "num_processes": 8,
                "machine_rank": 1,
                "main_process_ip": "n0",
                "main_process_port": 29600,
            },
        ),
        ({"NNODES": "2"}, {"num_processes": 3}, {}, {"num_machines": 2, "num_processes": 6}),
        ({"NPROC_PER_NODE": "2"}, {"num_machines": 3, "num_processes": 3}, {}, {"num_machines": 3, "num_processes": 6}),
        ({"NPROC_PER_NODE": "2", "NNODES": "2"}, {}, {"num_machines": 3}, {"num_processes": 6}),
        ({"NPROC_PER_NODE": "2", "NNODES": "2"}, {}, {"num_processes": 9, "machine_rank": 1}, {"num_machines": 2}),
    ],
)
def test_the_environment_of_the_notes(
    environment: dict[str, str], file: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    under = [{f"parallel.{name}": value for name, value in layer.items()} for layer in (file, options, expected)]
    assert spread_of(environment, under[0], under[1]) == under[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("NPROC_PER_NODE", "two"), ("NPROC_PER_NODE", "0"), ("NNODES", "-1"), ("NODE_RANK", "1.5"), ("PORT", "99999")],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: must be a whole number from \d+ to \d+, not '{value}'"):
        spread_of({"NPROC_PER_NODE": "2", "NNODES": "2", name: value}, {}, {})


# ---- hostfiles ----


def test_a_hostfile() -> None:
    text = "# ours\nworker-1 slots=4  # fast\n\nroot@10.0.0.2   slots=4\n"
    assert parse_hostfile(text) == [Host("worker-1", 4), Host("root@10.0.0.2", 4)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no machine"),
        ("a slots=2\nb", "line 2: 'b' names no machine"),
        ("a slots=x", "line 1"),
        ("$(touch${IFS}evil) slots=1", "line 1"),
        ("-oProxyCommand=evil slots=1", "line 1"),
        ("a,b slots=1", "line 1"),
        ("a slots=0", "a has no slots"),
        ("a slots=1\na slots=1", "line 2: a is named twice"),
        ("a slots=8\nb slots=4", "a has slots=8 and b has slots=4"),
    ],
)
def test_a_wrong_hostfile_is_told(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"^hostfile: ") as error:
        parse_hostfile(text)
    assert problem in str(error.value)


# ---- jobs ----


@pytest.fixture
def played(tmp_path: Path) -> Any:
    """played(script, **environment) -> argv of `studio`, as a shell gives them when it runs the script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tools = {
        "studio": "#!/bin/bash\nprintf '%s\\0' \"$@\"\n",
        "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nSLURM_NODEID=2 exec "$@"\n',
        "scontrol": "#!/bin/bash\nprintf 'node-a\\nnode-b\\nnode-c\\n'\n",
        "getent": "#!/bin/bash\nexit 0\n",
    }
    for name, text in tools.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)

    def play(script: str, **environment: str) -> list[str]:
        env = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": "/nowhere", **environment}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]  # nothing of the text was a command
        return done.stdout.split("\0")[:-1]

    return play


def script_of(kind: str, text: str) -> tuple[str, dict[str, str]]:
    """The shell script in a job and the variables its scheduler sets on machine 2."""
    if kind == "slurm":
        return text, {"SLURM_JOB_NODELIST": "node-[a-c]", "SLURM_CPUS_PER_TASK": "8"}
    if kind == "skypilot":
        addresses = "node-a\nnode-b\nnode-c"
        run = yaml.safe_load(text)["run"].replace(".venv/bin/studio", "studio")
        return run, {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": addresses}
    job = list(yaml.safe_load_all(text))[1]
    shell, option, script = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (shell, option) == ("bash", "-c")
    # what Kubernetes makes of it: $(NAME) is a variable unless the dollar is doubled
    return script.replace("$$", "$"), {"JOB_COMPLETION_INDEX": "2"}


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_starts_each_machine_with_its_number_and_the_address_of_the_first(kind: Any, played: Any) -> None:
    config = configuration()
    script, environment = script_of(kind, job_text(kind, config))
    argv = played(script, **environment)
    first = {"slurm": "node-a", "skypilot": "node-a", "kubernetes": f"{job_name(config)}-0.{job_name(config)}"}[kind]
    section = config.parallel.model_copy(update={"machine_rank": 2, "main_process_ip": first})
    assert same_run(given(argv), config.model_copy(update={"parallel": section}))
    assert argv[0] == "train"
    assert "--stop-on-signal" in argv


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_for_one_machine(kind: Any, played: Any) -> None:
    config = build(RunConfig, {"model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "identity"}})
    script, environment = script_of(kind, job_text(kind, config))
    assert same_run(given(played(script, **environment)), config)


def test_kubernetes_machines_find_each_other() -> None:
    service, job = yaml.safe_load_all(job_text("kubernetes", configuration()))
    name, pod = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 2}
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_skypilot_has_machines_and_cards() -> None:
    task = yaml.safe_load(job_text("skypilot", configuration()))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (3, "H100:2")


def test_slurm_options() -> None:
    options = parse_slurm("partition=gpu, account=x-1 ,--time=08:00:00,gpus-per-node=0")
    lines = [line for line in slurm(configuration(), options).splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --partition=gpu" in lines
    assert "#SBATCH --time=08:00:00" in lines
    assert "#SBATCH --nodes=3" in lines
    assert not any("gpus" in line for line in lines)
    for wrong in ("gpu", "partition=a b", "partition=x\n#SBATCH --uid=0", "nodes=2", "a=1,a=2", "Partition;=x"):
        with pytest.raises(ConfigError, match="^slurm: "):
            parse_slurm(wrong)


def test_what_is_given_is_not_asked_for_in_the_job() -> None:
    asked = slurm(configuration())
    assert "#   - partition, account and time as your cluster wants them" in asked
    assert "cards and processor cores" in asked
    told = slurm(configuration(), {"partition": "gpu", "time": "08:00:00", "gpus-per-node": "2"})
    assert '#   - account as your cluster wants it: lines like "#SBATCH --account=..." above' in told
    assert "partition" not in told.partition("To fill in")[2]
    every = dict.fromkeys(("partition", "account", "time", "gpus-per-node", "cpus-per-task"), "1")
    text = slurm(configuration(), every)
    assert "cluster wants" not in text
    assert "processor cores" not in text


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_calls_itself_by_its_own_name(kind: Any, played: Any) -> None:
    text = job_text(kind, configuration(), file="my job\ntouch x")
    assert "'my job?touch x'" in text
    assert played(script_of(kind, text)[0], **script_of(kind, text)[1])[0] == "train"


@pytest.mark.parametrize(("name", "expected"), [("二号", "run"), ("7 of 9!", "run-7-of-9"), ("A" * 99, "a" * 40)])
def test_names_of_jobs(name: str, expected: str) -> None:
    assert job_name(configuration(name=name)) == expected
