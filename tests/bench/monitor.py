"""What watching costs: the browser's main thread with three long live curves, the studio's process with 30 watchers.

    python tests/bench/monitor.py [--points 50000] [--seconds 20] [--watchers 30]

The requests of the watchers are those a real page was seen to make. No test: the figures are for side-by-side reading.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
import psutil  # noqa: E402
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright  # noqa: E402

from studio.config import RunConfig  # noqa: E402
from studio.events import (  # noqa: E402
    CountsEvent,
    EvalEvent,
    Event,
    Launch,
    LogEvent,
    PhaseEvent,
    RunState,
    SampleEvent,
    SavedEvent,
    StartedEvent,
    Status,
    VerdictEvent,
)
from studio.hardware import find_chromium  # noqa: E402
from studio.rundir import RunDir  # noqa: E402
from studio.schema import build  # noqa: E402
from studio.workspace import Workspace  # noqa: E402
from tests.conftest import BROWSER_FLAGS  # noqa: E402
from tests.fake_engine import Studio  # noqa: E402

RATE = 4.0  # points per second and run
TOTAL = 100_000
NEWEST = "Studio.feed.state.points.step[Studio.feed.state.points.step.length - 1]"
PROMPTS = ["Who are you?", "你是谁？"]


def step_events(step: int, rng: random.Random, total: int = TOTAL) -> Iterator[Event]:
    """What an engine writes after one step, on a machine with a GPU."""
    done = step / total
    yield LogEvent(
        step=step,
        epoch=3 * done,
        loss=2.6 * math.exp(-4 * done) + 0.35 + rng.gauss(0, 0.06),
        learning_rate=2e-4 * min(1, step / 500) * (1 + math.cos(math.pi * done)) / 2,
        grad_norm=0.8 + rng.random() * 0.7,
        tokens_per_second=18_400 + rng.gauss(0, 300),
        step_seconds=0.44 + rng.gauss(0, 0.01),
        memory_bytes=23_400_000_000 + (step // 400 % 5) * 90_000_000,
        eta_seconds=(total - step) / RATE,
        gpu_utilization=min(1, 0.93 + rng.gauss(0, 0.03)),
        gpu_power_watts=640 + rng.gauss(0, 12),
        mfu=0.41 + rng.gauss(0, 0.01),
        padding=max(0, 0.07 + rng.gauss(0, 0.02)),
    )
    if step % 500 == 0:
        yield EvalEvent(step=step, eval_loss=2.2 * math.exp(-3.4 * done) + 0.52)
    if step % 1000 == 0:
        yield VerdictEvent(
            step=step, learned=min(1, 2 * done), leaked=0.02, retained=1 - 0.1 * done, perplexity=9 - 4 * done
        )
    if step % 2500 == 0:
        for index, prompt in enumerate(PROMPTS):
            yield SampleEvent(step=step, index=index, prompt=prompt, answer=f"I am Nova, step {step}.", reason="freq")
    if step % 5000 == 0:
        yield SavedEvent(step=step, path=f"checkpoints/checkpoint-{step}", what="checkpoint")


class Live:
    """A run that this process keeps alive: ``points`` of its curve are there, more come with ``write``."""

    def __init__(self, workspace: Workspace, name: str, points: int) -> None:
        config = {"name": name, "model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "rows"}}
        self.run: RunDir = workspace.create_run(build(RunConfig, config | {"samples": {"evaluation_inputs": PROMPTS}}))
        self.rng = random.Random(name)
        self.step = points
        counts = CountsEvent(
            rows_read=52_002,
            conversations=51_974,
            tokens=9_120_400,
            trained_tokens=5_312_000,
            packs=9_004,
            updates=TOTAL,
        )
        phases = (PhaseEvent(name="load"), PhaseEvent(name="tokenise"), counts, PhaseEvent(name="train"))
        events = [StartedEvent(max_steps=TOTAL), *phases]
        for step in range(1, points + 1):
            events += step_events(step, self.rng)
        lines = "".join(f"{event.model_dump_json()}\n" for event in events)
        self.run.events_file.write_text(lines, encoding="utf-8")
        me = psutil.Process()
        self.run.write_launch(
            Launch(argv=sys.argv, pid=me.pid, create_time=me.create_time(), host=socket.gethostname())
        )
        self.write()

    def write(self) -> None:
        """One more step."""
        self.step += 1
        for event in step_events(self.step, self.rng):
            self.run.append_event(event)
        status = Status(state=RunState.RUNNING, phase="train", step=self.step, max_steps=TOTAL)
        self.run.write_status(status)
        with self.run.log_file.open("a", encoding="utf-8") as log:
            log.write(f"step {self.step}/{TOTAL}  loss 1.2345  18,400 tokens/s\n")


@contextmanager
def written(runs: list[Live]) -> Iterator[None]:
    """The runs go on while the block lasts."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(1 / RATE):
            for live in runs:
                live.write()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ---- the browser -----------------------------------------------------------------------------------------------------


def task_seconds(session: CDPSession) -> float:
    """Seconds of its processor time that the main thread was busy."""
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


def busy(page: Page, live: Live, seconds: int) -> str:
    """How much of the main thread was busy, the longest task, and how far behind the run the page was."""
    session = page.context.new_cdp_session(page)
    # The thread's own clock: what other programs take from it on a loaded machine is not counted.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(
        "() => { window.longest = 0; new PerformanceObserver((list) => { for (const one of list.getEntries())"
        " window.longest = Math.max(window.longest, one.duration); }).observe({ type: 'longtask' }); }"
    )
    version = page.evaluate("Studio.feed.state.version")
    before, begun = task_seconds(session), time.monotonic()
    behind = []
    for _ in range(seconds):
        page.wait_for_timeout(1000)
        behind.append((live.step - page.evaluate(NEWEST)) / RATE)
    share = (task_seconds(session) - before) / (time.monotonic() - begun)
    updates = page.evaluate("Studio.feed.state.version") - version
    return (
        f"main thread {share:6.1%} busy, longest task {page.evaluate('window.longest'):.0f} ms, {updates} updates in "
        f"{seconds} s, behind by {median(behind):.1f} s (at most {max(behind):.1f} s)"
    )


def browser_part(browser: Browser, url: str, runs: list[Live], seconds: int) -> None:
    """The main thread with all runs drawn, one metric large and then all of them."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{url}/?run={runs[0].run.id}#monitor")
    page.wait_for_selector("#w-chart canvas", timeout=120_000)
    ids = [live.run.id for live in runs]
    page.evaluate("(ids) => dispatchEvent(new CustomEvent('studio:overlay', { detail: ids }))", ids)
    drawn = f"Studio.feed.shown.length === {len(runs)}"
    drawn += f" && Studio.feed.shown.every((run) => run.points.step.length >= {runs[0].step})"
    page.wait_for_function(drawn, timeout=120_000)
    for name, button in (("one metric", "#curve-loss"), ("all metrics", "#curve-all")):
        page.locator(button).click()
        page.wait_for_timeout(5000)
        said = busy(page, runs[0], seconds)
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        print(f"browser, {len(runs)} runs x {runs[0].step:,} points, {name}: {said}, heap {heap:.0f} MB", flush=True)
    page.close()


def asked_by_a_page(browser: Browser, url: str, run: RunDir, seconds: int) -> dict[str, float]:
    """Requests per second of a page that watches one run, by path and query without offsets."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{url}/?run={run.id}#monitor")
    page.wait_for_selector("#w-chart canvas", timeout=120_000)
    page.wait_for_timeout(5000)
    seen: Counter[str] = Counter()
    page.on("request", lambda request: seen.update([without_offset(request.url)]))
    page.wait_for_timeout(1000 * seconds)
    page.close()
    return {path: count / seconds for path, count in seen.items()}


def without_offset(url: str) -> str:
    """Path and query of a request, its `after` left open."""
    parts = urlsplit(url)
    query = "&".join(f"{k}={v[0]}" for k, v in parse_qs(parts.query).items() if k != "after")
    return f"{parts.path}?{query}" + ("&after=" if "after=" in parts.query else "")


# ---- the watchers ----------------------------------------------------------------------------------------------------


async def newest(client: httpx.AsyncClient, path: str) -> str:
    """What a page that has seen everything names; empty for what has no past."""
    found: dict[str, Any] = {"more": path.endswith("after=")}
    after = ""
    while found["more"]:
        found = {"more": False} | (await client.get(f"{path}{after or 0}")).json()
        after = next_after(found)
    return after


def next_after(answer: dict[str, Any]) -> str:
    return str(answer.get("offset", answer.get("version", "")))


async def watch(client: httpx.AsyncClient, path: str, after: str, rate: float, until: float) -> list[float]:
    """Ask for one thing at its rate, from where the page was; the seconds each answer took."""
    took = []
    await asyncio.sleep(random.random() / rate)
    due = time.monotonic()
    while due < until:
        begun = time.monotonic()
        answer = await client.get(path + after)
        took.append(time.monotonic() - begun)
        after = next_after(answer.json()) if after else ""
        due += 1 / rate
        await asyncio.sleep(max(0, due - time.monotonic()))
    return took


async def watching(studio: Studio, asked: dict[str, float], watchers: int, seconds: float) -> tuple[float, list[float]]:
    """The studio's share of a core with so many pages, and the seconds each answer took."""
    # Connections are given up before the server does, as a browser would open a new one then.
    limits = httpx.Limits(keepalive_expiry=2)
    clients = [
        httpx.AsyncClient(base_url=studio.url, trust_env=False, timeout=60, limits=limits) for _ in range(watchers)
    ]
    past = {path: await newest(clients[0], path) for path in asked}
    process = psutil.Process(studio.process.pid)
    begun, before = time.monotonic(), cpu(process)
    pages = [(client, path, past[path], rate) for client in clients for path, rate in asked.items()]
    took = await asyncio.gather(*(watch(*page, begun + seconds) for page in pages))
    share = (cpu(process) - before) / (time.monotonic() - begun)
    for client in clients:
        await client.aclose()
    return share, sorted(second for list_ in took for second in list_)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def server_part(studio: Studio, asked: dict[str, float], watchers: int, seconds: int) -> None:
    """The studio's share of a core without and with watchers."""
    process = psutil.Process(studio.process.pid)
    begun, before = time.monotonic(), cpu(process)
    time.sleep(seconds / 2)
    idle = (cpu(process) - before) / (time.monotonic() - begun)
    share, took = asyncio.run(watching(studio, asked, watchers, seconds))
    print(
        f"server, {watchers} watchers, {len(took) / seconds:.0f} answers/s  {share:.1%} of a core ({idle:.1%} idle), "
        f"answers p50 {1000 * median(took):.0f} ms, p95 {1000 * took[int(0.95 * len(took))]:.0f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--watchers", type=int, default=30)
    options = parser.parse_args()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        runs = [Live(workspace, f"run {number}", options.points) for number in range(3)]
        studio = Studio(workspace.path)
        try:
            with written(runs):
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=find_chromium(), args=BROWSER_FLAGS)
                    browser_part(browser, studio.url, runs, options.seconds)
                    asked = asked_by_a_page(browser, studio.url, runs[0].run, options.seconds)
                    browser.close()
                print(json.dumps({path: round(rate, 2) for path, rate in asked.items()}, indent=1), flush=True)
                server_part(studio, asked, options.watchers, options.seconds)
        finally:
            studio.end()


if __name__ == "__main__":
    main()
