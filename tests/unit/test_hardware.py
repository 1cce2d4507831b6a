"""What the machine is said to have, from real system files laid out in a folder."""

import json
import os
import stat
import sys
from pathlib import Path

import psutil
import pytest

from studio import hardware
from studio.cli import doctor
from studio.hardware import Gpu, Hardware

GIB = 1 << 30
HEALTHY = Hardware(4, 0.5, 16 * GIB, 8 * GIB, 50 * GIB, (), "/usr/bin/g++")
H200 = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, "570.1")


def system_file(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_detect_describes_this_machine(weird_path):
    found = hardware.detect(weird_path)
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_free_bytes <= found.memory_bytes <= psutil.virtual_memory().total
    assert found.disk_free_bytes > 0
    assert json.loads(json.dumps(found.as_dict()))["cores"] == found.cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 3),
        ({"cpu.max": "9900000 100000"}, 3),
        ({"cpu.max": "rubbish"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({}, 3),
    ],
)
def test_a_containers_quota_limits_the_cores(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2}, raising=False)
    for name, text in files.items():
        system_file(tmp_path, name, text)
    assert hardware.cpu_cores(tmp_path) == cores


def test_a_containers_limit_is_the_memory(tmp_path):
    system_file(tmp_path, "memory.max", str(1 << 20))
    system_file(tmp_path, "memory.current", str(1 << 19))
    assert hardware.memory_bytes(tmp_path) == (1 << 20, 1 << 19)


@pytest.mark.parametrize("limit", ["max", str(1 << 63)])
def test_no_limit_is_the_machines_memory(tmp_path, limit):
    system_file(tmp_path, "memory.max", limit)
    assert hardware.memory_bytes(tmp_path)[0] == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("cores", "load", "threads"),
    [(8, 0.0, 8), (8, 0.4, 8), (8, 0.6, 7), (8, 3.2, 5), (8, 8.0, 1), (2, 5.0, 1), (1, 0.0, 1), (2, 1.0, 1)],
)
def test_threads_are_the_idle_cores(monkeypatch, cores, load, threads):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64)
    assert hardware.recommended_threads(cores, load) == threads


def test_threads_never_outnumber_the_physical_cores(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    assert hardware.recommended_threads(16, 0.0) == 8


def test_gpus_are_read_from_the_drivers_listing():
    listing = "0, NVIDIA H200, 143771, 143000, 570.1\n1, NVIDIA T4, [N/A], [N/A], 570.1\n\nNo devices were found\n"
    first, second = hardware.parse_gpus(listing)
    assert first == Gpu(0, "NVIDIA H200", 143771 << 20, 143000 << 20, "570.1")
    assert (second.name, second.memory_bytes) == ("NVIDIA T4", 0)
    (newer, odd) = hardware.parse_gpus("0, NVIDIA L4, 9, 9, 570.1, 8.9\n1, NVIDIA T4, 9, 9, 570.1, [N/A]\n")
    assert (newer.capability, odd.capability) == ((8, 9), None)


def test_an_old_driver_that_knows_no_capability_is_asked_again(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    answer = (
        "import sys\nif 'compute_cap' in ' '.join(sys.argv): sys.exit('not a valid field')\nprint('0, T4, 9, 9, 4')\n"
    )
    program.write_text(f"#!{sys.executable}\n{answer}", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [(gpu.name, gpu.capability) for gpu in hardware.find_gpus()] == [("T4", None)]


def test_the_build_of_torch_is_read_from_its_files(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('was loaded')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for line, found in (("cuda: Optional[str] = '12.8'", True), ("cuda: Optional[str] = None", False), ("", False)):
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = '1'\n")
        assert hardware.torch_has_cuda() is found


@pytest.mark.parametrize(("code", "count"), [(0, 1), (9, 0)])
def test_a_driver_that_fails_means_no_gpu(tmp_path, monkeypatch, code, count):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nprint('0, T4, 15000, 14000, 570')\nraise SystemExit({code})\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(hardware.find_gpus()) == count


def test_disk_space_is_told_for_a_folder_that_is_not_there_yet(tmp_path):
    assert hardware.disk_free_bytes(tmp_path / "a" / "b") > 0
    assert hardware.disk_free_bytes(Path("\0")) == 0


def test_chromium_is_the_named_one_if_it_exists(tmp_path, monkeypatch):
    named = tmp_path / "my browser"
    named.touch()
    monkeypatch.setenv("CHROMIUM", str(named))
    assert hardware.find_chromium() == str(named)
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "gone"))
    assert hardware.find_chromium() != str(tmp_path / "gone")


# doctor


def verdicts(machine: Hardware, workspace: Path) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(machine, workspace)}


def test_a_healthy_machine_passes(weird_path):
    checks = verdicts(HEALTHY, weird_path / "not made yet")
    assert [check for check in checks.values() if check.needed and not check.ok] == []
    assert not (weird_path / "not made yet").exists()


@pytest.mark.parametrize(
    ("machine", "name", "needed"),
    [
        (Hardware(4, 0, GIB, GIB, 50 * GIB, (), "g++"), "Memory", True),
        (Hardware(4, 0, 16 * GIB, 8 * GIB, 0, (), "g++"), "Disk", True),
        (Hardware(4, 0, 16 * GIB, 8 * GIB, 50 * GIB, (), None), "Compiler", False),
    ],
)
def test_what_is_lacking_is_named_with_a_remedy(weird_path, machine, name, needed):
    check = verdicts(machine, weird_path)[name]
    assert (check.ok, check.needed) == (False, needed)
    assert check.remedy


def test_a_workspace_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert not doctor.check_workspace(tmp_path / "file").ok
    assert not doctor.check_workspace(tmp_path / "file" / "below").ok


def test_packages_are_compared_with_the_pins(tmp_path):
    project = tmp_path / "pyproject.toml"
    lines = ['"pytest==1.0"', '"psutil"', '"no-such-package==1"', "\"not-here==1; sys_platform == 'nowhere'\""]
    project.write_text(f"[project]\ndependencies = [{','.join(lines)}]\n", encoding="utf-8")
    check = doctor.check_packages(doctor.pinned(project))
    assert not check.ok
    assert "no-such-package is missing" in check.detail
    assert "wanted ==1.0" in check.detail
    assert "not-here" not in check.detail
    assert "psutil" not in check.detail


def test_a_project_file_that_is_gone_is_said(tmp_path):
    assert "cannot be read" in doctor.check_packages(doctor.pinned(tmp_path / "gone.toml")).detail


@pytest.mark.parametrize(("version", "gpus", "ok"), [("2.13.0+cpu", (H200,), False), ("2.13.0+cpu", (), True)])
def test_a_gpu_under_a_cpu_build_is_noticed(monkeypatch, version, gpus, ok):
    monkeypatch.setattr(doctor, "installed_version", lambda _name: version)
    check = doctor.check_torch(Hardware(4, 0, GIB, GIB, GIB, gpus, None))
    assert check.ok is ok
    assert not (check.needed and not ok)


def test_an_incomplete_built_in_model_is_named(tmp_path):
    check = doctor.check_model("crucible/ember", tmp_path)
    assert not check.ok
    assert check.detail.startswith("crucible/ember: ")
