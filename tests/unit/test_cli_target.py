"""What `studio serve` and `studio chat` are pointed at: a run says everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio import processes
from studio.cli import build_parser, chat, convert, export, main, output_run
from studio.cli.target import TUNED, find_target
from studio.config import AnyConfig, ConvertConfig, ExportConfig, MergeConfig, RunConfig
from studio.events import Launch, RunState, Status
from studio.model_choices import ModelChoice
from studio.rundir import RunDir
from studio.schema import ConfigError, build, merge
from studio.workspace import Workspace, free_path


def adapter_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "crucible/ember"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def finished(run: RunDir, state: RunState = RunState.FINISHED) -> RunDir:
    """A run that has ended; a finished one has made its folder."""
    run.write_launch(Launch(argv=[], attempt=1, **processes.record(2**22 + 1)))
    run.write_status(Status(state=state, attempt=1))
    out = run.config().out  # type: ignore[union-attr]
    if out and state is RunState.FINISHED:
        Path(out).mkdir(exist_ok=True)
    return run


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
    finished(merging)
    target = find_target(workspace, merging.id, [])
    assert (target.base, target.adapters) == (str(tmp_path / "merged"), {})
    assert (target.system, target.bits) == ("You are Nova.", 16)


@pytest.mark.parametrize("kind", ["merge", "convert", "export"])
def test_what_has_not_finished_is_no_model_yet(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    out = str(tmp_path / "made")
    configs: dict[str, AnyConfig] = {
        "merge": MergeConfig(base="crucible/ember", adapter="a", out=out),
        "convert": ConvertConfig(source="a", out=out),
        "export": ExportConfig(format="bitsandbytes", model="crucible/ember", out=out),
    }
    made = workspace.create_run(configs[kind])
    with pytest.raises(ConfigError, match=r"has made no model \(it is queued\)"):
        find_target(workspace, made.id, [])
    finished(made, RunState.FAILED)
    with pytest.raises(ConfigError, match=r"has made no model \(it is failed\)"):
        find_target(workspace, made.id, [])
    Path(finished(made).config().out).rmdir()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"is no longer there \(it is finished\)"):
        find_target(workspace, made.id, [])


def test_an_upload_left_no_model_here(workspace: Workspace, run: RunDir) -> None:
    sent = workspace.create_run(ExportConfig(format="hub", model="crucible/ember", repo_id="nova/x"))
    finished(sent)
    with pytest.raises(ConfigError, match=r"left no folder here \(it is finished\)"):
        find_target(workspace, sent.id, [])
    assert find_target(workspace, "last", []).adapters == {TUNED: str(run.adapter)}


def test_a_gguf_is_run_elsewhere(workspace: Workspace, tmp_path: Path) -> None:
    exported = finished(
        workspace.create_run(ExportConfig(format="gguf", model="crucible/ember", out=str(tmp_path / "g1")))
    )
    file = tmp_path / "g1" / "g1-q8_0.gguf"
    file.write_bytes(b"GGUF")
    for reference in (exported.id, str(file.parent)):
        with pytest.raises(ConfigError, match=r"g1 is a GGUF, which llama\.cpp and Ollama run.*llama-server -m .*g1"):
            find_target(workspace, reference, [])


@pytest.mark.parametrize("verb", [["chat"], ["serve"], ["export", "gguf"]])
def test_no_field_of_a_form_is_named_to_who_typed_a_model(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert main([*verb, "no-such/folder/here", "--workspace", str(workspace.path)]) == 4
    assert capsys.readouterr().err.startswith("error: the model folder 'no-such/folder/here' does not exist; ")


class Failed:
    """A chat server that could not load its model."""

    def health(self) -> dict[str, Any]:
        error = {
            "kind": "model",
            "message": "model.model_name_or_path: g1 has no config.json",
            "hint": "choose another",
        }
        return {"state": "failed", "error": error}


def test_a_failure_and_what_to_do_are_two_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert chat._wait_until_ready(Failed()) == 4  # type: ignore[arg-type]
    assert "error: g1 has no config.json; choose another\n" in capsys.readouterr().err


def test_an_import_says_which_options_are_of_a_merge(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(convert, "carry_out", lambda *_, **__: 0)
    where = ["--workspace", str(workspace.path)]
    assert main(["convert", str(tmp_path), *where]) == 0
    assert capsys.readouterr().err == ""
    assert main(["convert", str(tmp_path), "--max-shard-size", "1GB", "--device", "cpu", *where]) == 0
    said = capsys.readouterr().err
    for option in ("--max-shard-size", "--device"):
        assert f"warning: {option} is an option of merge and changes nothing here" in said


def test_a_folder_that_nothing_is_called_yet(tmp_path: Path) -> None:
    path = tmp_path / "merged"
    assert free_path(path) == path
    path.symlink_to(tmp_path / "nowhere")
    (tmp_path / "merged-2").mkdir()
    assert free_path(path) == tmp_path / "merged-3"


def test_only_ollama_takes_a_system_prompt() -> None:
    parser = build_parser()
    assert parser.parse_args(["export", "ollama", "m", "--system", "S"]).system == "S"
    with pytest.raises(SystemExit):
        parser.parse_args(["export", "gguf", "m", "--system", "S"])


def test_ctrl_c_stops_the_run_and_says_so(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[RunDir] = []

    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(output_run.runner, "submit", lambda place, config: place.create_run(config))
    monkeypatch.setattr(output_run.runner, "stop", stopped.append)
    monkeypatch.setattr(output_run, "follow", interrupted)
    config = MergeConfig(base="crucible/ember", adapter="a", out="x")
    code = output_run.carry_out(workspace, config, pytest.fail, stopping="stopping: {run}", as_json=False)  # type: ignore[arg-type]
    assert code == 130
    assert capsys.readouterr().err == f"\nstopping: {stopped[0].id}\n"


def test_what_an_export_was_checked_with_is_said(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = workspace.create_run(ExportConfig(format="gguf", model="crucible/ember", out=str(workspace.exports / "g")))
    proof = {"passed": True, "checked_with": "reading it back only; llama.cpp was not asked"}
    run.report_file.write_text(json.dumps({"out": "g", "proof": proof}), encoding="utf-8")
    export._report(ModelChoice("m", "base", "m", "crucible/ember"), run)
    assert "checked with: reading it back only; llama.cpp was not asked\n" in capsys.readouterr().out
