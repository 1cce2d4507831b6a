"""doctor: is everything here that the main job needs? Looks, changes nothing, loads no torch."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

from studio import hardware
from studio.cli.follow import print_json
from studio.cli.workspace import add_workspace, workspace_path
from studio.events import ExitCode
from studio.presets import BUILT_IN, ROOT, ModelError, check_model_folder

LEAST_MEMORY = 2e9
LEAST_DISK = 1e9
REINSTALL = "run   python launch.py install   and it repairs the environment"


@dataclass(frozen=True)
class Check:
    """One line of the report. `needed` says whether the main job fails without it; `remedy` what to do if not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("doctor", help="check this machine and the installation")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_workspace(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 0 if the main job can run here, else 4."""
    workspace = workspace_path(arguments)
    machine = hardware.detect(workspace)
    checks = list(examine(machine, workspace))
    good = all(check.ok for check in checks if check.needed)
    if arguments.json:
        print_json({"ok": good, "checks": [asdict(check) for check in checks], "hardware": machine.as_dict()})
    else:
        show(checks)
    return ExitCode.FINISHED if good else ExitCode.BAD_INPUT


def examine(machine: hardware.Hardware, workspace: Path) -> Iterator[Check]:
    """Every check, in the order of the report."""
    yield Check(
        "Python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} ({sys.executable})",
        "install Python 3.11 or newer, remove .venv and run   python launch.py",
    )
    yield check_packages(pinned(ROOT / "pyproject.toml"))
    yield check_torch(machine)
    yield Check("Processor", True, f"{machine.cores} cores, {machine.load:.1f} busy")
    yield Check("GPU", True, ", ".join(f"{g.name} {size(g.memory_bytes)}" for g in machine.gpus) or "none: CPU is used")
    yield Check(
        "Memory",
        machine.memory_free_bytes >= LEAST_MEMORY,
        f"{size(machine.memory_free_bytes)} free of {size(machine.memory_bytes)}",
        f"close other programs until {size(LEAST_MEMORY)} are free",
    )
    yield Check(
        "Disk",
        machine.disk_free_bytes >= LEAST_DISK,
        f"{size(machine.disk_free_bytes)} free for {workspace}",
        f"free {size(LEAST_DISK)}, or choose another disk with --workspace",
    )
    yield check_workspace(workspace)
    yield from (check_model(name, folder) for name, folder in BUILT_IN.items())
    yield Check(
        "Compiler",
        machine.compiler is not None,
        machine.compiler or "no g++",
        "only some DeepSpeed options need it: install g++ to use them",
        needed=False,
    )
    browser = hardware.find_chromium()
    remedy = "only the tests need it:   python launch.py test   installs it"
    yield Check("Chromium", browser is not None, browser or "not found", remedy, needed=False)


def pinned(pyproject: Path) -> list[Requirement]:
    """The requirements of the studio that apply to this system; none if the file is gone."""
    try:
        declared = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return []
    wanted = [Requirement(text) for text in declared]
    return [need for need in wanted if need.marker is None or need.marker.evaluate()]


def check_packages(wanted: list[Requirement]) -> Check:
    """Installed versions against the pins."""
    wrong = [words for need in wanted if (words := _difference(need))]
    if not wanted:
        return Check("Packages", False, "pyproject.toml cannot be read", "put the project's pyproject.toml back")
    if wrong:
        return Check("Packages", False, "; ".join(wrong), REINSTALL)
    return Check("Packages", True, f"all {len(wanted)} as pinned")


def _difference(need: Requirement) -> str:
    """What is wrong with one package, or nothing. The build (as in 2.13.0+cpu) is free."""
    found = installed_version(need.name)
    if found is None:
        return f"{need.name} is missing"
    if not need.specifier.contains(Version(found).public, prereleases=True):
        return f"{need.name} is {found}, wanted {need.specifier}"
    return ""


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_torch(machine: hardware.Hardware) -> Check:
    """The build of torch against the machine: a GPU stays idle under a CPU build."""
    version = installed_version("torch")
    if version is None:
        return Check("PyTorch", False, "not installed", REINSTALL)
    if "+cpu" in version and machine.gpus:
        remedy = f"to use the {machine.gpus[0].name}: " + REINSTALL
        return Check("PyTorch", False, f"{version}, a build without CUDA", remedy, needed=False)
    return Check("PyTorch", True, version)


def check_workspace(path: Path) -> Check:
    """Can runs be written there? A folder that is not there yet is judged by its nearest parent."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Check("Workspace", ok, str(path), "choose a folder you can write to with --workspace")


def check_model(name: str, folder: Path) -> Check:
    """Is a built-in model complete?"""
    try:
        check_model_folder(folder)
    except ModelError as error:
        return Check("Model", False, f"{name}: {error.message}", "get the project's assets folder again")
    return Check("Model", True, name)


def size(amount: float) -> str:
    """Bytes as people say them."""
    return f"{amount / 1e9:.1f} GB"


def show(checks: list[Check]) -> None:
    """Print the report as a table, then what to do."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row("ok" if check.ok else "MISSING" if check.needed else "note", check.name, check.detail)
    console.print(table)
    for check in checks:
        if not check.ok:
            console.print(f"{check.name}: {check.remedy}")
