"""A run belongs to nobody: studios come and go by every signal, fork and speak odd locales; the curve stays whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from studio import runner
from studio.events import RunState
from studio.rundir import RunDir
from studio.workspace import Workspace
from tests.fake_engine import VARIABLE, Studio

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "fake_engine.py"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
TALKATIVE = {"steps": 1_000_000, "pace": 0.01, "slow": 0.0, "noise": 4000}
# A studio that starts a run itself, as its Start button does, and then serves.
STARTER = f"""
import sys
from pathlib import Path
from studio import runner
from studio.config import RunConfig
from studio.schema import build
from studio.workspace import Workspace
runner.ENGINE = (sys.executable, {str(FAKE)!r})
config = build(RunConfig, {{"model_path": "crucible/ember", "data_path": "identity", "name": "outlives"}})
run = runner.submit(Workspace(Path(sys.argv[1])), config)
"""
SERVE = """
from studio.ui.__main__ import main
sys.exit(main([f"--workspace={sys.argv[1]}", "--port=0"]))
"""
FORK = """
import os, signal, time
other = os.fork()
if other:
    os.kill(os.getpid(), signal.SIGKILL)
while os.getppid() != 1 and not run.events_file.exists():
    time.sleep(0.05)
seen = str(run.state())
end = runner.stop(run)
Path(sys.argv[1], "told").write_text(f"{seen} {end}")
"""


def until(reached: Callable[[], object]) -> None:
    """Wait for something that must come; only against waiting for ever."""
    for _ in range(6000):
        if reached():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def begin(program: str, workspace: Path) -> subprocess.Popen[str]:
    env = os.environ | {VARIABLE: json.dumps(TALKATIVE), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    argv = [sys.executable, "-c", program, str(workspace)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=env)


def asked(url: str, what: str, **query: Any) -> Any:
    with urllib.request.urlopen(f"{url}/api/{what}?{urllib.parse.urlencode(query)}") as answer:
        return json.loads(answer.read())


def curve(url: str, run: RunDir) -> list[int]:
    """Every step of the curve, as the page fetches it."""
    steps: list[int] = []
    after, more = 0, True
    while more:
        found = asked(url, "metrics", run=run.id, after=after)
        steps += [int(step) for step in found["points"]["step"]]
        after, more = found["offset"], found["more"]
    return steps


@dataclass
class Story:
    """What was seen of one run while five studios came and went."""

    run: RunDir
    codes: list[int] = field(default_factory=list)
    lived_on: list[bool] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    curves: list[tuple[int, list[int]]] = field(default_factory=list)


def steps_more(run: RunDir, number: int) -> Callable[[], bool]:
    status = run.read_status()
    goal = (status.step if status else 0) + number
    return lambda: (now := run.read_status()) is not None and now.step >= goal


def look(story: Story, studio: Studio) -> None:
    """What a studio that has just been started shows without a click."""
    status = story.run.read_status()
    story.shown += [line for line in asked(studio.url, "runs") if line["id"] == story.run.id]
    story.curves.append((status.step if status else 0, curve(studio.url, story.run)))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    workspace = Workspace(tmp_path_factory.mktemp("survival 丹炉"))
    first = begin(STARTER + SERVE, workspace.path)
    assert first.stdout is not None
    assert any("Ctrl+C" in line for line in first.stdout)
    told = Story(workspace.run("last"))
    try:
        for number in SIGNALS:
            until(steps_more(told.run, 3))
            if number == SIGNALS[0]:
                first.send_signal(number)
                told.codes.append(first.wait())
            else:
                studio = Studio(workspace.path, **TALKATIVE)
                look(told, studio)
                told.codes.append(studio.end(number))
            until(steps_more(told.run, 3))
            told.lived_on.append(told.run.state() is RunState.RUNNING)
        last = Studio(workspace.path, **TALKATIVE)
        assert runner.stop(told.run) is RunState.STOPPED
        look(told, last)
        last.end()
        yield told
    finally:
        first.kill()
        first.communicate()
        runner.stop(told.run)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_run_outlives_its_studio_and_the_next_one_shows_it_whole(story: Story, number: signal.Signals) -> None:
    place = SIGNALS.index(number)
    assert story.codes[place] == (0 if number in (signal.SIGINT, signal.SIGTERM) else -number)
    assert story.lived_on[place]
    shown = story.shown[place]  # by the studio after that signal
    assert shown["state"] == ("stopped" if number == SIGNALS[-1] else "running")
    reached, steps = story.curves[place]
    assert steps == list(range(1, len(steps) + 1)), "the whole curve, no gap, no point twice"
    assert len(steps) >= reached > 0


def test_output_nobody_reads_stops_nothing(story: Story) -> None:
    assert story.run.log_file.stat().st_size > 4 * 64 * 1024


def test_a_studio_that_forks(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "forked")
    process = begin(STARTER + FORK, workspace.path)
    try:
        assert process.wait() == -signal.SIGKILL
        until((workspace.path / "told").exists)
        until(lambda: (workspace.path / "told").read_text() != "")
        seen, end = (workspace.path / "told").read_text().split()
        assert seen in ("starting", "running")
        assert end == "stopped"
        run = workspace.run("last")
        assert run.state() is RunState.STOPPED
        with workspace.lock():
            pass
    finally:
        process.communicate()
        runner.stop(workspace.run("last"))


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, ASCII, ASCII | {"PYTHONIOENCODING": "ascii:strict"}], ids=["C", "ascii", "strict"]
)
def test_commands_in_a_locale_that_knows_no_letters(
    weird_path: Path, monkeypatch: pytest.MonkeyPatch, locale: dict[str, str]
) -> None:
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = ["-m", "studio.cli", "runs", "list", "--workspace", str(weird_path / "工作"), "--json"]
    done = subprocess.run([sys.executable, *argv], capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert (weird_path / "工作" / "runs").is_dir()


def test_a_studio_and_its_run_in_a_locale_that_knows_no_letters(
    weird_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (ASCII | {"PYTHONIOENCODING": "ascii:strict"}).items():
        monkeypatch.setenv(name, value)
    process = begin("from studio.locales import start_in_utf8; start_in_utf8()" + STARTER, weird_path)
    assert process.wait() == 0
    process.communicate()
    run = Workspace(weird_path).run("last")
    try:
        until(lambda: run.state() is RunState.RUNNING)
        studio = Studio(weird_path, **TALKATIVE)
        assert "Crucible 丹炉" in studio.greeting
        assert asked(studio.url, "health")["workspace"] == str(weird_path)
        assert [line["state"] for line in asked(studio.url, "runs")] == ["running"]
        assert studio.end() == 0
    finally:
        runner.stop(run)
