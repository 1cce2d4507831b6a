"""Out of memory in a real browser: the card says what would help, and one click changes the run and resumes it."""

import json
import socket
import time
from pathlib import Path

from playwright.sync_api import Browser, expect

from studio.changes import ACCUMULATION, BATCH
from studio.config import RunConfig
from studio.events import Launch, RunError, RunState, StartedEvent, Status
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace
from tests.fake_engine import Studio

GB = 1 << 30


def _failed(home: Path) -> RunDir:
    """A run of the built-in model that ran out of memory in step 21, with a checkpoint of step 20."""
    rows = home / "rows.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    layer = {"model.model_name_or_path": "crucible/ember", "data.dataset": str(rows), BATCH: 16, ACCUMULATION: 2}
    run = Workspace(home).create_run(build(RunConfig, merge(RunConfig, layer | {"method": "lora"})))
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host=socket.gethostname(), started_at=time.time() - 60))
    run.append_event(StartedEvent(max_steps=40))
    details = {"phase": "train", "activity": "step", "bound": "machine", "rows": 16, "length": 512, "step": 20}
    sizes = {"requested_bytes": 2 * GB, "available_bytes": GB, "used_bytes": 2 * GB, "limit_bytes": 4 * GB}
    error = RunError(kind="memory", message="m", details=details | sizes)
    run.write_status(Status(state=RunState.FAILED, phase="train", step=20, max_steps=40, exit_code=5, error=error))
    checkpoint = run.checkpoints / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 20}), encoding="utf-8")
    return run


def test_one_click_makes_it_fit_and_goes_on(browser: Browser, tmp_path: Path) -> None:
    run = _failed(tmp_path)
    studio = Studio(tmp_path, steps=40, pace=0, slow=0)
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
    context.set_default_timeout(180_000)
    try:
        page = context.new_page()
        page.goto(f"{studio.url}/?run={run.id}#monitor")
        card = page.locator("#memory-doctor")
        expect(card).to_contain_text("The memory ran out in training step 21. The batch had 16 rows of 512 tokens.")
        expect(card).to_contain_text("Saved up to step 20")
        expect(card).to_contain_text("goes on from step 20")
        page.locator("#remedy-0").click()
        expect(page.locator(".run-head .chip.finished")).to_be_visible()
        expect(card).to_have_count(0)
    finally:
        context.close()
        studio.end()
    config = run.config()
    assert isinstance(config, RunConfig)
    assert config.effective_batch_size == 32
    assert [one.step for one in run.changes()] == [20]
