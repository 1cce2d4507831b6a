"""Runs that start from earlier ones: what a reference stands for, what is taken over, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from studio.chains import lineage, lora_of, other_base
from studio.config import LoraSection, MergeConfig, RunConfig
from studio.preflight import preflight
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace

SETTINGS = {
    "base_model_name_or_path": "crucible/ember",
    "r": 8,
    "lora_alpha": 24,
    "target_modules": ["v_proj", "q_proj"],
    "use_rslora": True,
    "modules_to_save": None,
    "lora_dropout": 0.5,
}


def config(**changes: Any) -> RunConfig:
    minimal = {"model.model_name_or_path": "crucible/ember", "data.dataset": "identity", "method": "lora"}
    return build(
        RunConfig, merge(RunConfig, minimal, {key.replace("__", "."): value for key, value in changes.items()})
    )


def left(run: RunDir, what: str = "adapter", settings: dict[str, Any] | None = None) -> Path:
    """What a finished run leaves, as far as files tell."""
    folder = run.path / what
    folder.mkdir()
    if what.endswith("adapter"):
        (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | (settings or {})), encoding="utf-8")
    return folder


@pytest.fixture
def first(workspace: Workspace) -> RunDir:
    """A run named first that left an adapter."""
    run = workspace.create_run(config(name="first"), now=0)
    left(run)
    return run


@pytest.mark.parametrize("how", ["id", "name", "last", "directory", "adapter", "relative"])
def test_an_adapter_is_found_however_it_is_named(
    workspace: Workspace, first: RunDir, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first.path)
    reference = {
        "id": first.id,
        "name": "first",
        "last": "last",
        "directory": str(first.path),
        "adapter": str(first.adapter),
        "relative": "adapter",
    }[how]
    frozen = workspace.freeze(config(model__adapter=reference))
    assert frozen.model.adapter == str(first.adapter)
    assert lineage(str(frozen.model.adapter)) == first.id


def test_rank_and_layers_are_those_of_the_adapter_and_the_dropout_is_free(workspace: Workspace, first: RunDir) -> None:
    run = workspace.create_run(config(model__adapter="first", lora__r=64, lora__lora_dropout=0.1))
    written = run.config()
    assert isinstance(written, RunConfig)
    lora = written.lora
    assert (lora.r, lora.lora_alpha, lora.target_modules, lora.use_rslora) == (8, 24, ["q_proj", "v_proj"], True)
    assert lora.lora_dropout == 0.1


def test_an_adapter_beyond_what_a_form_can_say_leaves_the_form_alone() -> None:
    section = LoraSection(r=4)
    assert lora_of({"r": 2048}, section) == section
    assert lora_of({"lora_alpha": 22.6}, section) == section


def test_a_model_comes_from_a_run_or_from_a_merge(workspace: Workspace, first: RunDir) -> None:
    full = workspace.create_run(config(name="whole", method="full"))
    model = left(full, "model")
    merged = workspace.exports / "merged"
    merging = MergeConfig(base="crucible/ember", adapter=str(first.adapter), out=str(merged), name="joined")
    workspace.create_run(merging)
    merged.mkdir()
    assert workspace.freeze(config(model__model_name_or_path=full.id)).model.model_name_or_path == str(model)
    assert workspace.freeze(config(model__model_name_or_path="joined")).model.model_name_or_path == str(merged)
    named = workspace.freeze(config(model__model_name_or_path=full.id, name=""))
    assert named.name == "whole_lora_identity"


@pytest.mark.parametrize("reference", ["Qwen/Qwen2.5-0.5B-Instruct", "crucible/ember", "no such run"])
def test_other_models_stay_as_they_are(workspace: Workspace, reference: str) -> None:
    assert workspace.freeze(config(model__model_name_or_path=reference)).model.model_name_or_path == reference


def test_a_folder_that_is_there_wins_over_a_run_of_that_name(
    workspace: Workspace, first: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path)
    assert workspace.freeze(config(model__adapter="first")).model.adapter == str(tmp_path / "first")


def test_lineage_names_run_and_checkpoint(first: RunDir, tmp_path: Path) -> None:
    checkpoint = first.checkpoints / "checkpoint-4"
    assert lineage(str(checkpoint)) == f"{first.id}/checkpoint-4"
    assert lineage(str(tmp_path)) == lineage("Qwen/Qwen2.5") == lineage("config.yaml") == ""


@pytest.mark.parametrize(
    ("trained", "base", "other"),
    [
        ("crucible/ember", "crucible/ember", ""),
        (None, "crucible/ember", ""),
        (5, "crucible/ember", ""),
        ("Qwen/Qwen2.5-0.5B", "/models/qwen2.5-0.5b", ""),
        ("/elsewhere/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", ""),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-0.5B"),
        ("crucible/ember", "Qwen/Qwen2.5-1.5B", "crucible/ember"),
    ],
)
def test_another_base_is_noticed(trained: Any, base: str, other: str) -> None:
    assert other_base({"base_model_name_or_path": trained}, base) == other


def test_two_folders_of_one_name_are_not_one_model(tmp_path: Path) -> None:
    from studio.presets import BUILT_IN

    for name in ("a", "b"):
        shutil.copytree(BUILT_IN["crucible/ember"], tmp_path / name / "model")
    one, two = str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model")
    assert other_base({"base_model_name_or_path": one}, two) == one
    assert other_base({"base_model_name_or_path": one}, f"{tmp_path}/b/../a/model") == ""


def advice(workspace: Workspace, **changes: Any) -> dict[str, str]:
    found = preflight(config(**changes), workspace)
    return {item.level: f"{item.message}; {item.fix}" for item in found if item.field == "model.adapter"}


def test_the_preflight_says_what_is_wrong_with_an_adapter(workspace: Workspace, first: RunDir) -> None:
    assert "holds no adapter" in advice(workspace, model__adapter="nothing")["error"]
    assert "rank 8, alpha 24" in advice(workspace, model__adapter="first")["info"]
    (first.adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}', "utf-8")
    assert "trained on Qwen/Qwen2.5-0.5B" in advice(workspace, model__adapter="first")["error"]
    for torn in ("[]", "{", ""):
        (first.adapter / "adapter_config.json").write_text(torn, encoding="utf-8")
        assert "holds no adapter" in advice(workspace, model__adapter="first")["error"]


def test_a_run_without_a_model_says_what_to_do_instead(workspace: Workspace, first: RunDir) -> None:
    found = preflight(config(model__model_name_or_path=first.id), workspace)
    assert "left no model; go on from its adapter" in str(found[0])
