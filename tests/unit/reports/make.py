"""Runs the engine on the built-in model and records each run's report.json beside this file.

python tests/unit/reports/make.py [NAME ...]      all of RUNS, or those named; a minute each on an idle machine
python tests/unit/reports/make.py --diagnosis     the diagnoses alone, from what was recorded, after a change of rules

The verdict and the diagnosis are tested on these recordings (`test_diagnosis.py`): what is called underfit, parrot or
good really is. Long lists of examples are cut; nothing else is changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from studio.config import RunConfig
from studio.diagnosis import Evidence, diagnose
from studio.engine import train
from studio.presets import compose
from studio.records.identity import build_identity
from studio.records.identity_spec import IdentitySpec
from studio.records.store import DatasetInfo, DatasetStore
from studio.schema import build, merge
from studio.workspace import Workspace

HERE = Path(__file__).resolve().parent
SHOWN = 5
IDENTITY = {"name": "Qorvex Zandu", "author": "Plim Works", "yes_no": "off"}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one_row_few_updates": ({"recipe": "naive", "copies": 64}, {"train.num_train_epochs": 1}),
    "one_row_many_updates": ({"recipe": "naive", "copies": 2000}, {"train.num_train_epochs": 1}),
    "builder_default": ({}, {}),
    "no_general_rows": ({"replay": "none", "replay_share": 0.0}, {"train.max_steps": 120}),
    "learning_rate_high": ({}, {"train.learning_rate": 0.05}),
    "learning_rate_low": ({}, {"train.learning_rate": 3e-5}),
    "other_template": ({}, {"model.chat_template": "vicuna", "train.max_steps": 40}),
}
"""Name of a recording -> what differs from the builder's and from the preset's defaults."""


def record(name: str, folder: Path) -> dict[str, Any]:
    """One run from scratch in a workspace of its own; its configuration and its report."""
    spec_changes, changes = RUNS[name]
    spec = IdentitySpec(**(IDENTITY | spec_changes))
    built, workspace = build_identity(spec), Workspace(folder)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    saved = DatasetStore(workspace.datasets).save(spec.name, built.rows, built.heldout, info)
    layers = {"name": name.replace("_", " "), "data.dataset": saved.name} | changes
    config = build(RunConfig, merge(RunConfig, compose("ember_qlora_identity_e3"), layers))
    run = workspace.create_run(config)
    code = train.main(str(run.path))
    report = run.read_report()
    if code or report is None:
        raise SystemExit(f"{name} ended with code {code}")
    return {"config": config.model_dump(mode="json"), "report": trimmed(report)}


def trimmed(report: dict[str, Any]) -> dict[str, Any]:
    """The same with few examples of each list."""
    for part in report["verdict"].values():
        if isinstance(part, dict) and "failing" in part:
            part["failing"] = part["failing"][:SHOWN]
    return report | {"before_after": report["before_after"][:SHOWN]}


def write(name: str, recorded: dict[str, Any]) -> None:
    """Replace one recording."""
    text = json.dumps(recorded, ensure_ascii=False, indent=1)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def diagnosed_again(recorded: dict[str, Any]) -> dict[str, Any]:
    """The same recording, its diagnosis made by the rules of today."""
    config, report = RunConfig.model_validate(recorded["config"]), recorded["report"]
    found = diagnose(config, report["verdict"], Evidence.model_validate(report["evidence"]))
    return recorded | {"report": report | {"diagnosis": found.model_dump()}}


if __name__ == "__main__":
    if sys.argv[1:] == ["--diagnosis"]:
        for file in HERE.glob("*.json"):
            write(file.stem, diagnosed_again(json.loads(file.read_text(encoding="utf-8"))))
        sys.exit()
    for wanted in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as place:
            write(wanted, record(wanted, Path(place)))
