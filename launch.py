#!/usr/bin/env python3
"""Start Crucible: makes the environment on the first start, then opens the studio.

    python launch.py [--host H] [--port N] [--workspace DIR] [--token T] [--open]
    python launch.py VERB ...      any studio command: demo, train, runs, chat, doctor, ...
    python launch.py test [...]    every quality gate and every test; further arguments go to pytest
    python launch.py install       only make the environment

Standard library only. Everything goes into .venv beside this file; nothing else is touched.
Python 3.6 must still be able to read this file, so that it can say in words that it is too old.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
THIS_PYTHON = "%d.%d" % sys.version_info[:2]
DRIVER_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What pip says when it fails, why that is, and what helps; the first that fits counts.
CAUSES = (
    ("No space left on device", "The disk is full", "Free some space"),
    (
        "NewConnectionError|Failed to establish a new connection|[Nn]ame ?[Rr]esolution|getaddrinfo failed|"
        "Network is unreachable|Connection refused|Connection aborted|[Tt]imed? ?out|ProxyError|SSLError|Max retries",
        "No network",
        "Connect to the internet, or point pip to a mirror or proxy that you can reach",
    ),
    ("versions: none", "No package index of yours knows it", "Connect to the internet or correct pip's configuration"),
    ("Permission denied", "No permission to write", "Move the project to a folder of your own"),
    ("No matching distribution", "There is nothing for Python %s on this system" % THIS_PYTHON, "Try Python 3.12"),
)
Step = Tuple[str, Callable[[], None]]


class Problem(Exception):
    """Something the person at the keyboard can mend: one sentence, one remedy."""

    def __init__(self, sentence: str, remedy: str, damaged: bool = False) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy
        self.damaged = damaged  # True if making the environment anew may help


class Place(NamedTuple):
    """Where things are, all derived from the project folder."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.venv / "install.log"

    def packages(self) -> List[str]:
        folders = ("lib/python3*/site-packages", "Lib/site-packages")
        return sorted({path.name for folder in folders for path in self.venv.glob(folder + "/*.dist-info")})

    def stamp(self, extra: str) -> Path:
        return self.venv / ("installed-%s.json" % (extra or "studio"))


# What is wanted, and what is there


def read_project(root: Path) -> Dict[str, Any]:
    """The [project] table of pyproject.toml: dependencies, extras and console scripts."""
    import tomllib  # here, because Pythons too old for the studio do not have it

    with (root / "pyproject.toml").open("rb") as stream:
        table: Dict[str, Any] = tomllib.load(stream)["project"]
    return table


def wanted_packages(project: Dict[str, Any], extra: str) -> List[str]:
    """Requirements of the studio itself, or of one of its extras."""
    return list(project["optional-dependencies"][extra] if extra else project.get("dependencies", []))


def torch_version(project: Dict[str, Any]) -> Optional[str]:
    """The pinned torch version, or None if the project does not ask for torch."""
    found = [need[7:] for need in wanted_packages(project, "") if need.startswith("torch==")]
    return found[0] if found else None


def has_nvidia() -> bool:
    """True if this machine has an NVIDIA GPU with a driver."""
    if any(Path(sign).exists() for sign in DRIVER_SIGNS):
        return True
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if not program:
        return False
    try:
        listed = subprocess.run([program, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def torch_flavour() -> str:
    """Which build of torch fits: "cpu", "cuda", or "default" where there is only one (macOS)."""
    forced = os.environ.get("CRUCIBLE_TORCH", "")
    if forced in ("cpu", "cuda"):
        return forced
    if sys.platform == "darwin":
        return "default"
    return "cuda" if has_nvidia() else "cpu"


def expected_stamp(place: Place, project: Dict[str, Any], extra: str) -> Dict[str, str]:
    """What a good stamp says: the requirements, this folder and this interpreter."""
    parts = [wanted_packages(project, ""), project.get("scripts", {}), extra and wanted_packages(project, extra)]
    requirements = hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()
    interpreter = place.python.resolve(strict=True)
    return {"requirements": requirements, "root": str(place.root), "interpreter": str(interpreter)}


def is_installed(place: Place, project: Dict[str, Any], extra: str, flavour: str) -> bool:
    """True if the stamp says the installation was completed and its packages are still there."""
    try:
        stamp = json.loads(place.stamp(extra).read_text(encoding="utf-8"))
        same = all(stamp[key] == value for key, value in expected_stamp(place, project, extra).items())
        return same and stamp["flavour"] == flavour and set(stamp["packages"]) <= set(place.packages())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_stamp(place: Place, project: Dict[str, Any], extra: str, flavour: str) -> None:
    """Written last and in one move, so that only a completed installation has one."""
    stamp = dict(expected_stamp(place, project, extra), flavour=flavour, packages=place.packages())
    draft = place.stamp(extra).with_suffix(".new")
    draft.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    draft.replace(place.stamp(extra))


# What can be refused before anything is done


def older_python_advice(words: List[str]) -> str:
    """What to type when this Python is too old: a newer one on this machine, else where to get one."""
    for name in ("python3.12", "python3.13", "python3.11", "python3.14"):
        program = shutil.which(name)
        # Version managers leave stubs that do not start, so try it.
        if program and subprocess.call([program, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return "You have %s; run   %s" % (name, " ".join([name] + words))
    return "Install Python 3.12 (python.org, or your system's package manager) and run the same command with it."


def check_system() -> None:
    """Runs are stopped with signals and their files are locked as POSIX systems do it."""
    if fcntl is None:
        raise Problem("Crucible runs on Linux and macOS.", "On Windows, open WSL and run the same command there.")


def check_python() -> None:
    """Refuse Pythons that are too old or come without what makes an environment."""
    if sys.version_info < OLDEST:
        found = "%d.%d.%d" % sys.version_info[:3]
        raise Problem("Crucible needs Python 3.11 or newer; this is Python %s." % found, older_python_advice(sys.argv))
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise no_venv_module(module)


def no_venv_module(module: str) -> Problem:
    """Debian and Ubuntu ship Python without the part that makes environments."""
    return Problem(
        "This Python cannot make environments: its module %s is missing." % module,
        "On Debian or Ubuntu run   sudo apt install python%s-venv   and then the same command again." % THIS_PYTHON,
    )


def check_disk(place: Place, flavour: str) -> None:
    """Refuse to start an installation that cannot fit."""
    there = any(name.startswith("torch-") for name in place.packages())
    needed = 1.0 if there else {"cuda": 10.0}.get(flavour, 3.0)
    free = shutil.disk_usage(str(place.root)).free / 1e9
    if free < needed:
        raise Problem(
            "Too little disk space: %.1f GB are free in %s and about %.0f GB are needed." % (free, place.root, needed),
            "Free some space or move the project folder to a larger disk, then run the same command again.",
        )


# Running programs


def clean_environment() -> Dict[str, str]:
    """The environment for everything inside .venv: nothing of the user's own Python leaks in."""
    unwanted = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    env.update(PYTHONNOUSERSITE="1", PIP_USER="0", PYTHONUTF8="1")
    return env


def run_logged(place: Place, argv: List[str]) -> Tuple[int, str]:
    """Run a program, append its output to the log, and return its exit code and output."""
    with place.log.open("ab") as log:
        log.write(("\n$ " + " ".join(argv) + "\n").encode("utf-8", "replace"))
        log.flush()
        start = log.tell()
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}  # type: Dict[str, Any]
        code = subprocess.call(argv, env=clean_environment(), **streams)
    with place.log.open("rb") as log:
        log.seek(start)
        return code, log.read().decode("utf-8", "replace")


def pip(place: Place, *arguments: str) -> Tuple[int, str]:
    """Run the environment's own pip."""
    fixed = ["-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    return run_logged(place, [str(place.python)] + fixed + list(arguments))


def explain(output: str, subject: str, log: Path) -> Problem:
    """Turn pip's output into one sentence and a remedy."""
    for pattern, cause, remedy in CAUSES:
        if re.search(pattern, output):
            sentence = "%s: %s could not be installed (details: %s)." % (cause, subject, log)
            return Problem(sentence, remedy + ", then run the same command again; it continues where it stopped.")
    last = (output.strip().splitlines() or ["no output"])[-1][:300]
    return Problem("%s could not be installed: %s" % (subject, last), "The whole story is in %s." % log, damaged=True)


# The steps of an installation


def environment_works(place: Place) -> bool:
    """True if .venv has a Python of our version with a pip that starts."""
    probe = "import sys, pip; sys.exit(sys.version_info[:2] != (%d, %d))" % sys.version_info[:2]
    try:
        return run_logged(place, [str(place.python), "-c", probe])[0] == 0
    except OSError:
        return False


def make_environment(place: Place) -> None:
    """Make .venv, or keep the one that works."""
    if environment_works(place):
        return
    shutil.rmtree(str(place.venv), ignore_errors=True)
    place.venv.mkdir(exist_ok=True)
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    code, output = run_logged(place, [interpreter, "-m", "venv", str(place.venv)])
    if code != 0:
        raise no_venv_module("ensurepip") if "ensurepip" in output else explain(output, "The environment", place.log)


def install(place: Place, subject: str, *arguments: str) -> None:
    """Install with pip, or say why it did not work."""
    code, output = pip(place, *arguments)
    if code != 0:
        raise explain(output, subject, place.log)


def install_torch(place: Place, version: str, flavour: str) -> None:
    """Install the build of torch that fits this machine; a machine without a GPU never downloads CUDA."""
    index = os.environ.get("CRUCIBLE_TORCH_INDEX", TORCH_CPU_INDEX if flavour == "cpu" else "")
    wanted = "torch==%s+cpu" % version if flavour == "cpu" else "torch==%s" % version
    if flavour == "cpu" and pip(place, wanted)[0] == 0:
        return  # the user's own mirror or wheel folder has it
    try:
        install(place, "PyTorch " + version, wanted, *(["--extra-index-url", index] if index else []))
    except Problem as problem:
        problem.remedy += " A mirror of PyTorch's wheels can be named in CRUCIBLE_TORCH_INDEX."
        raise


def check_installation(place: Place, project: Dict[str, Any]) -> None:
    """Import what was installed: the proof that nothing is half there."""
    wanted = [need.split("==")[0] for need in wanted_packages(project, "")]
    modules = [name for name in ("torch", "transformers", "gradio") if name in wanted] + ["studio"]
    code, output = run_logged(place, [str(place.python), "-P", "-c", "import " + ", ".join(modules)])
    if code != 0:
        raise explain(output, "The studio", place.log)


def installation_steps(place: Place, project: Dict[str, Any], extra: str, flavour: str) -> List[Step]:
    """What has to be done, in order, with the words for it."""
    version = torch_version(project)
    others = [need for need in wanted_packages(project, "") if not need.startswith("torch==")]
    steps = [("Making the environment", lambda: make_environment(place))]
    if version:
        build = {"cpu": " for CPU", "cuda": " with CUDA"}.get(flavour, "")
        steps.append(("Installing PyTorch %s%s" % (version, build), lambda: install_torch(place, version, flavour)))
    steps.append(("Installing the libraries", lambda: install(place, "The libraries", *others)))
    if extra:
        tools = wanted_packages(project, extra)
        steps.append(("Installing the %s tools" % extra, lambda: install(place, "The %s tools" % extra, *tools)))
    steps.append(("Installing the studio", lambda: install(place, "The studio", "--no-deps", "-e", str(place.root))))
    steps.append(("Checking the installation", lambda: check_installation(place, project)))
    return steps


def run_steps(steps: List[Step]) -> None:
    for number, (title, act) in enumerate(steps, 1):
        with progress("[%d/%d] %s" % (number, len(steps), title)):
            act()


@contextlib.contextmanager
def progress(line: str) -> Iterator[None]:
    """Show a line with the seconds it takes; on a terminal they tick."""
    start = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            sys.stdout.write("\r%s … %d s" % (line, time.monotonic() - start))
            sys.stdout.flush()

    sys.stdout.write("%s … " % line)
    sys.stdout.flush()
    ticker = threading.Thread(target=tick if sys.stdout.isatty() else done.wait, daemon=True)
    ticker.start()
    outcome = "failed after "
    try:
        yield
        outcome = ""
    finally:
        done.set()
        ticker.join()
        again = "\r%s … " % line if sys.stdout.isatty() else ""
        print("%s%s%d s" % (again, outcome, time.monotonic() - start), flush=True)


@contextlib.contextmanager
def install_lock(root: Path) -> Iterator[None]:
    """One installation at a time. The system drops the lock when its holder dies, however it dies."""
    try:
        stream = (root / ".install.lock").open("a")
    except OSError as error:
        raise Problem(
            "The project folder %s cannot be written to (%s)." % (root, error.strerror),
            "Copy the project to a folder of your own and start it there.",
        ) from None
    with stream:
        if not try_lock(stream.fileno()):
            print("Another start is installing; waiting for it …", flush=True)
            while not try_lock(stream.fileno()):
                time.sleep(1)
        yield


def try_lock(descriptor: int) -> bool:
    """Take the lock without waiting; True if it is ours (or the file system knows no locks)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def ensure_installed(place: Place, extra: str = "") -> None:
    """Do nothing if the stamp is good; otherwise install, repairing whatever an earlier attempt left."""
    project = read_project(place.root)
    # A CUDA build runs on a machine without a GPU too: never swap it back and forth on a shared folder.
    flavour = "cuda" if is_installed(place, project, "", "cuda") else torch_flavour()
    if is_installed(place, project, extra, flavour):
        return
    check_python()
    with install_lock(place.root):
        if is_installed(place, project, extra, flavour):
            return
        check_disk(place, flavour)
        print("Preparing %s (once; later starts skip this)" % place.venv, flush=True)
        steps = installation_steps(place, project, extra, flavour)
        was_there = place.venv.exists()
        try:
            run_steps(steps)
        except Problem as problem:
            if not (was_there and problem.damaged):
                raise
            print("The environment is damaged; making a new one.", flush=True)
            shutil.rmtree(str(place.venv), ignore_errors=True)
            run_steps(steps)
        for done in {extra, ""}:
            write_stamp(place, project, done, flavour)


# The way in


def hand_over(place: Place, arguments: List[str]) -> NoReturn:
    """Become the environment's Python."""
    argv = [str(place.python), "-P"] + arguments
    os.execve(argv[0], argv, clean_environment())


def start(arguments: List[str]) -> int:
    """Install if needed, then do what was asked."""
    place = Place(ROOT)
    verb = arguments[0] if arguments and not arguments[0].startswith("-") else "ui"
    rest = arguments[1:] if arguments[:1] == [verb] else arguments
    ensure_installed(place, "test" if verb == "test" else "")
    if verb == "install":
        print("Ready. Start the studio with   python launch.py")
        return 0
    program = [str(ROOT / "tests" / "check.py")] if verb == "test" else ["-m", "studio.cli", verb]
    return hand_over(place, program + rest)


def main() -> int:
    """No traceback for anything a person can mend, and an exit code that is true."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print((__doc__ or "").split("Standard library")[0].strip())
        return 0
    try:
        check_system()
        if sys.version_info < OLDEST:
            check_python()
        return start(sys.argv[1:])
    except Problem as problem:
        print("\n%s\n%s" % (problem.sentence, problem.remedy), file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "Check that the folder can be written to and the disk is not full, then run the same command again."
        print("\nThe system refused: %s\n%s" % (error, remedy), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again; it continues where it stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
