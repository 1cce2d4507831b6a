"""The launcher for real, in a small project of its own: real venv, real pip, real processes, no index needed.

The project wants one tiny package, which lies as a wheel in a folder; everything else is the launcher as it is.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[2] / "launch.py"

# A build backend of a few lines, so that `pip install --editable` needs nothing from outside.
BACKEND = '''
"""Makes the editable wheel: a .pth file that points here."""
import base64, hashlib, pathlib, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    here = str(pathlib.Path.cwd())
    info = "tiny_studio-1.0.dist-info/"
    files = {
        "tiny_studio.pth": here + "\\n",
        info + "METADATA": "Metadata-Version: 2.1\\nName: tiny-studio\\nVersion: 1.0\\n",
        info + "WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    name = "tiny_studio-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        record = ""
        for path, text in files.items():
            wheel.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text.encode())}\\n"
        wheel.writestr(info + "RECORD", record + info + "RECORD,,\\n")
    return name

def build_wheel(*args, **options):
    raise SystemExit("not this one")
'''
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny-studio"
version = "1.0"
dependencies = ["tiny-library==1.0"]
"""
STUDIO = """
import json, os, sys
import tiny_library
print("STUDIO " + json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "path": sys.path, "python": sys.executable}))
sys.exit(7 if "seven" in sys.argv else 0)
"""


def make_wheel(folder: Path) -> None:
    """A wheel of the one library the small project wants."""
    folder.mkdir()
    info = "tiny_library-1.0.dist-info/"
    files = {
        "tiny_library.py": "VALUE = 1\n",
        info + "METADATA": "Metadata-Version: 2.1\nName: tiny-library\nVersion: 1.0\n",
        info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        for name, text in files.items()
    ]
    with zipfile.ZipFile(folder / "tiny_library-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(info + "RECORD", "\n".join([*lines, info + "RECORD,,", ""]))


class Project:
    """A copy of the launcher with a small studio beside it."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root = root
        self.wheels = wheels
        self.venv = root / ".venv"
        self.log = self.venv / "install.log"
        (root / "studio/cli").mkdir(parents=True)
        shutil.copy(LAUNCHER, root / "launch.py")
        for name, text in (
            ("pyproject.toml", PYPROJECT),
            ("backend.py", BACKEND),
            ("studio/__init__.py", ""),
            ("studio/cli/__init__.py", ""),
            ("studio/cli/__main__.py", STUDIO),
        ):
            (root / name).write_text(text, encoding="utf-8")

    def environment(self, **changes: str) -> dict[str, str]:
        """pip sees only the folder with the wheel, unless changed."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "CRUCIBLE_"))}
        env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.wheels.as_uri()}
        return {key: value for key, value in (env | changes).items() if value}

    def popen(self, *words: str, cwd: Path | None = None, **changes: str) -> subprocess.Popen[str]:
        """Start the launcher in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, str(self.root / "launch.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=cwd or self.root,
            env=self.environment(**changes),
            start_new_session=True,
        )

    def start(self, *words: str, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run the launcher to its end."""
        process = self.popen(*words, cwd=cwd, **changes)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture
def fresh(weird_path: Path, tmp_path: Path) -> Project:
    """A project nobody has started yet."""
    make_wheel(tmp_path / "wheels")
    return Project(weird_path, tmp_path / "wheels")


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, subprocess.CompletedProcess[str], Path]:
    """A project after its first start, how that went, and a copy of the environment it made."""
    folder = tmp_path_factory.mktemp("install")
    make_wheel(folder / "wheels")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tiny_library.py").write_text("raise SystemExit('the wrong one')", encoding="utf-8")
    (folder / "home").mkdir()
    project = Project(folder / 'my "odd" it\'s 丹炉 $HOME & co', folder / "wheels")
    plain = {"HOME": str(folder / "home"), "PATH": "/usr/bin:/bin", "PIP_NO_CACHE_DIR": "1"}
    done = project.start("--port", "80 80", cwd=elsewhere, PYTHONPATH=str(elsewhere), **plain)
    shutil.copytree(project.venv, folder / "kept", symlinks=True)
    return project, done, folder


@pytest.fixture
def project(first_start: tuple[Project, subprocess.CompletedProcess[str], Path]) -> Project:
    """The project as it was after its first start."""
    project, _, folder = first_start
    shutil.rmtree(project.venv, ignore_errors=True)
    shutil.copytree(folder / "kept", project.venv, symlinks=True)
    return project


@pytest.fixture
def unfinished(project: Project) -> Project:
    """A project whose first start got as far as making the environment."""
    (project.venv / "installed-studio.json").unlink()
    project.log.unlink()
    lose_a_package(project)
    return project


@contextlib.contextmanager
def silent_index() -> Iterator[str]:
    """An index that takes the call and never answers, as a dying network does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def studio_line(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """What the studio said it was started with."""
    assert "STUDIO " in done.stdout, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout.split("STUDIO ", 1)[1])
    return found


def test_the_first_start_installs_and_hands_over(first_start) -> None:
    _, done, folder = first_start
    assert (done.returncode, done.stderr) == (0, "")
    assert "[4/4] Checking the installation … " in done.stdout
    seen = studio_line(done)
    assert seen["argv"] == ["ui", "--port", "80 80"]
    assert seen["cwd"] == str(folder / "elsewhere")
    assert seen["cwd"] not in seen["path"]  # neither PYTHONPATH nor the working directory can replace a library


def test_only_the_project_folder_is_written(first_start) -> None:
    _, _, folder = first_start
    assert list((folder / "home").iterdir()) == []


def test_later_starts_install_nothing_and_pass_the_exit_code_on(project: Project) -> None:
    written = project.log.stat().st_mtime_ns
    done = project.start("demo", "seven")
    assert done.returncode == 7
    assert done.stdout.startswith("STUDIO")
    assert studio_line(done)["argv"] == ["demo", "seven"]
    assert project.log.stat().st_mtime_ns == written


def break_the_interpreter(project: Project) -> None:
    (project.venv / "bin/python").unlink()
    (project.venv / "bin/python").symlink_to("/nowhere/python3")


def lose_a_package(project: Project) -> None:
    for path in project.venv.glob("lib/*/site-packages/tiny_library*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def lose_the_code_but_not_the_record(project: Project) -> None:
    """pip believes the package is there: only importing shows the damage, and only a new environment mends it."""
    project.venv.joinpath("installed-studio.json").unlink()
    (project.root / "studio/__init__.py").write_text("import tiny_library\n", encoding="utf-8")
    next(project.venv.glob("lib/*/site-packages/tiny_library.py")).unlink()


@pytest.mark.parametrize("damage", [break_the_interpreter, lose_a_package, lose_the_code_but_not_the_record])
def test_a_damaged_environment_repairs_itself(project: Project, damage) -> None:
    damage(project)
    again = project.start()
    assert again.returncode == 0, again.stdout + again.stderr
    assert studio_line(again)["argv"] == ["ui"]
    assert "Checking the installation" in again.stdout


def test_a_moved_folder_repairs_itself(project: Project) -> None:
    moved = Project(project.root.with_name("another place"), project.wheels)
    shutil.copytree(project.venv, moved.venv, symlinks=True)
    assert str(studio_line(moved.start())["python"]).startswith(str(moved.root))


def test_no_network_is_one_sentence_and_the_next_try_succeeds(unfinished: Project) -> None:
    index = f"http://127.0.0.1:{closed_port()}/simple"
    offline = unfinished.start(PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=index, PIP_RETRIES="1")
    assert offline.returncode == 1
    assert offline.stderr.strip().splitlines()[0].startswith("No network: The libraries could not be installed")
    assert len(offline.stderr.strip().splitlines()) == 2
    assert "Installing the libraries … failed after" in offline.stdout
    assert unfinished.start().returncode == 0


def test_what_no_index_has_is_one_sentence(unfinished: Project) -> None:
    refused = unfinished.start(PIP_FIND_LINKS="")
    assert refused.returncode == 1
    assert refused.stderr.strip().startswith("No package index of yours knows it: The libraries")
    assert "Traceback" not in refused.stderr


def wait_for_pip(project: Project, process: subprocess.Popen[str]) -> None:
    """Until pip asks the index."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if "tiny-library==1.0" in project.log.read_text(encoding="utf-8"):
                return
        time.sleep(0.05)
    pytest.fail(str(process.communicate()))


def test_interrupted_says_so_and_goes_on_next_time(unfinished: Project) -> None:
    with silent_index() as index:
        process = unfinished.popen(PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=index)
        wait_for_pip(unfinished, process)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to everything in the foreground
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == "Interrupted. Run the same command again; it continues where it stopped."
    assert unfinished.start().returncode == 0


def test_killed_while_installing_goes_on_next_time(unfinished: Project) -> None:
    with silent_index() as index:
        process = unfinished.popen(PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=index)
        wait_for_pip(unfinished, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    again = unfinished.start()
    assert again.returncode == 0
    assert "Another start is installing" not in again.stdout


def test_two_first_starts_at_once_install_once(fresh: Project) -> None:
    both = [fresh.popen(), fresh.popen()]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("Making the environment" in out for out, _ in outputs) == [False, True]
    assert fresh.log.read_text(encoding="utf-8").count("-m venv") == 1


DRIVER = """
import runpy, shutil, sys, types
sys.argv = ["launch.py", "demo"]
{change}
runpy.run_path({launcher!r}, run_name="__main__")
"""


NO_ENSUREPIP = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "ensurepip" else real(name, *rest)
"""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("sys.version_info = (3, 8, 10)", "Crucible needs Python 3.11 or newer; this is Python 3.8.10."),
        (
            "shutil.disk_usage = lambda path: types.SimpleNamespace(free=10**9)",
            "Too little disk space: 1.0 GB are free",
        ),
        (NO_ENSUREPIP, "This Python cannot make environments: its module ensurepip is missing."),
    ],
    ids=["old", "full", "no-venv"],
)
def test_a_machine_that_cannot_do_it_gets_a_sentence(fresh: Project, change: str, sentence: str) -> None:
    """The machine is changed as little as possible, then the whole launcher runs."""
    program = DRIVER.format(change=change, launcher=str(fresh.root / "launch.py"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=fresh.environment(),
        check=False,
    )
    assert done.returncode == 1
    first, remedy = done.stderr.strip().splitlines()
    assert first.startswith(sentence)
    assert remedy
    assert not fresh.venv.exists()


def test_a_folder_that_cannot_be_written_gets_a_sentence(fresh: Project) -> None:
    if os.geteuid() == 0:  # root may write anywhere: a folder in the lock's place is refused to root too
        (fresh.root / ".install.lock").mkdir()
    else:
        fresh.root.chmod(0o555)
    done = fresh.start()
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"The project folder {fresh.root} cannot be written to")
    assert not fresh.venv.exists()
