"""The launcher's decisions, without installing anything (tests/e2e/test_install.py really installs)."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch

ROOT = Path(launch.__file__).parent
PROJECT = {"dependencies": ["torch==2.13.0", "gradio==6.31.0"], "optional-dependencies": {"test": ["pytest==9"]}}
NO_INDEX = "ERROR: No matching distribution found for torch==2.13.0+cpu"
REFUSED = "WARNING: Retrying … NewConnectionError('Failed to establish a new connection: [Errno 111]')\n" + NO_INDEX


def program(path: Path, body: str) -> Path:
    """An executable Python script; the real thing a test puts in a program's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def place(weird_path, monkeypatch) -> launch.Place:
    """A project folder whose .venv has a Python and two installed packages."""
    monkeypatch.delenv("CRUCIBLE_TORCH", raising=False)
    monkeypatch.delenv("CRUCIBLE_TORCH_INDEX", raising=False)
    place = launch.Place(weird_path)
    for name in ("torch-2.13.0+cpu.dist-info", "gradio-6.31.0.dist-info"):
        (place.venv / "lib/python3.11/site-packages" / name).mkdir(parents=True)
    place.python.parent.mkdir()
    place.python.symlink_to(sys.executable)
    return place


class FakePip:
    """Answers pip's calls: `answers[n]` is what the n-th call prints and ends with; later calls succeed."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, _place: launch.Place, *arguments: str) -> tuple[int, str]:
        self.calls.append(arguments)
        return self.answers.pop(0) if self.answers else (0, "")


@pytest.fixture
def pip(monkeypatch):
    """Put a FakePip with the given answers in pip's place."""

    def put(*answers: tuple[int, str]) -> FakePip:
        fake = FakePip(*answers)
        monkeypatch.setattr(launch, "pip", fake)
        return fake

    return put


# The build of torch


def test_a_machine_without_gpu_takes_the_cpu_build_of_its_own_index(place, pip):
    fake = pip()
    launch.install_torch(place, "2.13.0", "cpu")
    assert fake.calls == [("torch==2.13.0+cpu",)]


def test_only_then_it_asks_pytorchs_cpu_index(place, pip):
    fake = pip((1, NO_INDEX))
    launch.install_torch(place, "2.13.0", "cpu")
    assert fake.calls[1:] == [("torch==2.13.0+cpu", "--extra-index-url", launch.TORCH_CPU_INDEX)]


def test_the_cpu_index_can_be_a_mirror(place, pip, monkeypatch):
    monkeypatch.setenv("CRUCIBLE_TORCH_INDEX", "file:///mirror")
    fake = pip((1, NO_INDEX))
    launch.install_torch(place, "2.13.0", "cpu")
    assert fake.calls[-1][-1] == "file:///mirror"


def test_without_gpu_the_build_with_cuda_is_never_asked_for(place, pip):
    fake = pip((1, REFUSED), (1, REFUSED))
    with pytest.raises(launch.Problem, match="No network: PyTorch 2.13.0") as caught:
        launch.install_torch(place, "2.13.0", "cpu")
    assert "CRUCIBLE_TORCH_INDEX" in caught.value.remedy
    assert all("torch==2.13.0+cpu" in call for call in fake.calls)


def test_a_gpu_machine_takes_the_plain_build(place, pip):
    fake = pip()
    launch.install_torch(place, "2.13.0", "cuda")
    assert fake.calls == [("torch==2.13.0",)]


@pytest.mark.parametrize(("code", "listing", "found"), [(0, "GPU 0: H200", True), (9, "GPU", False), (0, "", False)])
def test_a_gpu_is_one_the_driver_lists(tmp_path, monkeypatch, code, listing, found):
    monkeypatch.setattr(launch, "DRIVER_SIGNS", (str(tmp_path / "none"),))
    program(tmp_path / "nvidia-smi", f"print({listing!r}); sys.exit({code})")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.has_nvidia() is found


def test_no_driver_means_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "DRIVER_SIGNS", (str(tmp_path / "none"),))
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    assert launch.has_nvidia() is False


@pytest.mark.parametrize(
    ("platform", "nvidia", "forced", "flavour"),
    [
        ("linux", False, "", "cpu"),
        ("linux", True, "", "cuda"),
        ("darwin", False, "", "default"),
        ("linux", True, "cpu", "cpu"),
        ("linux", False, "nonsense", "cpu"),
    ],
)
def test_flavour(monkeypatch, platform, nvidia, forced, flavour):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(launch, "has_nvidia", lambda: nvidia)
    monkeypatch.setenv("CRUCIBLE_TORCH", forced)
    assert launch.torch_flavour() == flavour


def test_windows_is_told_to_use_wsl(monkeypatch, capsys):
    monkeypatch.setattr(launch, "fcntl", None)
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    assert launch.main() == 1
    assert "WSL" in capsys.readouterr().err


# The stamp


def test_a_stamp_is_good_until_something_changes(place):
    assert not launch.is_installed(place, PROJECT, "", "cpu")
    launch.write_stamp(place, PROJECT, "", "cpu")
    assert launch.is_installed(place, PROJECT, "", "cpu")
    assert launch.is_installed(place, dict(PROJECT, description="new words"), "", "cpu")
    assert not launch.is_installed(place, PROJECT, "test", "cpu")


def test_other_requirements_need_a_new_installation(place):
    launch.write_stamp(place, PROJECT, "", "cpu")
    assert not launch.is_installed(place, dict(PROJECT, dependencies=["torch==2.14.0"]), "", "cpu")


def test_other_test_tools_leave_the_studio_alone(place):
    for extra in ("", "test"):
        launch.write_stamp(place, PROJECT, extra, "cpu")
    changed = PROJECT | {"optional-dependencies": {"test": ["pytest==10"]}}
    assert launch.is_installed(place, changed, "", "cpu")
    assert not launch.is_installed(place, changed, "test", "cpu")


def remove_a_package(place: launch.Place) -> launch.Place:
    shutil.rmtree(next(place.venv.glob("lib/*/*/gradio-*")))
    return place


def remove_the_interpreter(place: launch.Place) -> launch.Place:
    place.python.unlink()
    return place


def change_the_interpreter(place: launch.Place) -> launch.Place:
    place.python.unlink()
    place.python.symlink_to("/bin/sh")
    return place


def tear_the_stamp(place: launch.Place) -> launch.Place:
    text = place.stamp("").read_text(encoding="utf-8")
    place.stamp("").write_text(text[: len(text) // 2], encoding="utf-8")
    return place


def replace_the_stamp(place: launch.Place) -> launch.Place:
    place.stamp("").write_text("[1]", encoding="utf-8")
    return place


def move_the_folder(place: launch.Place) -> launch.Place:
    return launch.Place(place.root.rename(place.root.with_name("moved")))


@pytest.mark.parametrize(
    "damage",
    [
        remove_a_package,
        remove_the_interpreter,
        change_the_interpreter,
        tear_the_stamp,
        replace_the_stamp,
        move_the_folder,
    ],
)
def test_damage_is_seen(place, damage):
    launch.write_stamp(place, PROJECT, "", "cpu")
    assert not launch.is_installed(damage(place), PROJECT, "", "cpu")


def test_a_cuda_build_is_kept_on_a_machine_without_gpu(place, monkeypatch, pip):
    """A shared folder is seen by machines with and without a GPU: no build chases the other."""
    (place.root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    launch.write_stamp(place, launch.read_project(place.root), "", "cuda")
    monkeypatch.setattr(launch, "torch_flavour", lambda: "cpu")
    fake = pip()
    launch.ensure_installed(place)
    assert fake.calls == []


def test_a_cpu_build_is_replaced_when_a_gpu_appears(place):
    launch.write_stamp(place, PROJECT, "", "cpu")
    assert not launch.is_installed(place, PROJECT, "", "cuda")


# Words for what goes wrong


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (REFUSED, "No network"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "No network"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool: Read timed out.", "No network"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ERROR: Could not install packages: [Errno 13] Permission denied: 'x'", "No permission"),
        (
            "ERROR: … trl==1.16.0 (from versions: none)\nERROR: No matching distribution found",
            "No package index of yours",
        ),
        ("ERROR: No matching distribution found for trl==1.16.0", "There is nothing for Python"),
        ("something else\nerror: subprocess-exited-with-error", "x could not be installed: error: subprocess"),
        ("", "x could not be installed: no output"),
    ],
)
def test_what_pip_says_becomes_a_sentence(output, sentence):
    problem = launch.explain(output, "x", Path("install.log"))
    assert problem.sentence.startswith(sentence)
    assert "install.log" in problem.sentence + problem.remedy


def test_an_unknown_failure_may_mean_a_damaged_environment_a_known_one_does_not():
    assert launch.explain("Segmentation fault", "x", Path("log")).damaged
    assert not launch.explain(REFUSED, "x", Path("log")).damaged


def test_too_little_disk_is_said_before_anything_is_made(place, monkeypatch):
    shutil.rmtree(place.venv)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1.5e9))
    with pytest.raises(launch.Problem, match=r"1\.5 GB are free.*about 3 GB are needed"):
        launch.check_disk(place, "cpu")
    with pytest.raises(launch.Problem, match="about 10 GB are needed"):
        launch.check_disk(place, "cuda")


def test_a_repair_needs_less_disk(place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1.5e9))
    launch.check_disk(place, "cpu")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0.5e9))
    with pytest.raises(launch.Problem, match="about 1 GB"):
        launch.check_disk(place, "cpu")


def test_an_old_python_is_told_which_newer_one_is_here(tmp_path, monkeypatch):
    program(tmp_path / "python3.12", "sys.exit(127)")  # a version manager's stub of a Python that is not installed
    program(tmp_path / "python3.13", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(sys, "argv", ["launch.py", "demo"])
    with pytest.raises(launch.Problem, match=r"needs Python 3\.11 or newer; this is Python 3\.9\.2") as caught:
        launch.check_python()
    assert "python3.13 launch.py demo" in caught.value.remedy


def test_without_a_newer_python_it_says_where_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install Python 3.12" in launch.older_python_advice(["launch.py"])


def test_a_python_without_venv_is_told_the_package(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(launch.Problem, match="ensurepip") as caught:
        launch.check_python()
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in caught.value.remedy


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".install.lock").mkdir()
    with pytest.raises(launch.Problem, match="cannot be written to"), launch.install_lock(tmp_path):
        pytest.fail("the lock was taken")


# Running


def test_nothing_of_the_users_python_leaks_in(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    env = launch.clean_environment()
    assert "/elsewhere" not in env.values()
    assert (env["PYTHONNOUSERSITE"], env["PIP_USER"]) == ("1", "0")
    assert os.environ["PYTHONPATH"] == "/elsewhere"


def test_output_goes_to_the_log_and_only_this_commands_output_comes_back(place):
    first = launch.run_logged(place, [sys.executable, "-c", "print('one')"])
    second = launch.run_logged(place, [sys.executable, "-c", "import sys; print('two'); sys.exit(3)"])
    assert (first[0], first[1].strip()) == (0, "one")
    assert (second[0], second[1].strip()) == (3, "two")
    assert "one" in place.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("typed", "extra", "handed_over"),
    [
        ([], "", ["-m", "studio.cli", "ui"]),
        (["--port", "9"], "", ["-m", "studio.cli", "ui", "--port", "9"]),
        (["ui", "--open"], "", ["-m", "studio.cli", "ui", "--open"]),
        (["demo", "--name", "ui"], "", ["-m", "studio.cli", "demo", "--name", "ui"]),
        (["test", "-k", "x"], "test", [str(ROOT / "tests" / "check.py"), "-k", "x"]),
    ],
)
def test_words_become_a_command(monkeypatch, typed, extra, handed_over):
    seen = []
    monkeypatch.setattr(launch, "ensure_installed", lambda _place, wanted="": seen.append(wanted))
    monkeypatch.setattr(launch, "hand_over", lambda _place, arguments: seen.append(arguments) or 5)
    assert launch.start(typed) == 5
    assert seen == [extra, handed_over]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (launch.Problem("It rained.", "Take a coat."), 1, "It rained.\nTake a coat."),
        (OSError(28, "No space left on device", "x"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "Run the same command again"),
    ],
)
def test_failures_are_sentences_with_an_exit_code(monkeypatch, capsys, error, code, words):
    def fail(_arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(launch, "start", fail)
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    assert launch.main() == code
    assert words in capsys.readouterr().err


def test_help_needs_no_installation():
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "python launch.py test" in done.stdout


def test_progress_is_one_line_per_step_and_says_when_it_failed(capsys):
    def fail() -> None:
        raise launch.Problem("no", "yes")

    with pytest.raises(launch.Problem):
        launch.run_steps([("First", lambda: None), ("Second", fail), ("Third", lambda: None)])
    assert capsys.readouterr().out.splitlines() == ["[1/3] First … 0 s", "[2/3] Second … failed after 0 s"]


def test_the_projects_own_pins_are_read():
    project = launch.read_project(ROOT)
    assert launch.torch_version(project) == "2.13.0"
    assert all("==" in need for extra in ("", "test") for need in launch.wanted_packages(project, extra))
    titles = [title for title, _ in launch.installation_steps(launch.Place(ROOT), project, "test", "cpu")]
    assert titles[1] == "Installing PyTorch 2.13.0 for CPU"
    assert "Installing the test tools" in titles


def test_the_stamp_is_readable_by_people(place):
    launch.write_stamp(place, PROJECT, "", "cpu")
    assert json.loads(place.stamp("").read_text(encoding="utf-8"))["flavour"] == "cpu"
