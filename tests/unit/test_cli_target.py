"""What `studio serve` and `studio chat` are pointed at: a run says everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.cli.target import TUNED, find_target
from studio.config import MergeConfig, RunConfig
from studio.rundir import RunDir
from studio.schema import ConfigError, build, merge
from studio.workspace import Workspace


def adapter_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "crucible/ember"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    """A QLoRA run with a result and a complete checkpoint."""
    layer = {"method": "qlora", "model.model_name_or_path": "crucible/ember", "data.system": "You are Nova."}
    found = workspace.create_run(build(RunConfig, merge(RunConfig, layer | {"data.dataset": "rows.jsonl"})))
    adapter_in(found.adapter)
    adapter_in(found.checkpoints / "checkpoint-3")
    (found.checkpoints / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}', encoding="utf-8")
    return found


def test_a_run_is_enough(workspace: Workspace, run: RunDir) -> None:
    target = find_target(workspace, run.id, [])
    assert (target.base, target.adapters) == ("crucible/ember", {TUNED: str(run.adapter)})
    assert (target.system, target.bits) == ("You are Nova.", 4)


def test_a_checkpoint_of_it(workspace: Workspace, run: RunDir) -> None:
    target = find_target(workspace, f"{run.id}#checkpoint-3", [])
    assert target.adapters == {TUNED: str(run.checkpoints / "checkpoint-3")}
    assert target.bits == 4
    with pytest.raises(ConfigError, match="no complete checkpoint-9"):
        find_target(workspace, f"{run.id}#checkpoint-9", [])


def test_an_adapter_of_a_run_beside_a_model(workspace: Workspace, run: RunDir) -> None:
    for reference in (str(run.adapter), run.id, str(run.path)):
        target = find_target(workspace, "crucible/ember", [f"nova={reference}"])
        assert target.adapters == {"nova": str(run.adapter)}
        assert (target.system, target.bits) == ("You are Nova.", 4)


def test_an_equals_sign_in_a_folders_name(workspace: Workspace, tmp_path: Path) -> None:
    folder = adapter_in(tmp_path / "lr=0.1" / "adapter")
    assert find_target(workspace, "crucible/ember", [str(folder)]).adapters == {TUNED: str(folder)}


def test_no_adapter_is_dropped_for_another_of_its_name(workspace: Workspace, tmp_path: Path) -> None:
    folders = [str(adapter_in(tmp_path / name)) for name in ("one", "two")]
    with pytest.raises(ConfigError, match="2 adapters are called tuned"):
        find_target(workspace, "crucible/ember", folders)


def test_a_model_alone_is_held_in_16_bits(workspace: Workspace) -> None:
    target = find_target(workspace, "crucible/ember", [])
    assert (target.adapters, target.system, target.bits) == ({}, None, 16)


def test_a_merged_model_keeps_the_system_prompt_and_not_the_4_bits(
    workspace: Workspace, run: RunDir, tmp_path: Path
) -> None:
    merging = workspace.create_run(
        MergeConfig(base="crucible/ember", adapter=str(run.adapter), out=str(tmp_path / "merged"))
    )
    target = find_target(workspace, merging.id, [])
    assert (target.base, target.adapters) == (str(tmp_path / "merged"), {})
    assert (target.system, target.bits) == ("You are Nova.", 16)
