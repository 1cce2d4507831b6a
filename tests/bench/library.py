"""How quick the library is with hundreds of runs: `python tests/bench/library.py [RUNS]` prints what it measured.

The first look reads every run, in parts of limited length; later looks read what changed. CPU seconds, so that a busy
machine does not change them much.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from studio import labels, library  # noqa: E402
from studio.config import RunConfig  # noqa: E402
from studio.events import Launch, LogEvent, RunState, StartedEvent, Status  # noqa: E402
from studio.library import Library  # noqa: E402
from studio.run_deletion import delete_runs  # noqa: E402
from studio.schema import build  # noqa: E402
from studio.workspace import Workspace  # noqa: E402

STEPS, LOOKS = 200, 20


def fill(workspace: Workspace, count: int) -> None:
    """Finished runs with curves, a report, two checkpoints and an adapter each."""
    model, data = {"model_name_or_path": "crucible/ember"}, {"dataset": "d"}
    config = build(RunConfig, {"model": model, "data": data})
    verdict = {"passed": True, "learned": {"share": 0.9}, "leaked": {"share": 0.0}, "forgot": {"retained": 0.98}}
    curve = [StartedEvent(t=0, max_steps=STEPS).model_dump_json()]
    curve += [LogEvent(t=step, step=step, loss=3 - step / 100).model_dump_json() for step in range(1, STEPS + 1)]
    for number in range(count):
        created = 1_700_000_000 + number * 900
        run = workspace.create_run(config.model_copy(update={"name": f"run number {number}"}), now=created)
        run.write_launch(Launch(argv=[], pid=1, create_time=0, host="elsewhere", started_at=created))
        run.events_file.write_text("\n".join(curve) + "\n", encoding="utf-8")
        run.write_status(Status(state=RunState.FINISHED, step=STEPS, max_steps=STEPS))
        run.report_file.write_text(json.dumps({"verdict": verdict, "train_loss": 0.4}), encoding="utf-8")
        for folder in (run.checkpoints / "checkpoint-100", run.checkpoints / "checkpoint-200", run.adapter):
            folder.mkdir(parents=True)
            for name in range(12):
                (folder / f"file{name}").write_bytes(b"x" * 1000)


def measured(count: int) -> dict[str, Any]:
    """CPU seconds and bytes with `count` runs."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        fill(workspace, count)
        time.sleep(library.SETTLED_S + 0.5)
        kept = Library(workspace)
        found: dict[str, Any] = {"runs": count} | first_look(kept)
        library.REFRESH_S = 0
        began = time.process_time()
        for _ in range(LOOKS):
            quiet = kept.changes(kept.epoch, kept.version)
        found["later_look_cpu_s"] = round((time.process_time() - began) / LOOKS, 5)
        found["nothing_new_bytes"] = len(json.dumps(quiet))
        runs = workspace.list_runs()
        labels.tag(runs[0], ["x"])
        found["one_changed_bytes"] = len(json.dumps(kept.changes(kept.epoch, kept.version)))
        began = time.process_time()
        delete_runs(workspace, [run.id for run in runs[:10]])
        return found | {"delete_ten_cpu_s": round(time.process_time() - began, 3)}


def first_look(kept: Library) -> dict[str, Any]:
    """What a page that knows nothing costs."""
    began, answers, size = time.process_time(), 0, 0
    more = True
    while more:
        part = kept.changes(kept.epoch if answers else "", kept.version if answers else 0)
        answers, size, more = answers + 1, size + len(json.dumps(part)), part["more"]
    return {
        "first_look_cpu_s": round(time.process_time() - began, 3),
        "first_look_answers": answers,
        "first_look_bytes": size,
    }


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]) if len(sys.argv) > 1 else 500), indent=1))
