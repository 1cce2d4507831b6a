"""Every quality gate and every tier of tests, with one summary; `python launch.py test` prepares the tools first.

    python tests/check.py [pytest arguments]

A path among the arguments replaces the tiers. The exit code is 0 only if every gate and every tier is good.
"""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from studio.hardware import find_chromium

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
REPORTS = VENV / "test-reports"
TIERS = ("unit", "ui", "engine", "e2e", "gpu")
GATES = {
    "format": ["-m", "ruff", "format", "--check", "."],
    "lint": ["-m", "ruff", "check", "."],
    "types": ["-m", "mypy"],
    "imports": ["-c", "from importlinter.cli import lint_imports_command as run; run()"],
}
NO_TESTS_COLLECTED = 5
# Test files are shared out over processes, for two cores: the engine computes, the others wait half of their time.
PROCESSES = {"unit": 2, "ui": 3, "engine": 2, "e2e": 3}
# The files that take longest are begun first, so that no process is left alone with one at the end.
LONGEST = {
    "unit": ("runner", "cli_queue", "tools", "memory"),
    "ui": ("dispatcher", "survival", "tab_chat", "tab_train", "xray", "tab_export"),
    "engine": (
        "meter",
        "zero",
        "faults_killed",
        "faults_world",
        "serve",
        "checks",
        "hyper",
        "merge_streamed",
        "machines",
        "convert",
        "out_of_memory",
        "export",
        "train",
        "faults_disk",
        "ranks",
        "resume",
        "spread_resume",
        "monitor_numbers",
        "merge",
        "fsdp",
    ),
    "e2e": (
        "real_job",
        "real_names",
        "browser_monitor",
        "browser_tabs",
        "install",
        "browser_frame",
        "browser_data",
        "browser_home",
        "browser_xray",
        "browser_library",
        "browser_axe",
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one gate or tier came to."""

    name: str
    ok: bool
    words: str
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def line(self) -> str:
        """One line of the summary."""
        return f"{self.name:<8} {'ok' if self.ok else 'FAILED':<7} {self.words:<42} {self.seconds:6.0f} s"


def install_chromium() -> None:
    """From the system's packages where that needs no password, else playwright's download into .venv."""
    apt, sudo = shutil.which("apt-get"), shutil.which("sudo")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if apt and (is_root or sudo):
        prefix = [] if is_root else [str(sudo), "-n"]
        if subprocess.call([*prefix, apt, "update", "-qq"]) == 0:
            subprocess.call([*prefix, apt, "install", "-y", "-qq", "--no-install-recommends", "chromium"])
    if find_chromium() is None:
        env = os.environ | {"PLAYWRIGHT_BROWSERS_PATH": str(VENV / "browsers")}
        subprocess.call([sys.executable, "-m", "playwright", "install", "chromium"], env=env)


def test_environment() -> dict[str, str]:
    """One thread per process (several on two cores are many times slower), no network, and the browser's path."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if find_chromium() is None:
        print("Installing Chromium for the browser tests …", flush=True)
        install_chromium()
    if chromium := find_chromium():
        env["CHROMIUM"] = chromium
    else:
        print("No Chromium could be found or installed: the browser tests will be skipped.", flush=True)
    return env


def selections(extra: list[str]) -> dict[str, list[str]]:
    """The pytest runs, by name: what guards the whole tree, then tier by tier; or just the paths that were given."""
    if any(Path(word.split("::")[0]).exists() for word in extra if not word.startswith("-")):
        return {"chosen": []}
    found = {"guards": [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob("test_*.py"))]}
    for tier in TIERS:
        files = sorted((ROOT / "tests" / tier).rglob("test_*.py"))
        first = [ROOT / "tests" / tier / f"test_{name}.py" for name in LONGEST.get(tier, ())]
        files.sort(key=lambda path: first.index(path) if path in first else len(first))
        found[tier] = [str(path.relative_to(ROOT)) for path in files]
    return {name: paths for name, paths in found.items() if paths}


def count_tests(report: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a JUnit file; zeros if it was not written."""
    if not report.exists():
        return 0, 0, 0
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return max(total - failures - errors - skipped, 0), failures + errors, skipped


def run_gate(name: str, env: dict[str, str]) -> Outcome:
    """Run one of the static checks, and print in one piece what it said."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *GATES[name]], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    print(f"\n== {name}\n{done.stdout.decode('utf-8', 'replace')}", end="", flush=True)
    return Outcome(name, done.returncode == 0, "", time.monotonic() - start)


def run_tier(name: str, arguments: list[str], env: dict[str, str], may_be_empty: bool) -> Outcome:
    """Run pytest once. A tier in which nothing was selected is only good if a selection was asked for."""
    print(f"\n== {name}", flush=True)
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    start = time.monotonic()
    shared: tuple[str, ...] = ()
    if name in PROCESSES and (os.cpu_count() or 1) > 1:
        shared = ("-n", str(PROCESSES[name]), "--dist", "loadfile", "--no-loadscope-reorder")
    command = [sys.executable, "-m", "pytest", "--junitxml", str(report), *shared, *arguments]
    code = subprocess.call(command, cwd=ROOT, env=env)
    passed, failed, skipped = count_tests(report)
    words = f"{passed} passed, {failed} failed, {skipped} skipped"
    if code not in (0, 1, NO_TESTS_COLLECTED):
        words += f", pytest exit {code}"
    ok = code == 0 or (code == NO_TESTS_COLLECTED and may_be_empty)
    return Outcome(name, ok, words, time.monotonic() - start, passed, failed, skipped)


def main(extra: list[str]) -> int:
    """Run everything, print the summary, and tell the truth in the exit code."""
    env = test_environment()
    with ThreadPoolExecutor(1) as beside:  # the gates take one process, and so does the first tier, the guards
        gates = [beside.submit(run_gate, name, env) for name in GATES]
        tiers = selections(extra)
        first = next(iter(tiers))
        outcomes = [run_tier(first, [*tiers.pop(first), *extra], env, bool(extra))]
    outcomes = [gate.result() for gate in gates] + outcomes
    outcomes += [run_tier(name, [*paths, *extra], env, bool(extra)) for name, paths in tiers.items()]
    passed, failed, skipped = (sum(getattr(o, what) for o in outcomes) for what in ("passed", "failed", "skipped"))
    print("\nSummary\n" + "\n".join(outcome.line() for outcome in outcomes))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    good = all(outcome.ok for outcome in outcomes) and passed > 0
    if not good:
        print("Not good: " + ", ".join(outcome.name for outcome in outcomes if not outcome.ok), file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
