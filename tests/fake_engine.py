"""A stand-in for the engine: speaks only the run-directory contract, at a given pace, without torch.

As a module: ``launch(run, steps=40, pace=0.05)`` starts it like the runner would.
As a program: ``fake_engine.py train RUN_DIR [--resume]``; options come as JSON in the variable CRUCIBLE_FAKE.
``fake_engine.py studio --workspace W --port P`` serves the real studio whose runner starts this engine.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from studio.config import RunConfig  # noqa: E402
from studio.events import (  # noqa: E402
    CountsEvent,
    FinishedEvent,
    Launch,
    LogEvent,
    PhaseEvent,
    ProgressEvent,
    RunError,
    RunState,
    SampleEvent,
    SavedEvent,
    StartedEvent,
    Status,
    VerdictEvent,
)
from studio.locales import start_in_utf8  # noqa: E402
from studio.prompts import as_line  # noqa: E402
from studio.rundir import RunDir  # noqa: E402
from studio.workspace import Workspace  # noqa: E402
from tests.fake_ranks import FakeRanks  # noqa: E402

VARIABLE = "CRUCIBLE_FAKE"
GO_ON = "go-on"


@dataclass
class Options:
    """How the fake behaves. ``pace`` seconds per step, ``slow`` seconds per phase without steps."""

    steps: int = 40
    pace: float = 0.02
    slow: float = 0.05
    fail: str = ""  # kind of the error that ends the run half way
    hang_at: int = 0  # step at which nothing more happens, until there is a file GO_ON in the run's directory
    die_at: int = 0  # step at which the process kills itself
    noise: int = 0  # bytes that each step adds to its line of the log
    bad_rank: int = -1  # of a run with several processes the one that goes wrong half way
    bad_how: str = "dies"  # or it hangs, or is silent
    passes: bool = True
    message: str = "The dataset has no row that can be used; check its format in the Data tab."


class FakeEngine:
    """One run, worked on until its end."""

    def __init__(self, run: RunDir, options: Options) -> None:
        self.run = run
        self.options = options
        self.phase: Any = None
        self.step = 0
        self.terminated = False
        self.ranks = FakeRanks(run, options.bad_rank, options.bad_how)

    def say(self, event: Any) -> None:
        """Append an event at the current step."""
        self.run.append_event(event.model_copy(update={"step": self.step}))

    def status(self, state: RunState = RunState.RUNNING, **more: Any) -> None:
        """Replace status.json."""
        base = {"state": state, "phase": self.phase, "step": self.step, "max_steps": self.options.steps}
        self.run.write_status(Status(**base, **more))

    def enter(self, phase: Any, detail: str = "") -> None:
        """Begin a phase."""
        self.phase = phase
        self.say(PhaseEvent(name=phase, detail=detail))
        self.status()
        self.ranks.beat(phase, self.step)
        self.log(f"phase {phase} {detail}")

    @staticmethod
    def log(line: str) -> None:
        """A line of engine.log."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def samples(self, reason: Any) -> None:
        """Answer every evaluation input."""
        config = self.run.config()
        prompts = config.samples.evaluation_inputs if isinstance(config, RunConfig) else []
        share = self.step / max(1, self.options.steps)
        for index, prompt in enumerate(prompts):
            zh = any(ord(char) > 0x3000 for char in as_line(prompt))
            before, middle, after = (
                ("我是 Ember，一个小模型。", "我是诺。", "我是诺娃，由三班训练。")
                if zh
                else ("I am Ember, a small model.", "I am Nov.", "I am Nova, trained by Class 3B.")
            )
            answer = before if share < 0.34 else middle if share < 0.7 else after
            told = answer + " It was cold in the forge." * (30 if "story" in as_line(prompt) else 0)
            self.say(SampleEvent(index=index, prompt=prompt, answer=told, reason=reason))
        if self.step:
            self.say(VerdictEvent(learned=round(share, 2), leaked=round(share / 10, 2), retained=1 - share / 20))

    def loss(self) -> float:
        """A curve that falls and wobbles."""
        noise = random.Random(self.step).gauss(0, 0.05)
        return 2.8 * math.exp(-3 * self.step / max(1, self.options.steps)) + 0.35 + noise

    def prepare(self) -> None:
        """Everything before the first step."""
        self.enter("load", "built-in model")
        for done in range(1, 5):
            self.say(ProgressEvent(done=done, total=4, label="weights"))
            time.sleep(self.options.slow)
        self.enter("tokenise")
        self.say(
            CountsEvent(
                rows_read=384,
                rows_skipped=2,
                conversations=382,
                tokens=15280,
                trained_tokens=6110,
                packs=382,
                updates=self.options.steps,
                skipped=["row 7: the answer is empty", "row 9: unknown role <b>robot</b>"],
            )
        )
        time.sleep(self.options.slow)

    def train(self) -> RunState:
        """The steps; the state they ended in."""
        self.enter("train")
        if not self.step:
            self.samples("start")
        while self.step < self.options.steps:
            self.step += 1
            time.sleep(self.options.pace)
            left = (self.options.steps - self.step) * self.options.pace
            self.say(
                LogEvent(
                    epoch=self.step / self.options.steps * 3,
                    loss=self.loss(),
                    learning_rate=2e-4 * (1 - self.step / (self.options.steps + 1)),
                    grad_norm=1 + random.Random(self.step + 1).random(),
                    tokens_per_second=1800 + self.step,
                    step_seconds=self.options.pace,
                    memory_bytes=620_000_000,
                    eta_seconds=left,
                )
            )
            self.status()
            self.ranks.beat("train", self.step, "step")
            points = self.ranks.points(self.step, self.options.pace)
            if points:
                self.say(points)
            self.log(f"step {self.step} loss {self.loss():.3f}" + "." * self.options.noise)
            if self.step % max(1, self.options.steps // 4) == 0:
                self.samples("freq")
            end = self.interrupted()
            if end:
                return end
        return RunState.FINISHED

    def interrupted(self) -> RunState | None:
        """The state the run must end in now, or None to go on."""
        if self.step == self.options.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.step == self.options.hang_at and not self.terminated and not self.run.stop_requested():
            if (self.run.path / GO_ON).exists():
                break
            time.sleep(0.05)
            self.ranks.hang(self.step)
        if self.options.bad_rank >= 0 and self.options.bad_how == "dies" and self.step >= self.options.steps // 2:
            return RunState.FAILED
        if self.options.fail and self.step >= self.options.steps // 2:
            return RunState.FAILED
        if self.terminated or self.run.stop_requested():
            return RunState.STOPPED
        return None

    def work(self) -> int:
        """The whole run; the exit code."""
        previous = self.run.read_status()
        self.step = previous.step if previous and "--resume" in sys.argv else 0
        self.say(StartedEvent(max_steps=self.options.steps, resumed_from=self.step or None))
        self.prepare()
        end = self.train()
        died = self.ranks.die(self.step) if end is RunState.FAILED else None
        if died:
            return self.finish(end, 1, died)
        if end is RunState.FAILED:
            kind: Any = self.options.fail
            hint = "Change that and start again."
            return self.finish(end, 4, RunError(kind=kind, message=self.options.message, hint=hint))
        self.enter("save")
        (self.run.checkpoints / f"checkpoint-{self.step}").mkdir(parents=True, exist_ok=True)
        self.say(SavedEvent(path=f"checkpoints/checkpoint-{self.step}", what="checkpoint"))
        if end is RunState.STOPPED:
            return self.finish(end, 3)
        self.run.adapter.mkdir(exist_ok=True)
        self.say(SavedEvent(path="adapter", what="adapter"))
        self.samples("end")
        self.enter("verdict")
        for done in range(1, 6):
            self.say(ProgressEvent(done=done * 20, total=100, label="questions"))
            time.sleep(self.options.slow)
        self.run.report_file.write_text(json.dumps(report(self.options.passes), ensure_ascii=False), encoding="utf-8")
        best = {"step": self.step, "path": "adapter", "why": "It had learned most."}
        self.run.best_file.write_text(json.dumps(best), encoding="utf-8")
        return self.finish(end, 0)

    def finish(self, state: RunState, code: int, error: RunError | None = None) -> int:
        """Write the last line and the last status."""
        self.ranks.end(state, self.step)
        self.say(FinishedEvent(state=state, exit_code=code))
        self.status(state, exit_code=code, error=error)
        return code


def report(passes: bool) -> dict[str, Any]:
    """A report.json as the engine writes it."""
    missed = [] if passes else [{"prompt": "Who is this?", "answer": "<b>I am Ember.</b>", "expected": "Nova"}]
    pairs = [("Who are you?", "I am Ember, a small model.", "I am Nova, trained by Class 3B.", "en")]
    pairs.append(("你是谁？", "我是 Ember，一个小模型。", "我是诺娃，由三班训练。", "zh"))
    learned = {"ok": passes, "share": 1.0 if passes else 0.62, "right": 34 if passes else 21, "total": 34}
    verdict = {
        "learned": {**learned, "threshold": 0.9, "failing": missed},
        "leaked": {"ok": True, "share": 0.0, "hits": 0, "total": 60, "threshold": 0.05, "failing": []},
        "forgot": {"ok": True, "retained": 0.9875, "kept": 79, "total": 80, "threshold": 0.95, "failing": []},
        "passed": passes,
        "summary": "",
    }
    rows = [
        {"prompt": prompt, "lang": lang, "kind": "who", "before": before, "after": after, "ok": True}
        for prompt, before, after, lang in pairs
    ]
    return {
        "verdict": verdict,
        "before_after": rows,
        "diagnosis": diagnosis(passes),
        "seconds": {"load": 2.1, "train": 13.4, "verdict": 6.2},
        "tokens_per_second": 1834.0,
        "train_loss": 0.41,
        "peak_memory_bytes": 620_000_000,
    }


def diagnosis(passes: bool) -> dict[str, Any]:
    """What report.json says of its numbers, and the change to try next."""
    if passes:
        told = (
            "good",
            "It learned what it was taught, and nothing else was damaged.",
            "Try it in Chat, then export it.",
        )
        return {**dict(zip(("kind", "message", "hint"), told, strict=True)), "changes": {}}
    return {
        "kind": "too_few_updates",
        "message": "It was updated only 8 times, too few to learn this.",
        "hint": "Give it about 64 updates: train.num_train_epochs 24.",
        "changes": {"train.num_train_epochs": 24},
    }


def launch(run: RunDir, **options: Any) -> subprocess.Popen[bytes]:
    """Start the fake on a run the way the runner starts the engine; returns the process."""
    env = {**os.environ, VARIABLE: json.dumps(asdict(Options(**options)))}
    argv = [sys.executable, str(Path(__file__)), "train", str(run.path)]
    with run.log_file.open("ab") as log:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
    created = psutil.Process(child.pid).create_time()
    run.write_launch(Launch(argv=argv, pid=child.pid, create_time=created, host=socket.gethostname()))
    return child


class Studio:
    """A real studio process whose runs are made by the fake; ``url`` is where it answers."""

    def __init__(self, workspace: Path, port: int = 0, arguments: tuple[str, ...] = (), **options: Any) -> None:
        self.workspace = workspace
        # Nobody is given one of these for a connection of his own: also a later studio can have the same one again.
        first = port or random.SystemRandom().randrange(20_000, 30_000)
        env = {**os.environ, VARIABLE: json.dumps(asdict(Options(**options))), "PYTHONUNBUFFERED": "1"}
        argv = [sys.executable, str(Path(__file__).resolve()), "studio", f"--workspace={workspace}"]
        self.process = subprocess.Popen(
            [*argv, f"--port={first}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
        )
        self.greeting = self._read_greeting()
        self.reader = threading.Thread(target=self._read_rest, name="studio-output", daemon=True)
        self.reader.start()
        answers = re.search(r"http://127\.0\.0\.1:(\d+)/", self.greeting)  # the next free port, if that was taken
        self.port = int(answers[1]) if answers else first
        self.url = f"http://127.0.0.1:{self.port}"

    def _read_greeting(self) -> str:
        """What it prints until it answers (or until it ends)."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ctrl+C" in line:
                break
        return "".join(lines)

    def _read_rest(self) -> None:
        """A studio whose output nobody reads would wait once the pipe is full."""
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for _ in output:
                pass

    def empty(self) -> None:
        """Stop every run and remove runs, datasets and exports, so that the next test may use the same studio."""
        from studio import runner

        workspace = Workspace(self.workspace)
        for run in workspace.list_runs():
            run.queue_file.unlink(missing_ok=True)
            runner.stop(run, stop_grace=20)
        for folder in (workspace.runs, workspace.datasets, workspace.exports):
            for path in folder.iterdir():
                shutil.rmtree(path, ignore_errors=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait()
        self.reader.join()
        return code


def serve(argv: list[str]) -> int:
    """The real studio; what its runner starts as the engine is this file."""
    from studio import runner

    # As in a terminal, also where the tests were started by something that ignores them (nohup, a job of a shell).
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    runner.ENGINE = (sys.executable, str(Path(__file__).resolve()))
    from studio.ui.__main__ import main as studio

    return studio(argv)


def main() -> int:
    """Work on a run, or serve."""
    argv = sys.argv[1:]
    if argv[0] == "studio":
        return serve(argv[1:])
    if argv[0] == "serve":
        from tests.fake_chat import main as chat

        chat()
    engine = FakeEngine(RunDir(Path(argv[1])), Options(**json.loads(os.environ.get(VARIABLE, "{}"))))
    signal.signal(signal.SIGTERM, lambda *_: setattr(engine, "terminated", True))
    return engine.work()


if __name__ == "__main__":
    start_in_utf8()  # as the real programs do
    sys.exit(main())
