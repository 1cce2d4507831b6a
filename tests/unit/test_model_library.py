"""Models on disk: what lies in a folder, what the hubs' clients have downloaded, and the list of it all."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from studio import model_files
from studio.cli import main
from studio.fetchdir import model_job
from studio.model_cache import cached_model, cached_models
from studio.model_choices import list_choices
from studio.model_files import Fault, damage, facts, faults
from studio.model_library import check, choices, folder_of, list_models
from studio.presets import BUILT_IN, ModelError, resolve_model
from studio.records import DataError
from studio.workspace import Workspace

EMBER = BUILT_IN["crucible/ember"]
COMMIT = "c" * 40


def weights(tensors: dict[str, Any] | None = None, data: bytes = b"\0" * 8) -> bytes:
    """A safetensors file of one tensor of two float32 numbers."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} if tensors is None else tensors)
    return struct.pack("<Q", len(header)) + header.encode() + data


def make(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights())
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def shards(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def model(weird_path: Path) -> Path:
    return make(weird_path / "llama")


# ---- one folder ------------------------------------------------------------------------------------------------------


def test_a_whole_folder_has_no_fault(model: Path) -> None:
    assert list(faults(model)) == []
    assert list(faults(EMBER)) == []
    assert facts(model) == model_files.Facts("llama", "float32", len(weights()))
    assert facts(EMBER).dtype == "bfloat16"


def write(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "llama has no config.json"),
        (write("config.json", b"{"), "config.json in llama cannot be read"),
        (write("config.json", b"[" * 100_000), "config.json in llama cannot be read"),
        (write("config.json", b"[]"), "config.json in llama is not an object"),
        (write("config.json", POINTER), "config.json in llama is a pointer of git-lfs"),
        (write("config.json", b"{}"), "does not say its model_type"),
        (write("config.json", b'{"model_type": "t5"}'), "llama is no text-generating language model"),
        (write("config.json", b'{"model_type": "zork"}'), "the architecture of llama, 'zork', is not known"),
        (write("config.json", b'{"model_type": "zork", "auto_map": {}}'), "needs Python code of its own"),
        (write("config.json", b'{"model_type": ["x"]}'), "is not known to the installed transformers"),
        (write("config.json", b'{"model_type": "moss"}'), "llama: it computes as CodeGen"),
        (lambda f: (f / "model.safetensors").unlink(), "llama lacks model.safetensors"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "lacks model.safetensors; its weights are pickle",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "holds a GGUF file"),
        (lambda f: shards(f, "a.safetensors", "b.safetensors"), "llama lacks a.safetensors and 1 more files"),
        (lambda f: shards(f, "../../secret"), "names no files of this folder"),
        (lambda f: shards(f), "names no files of this folder"),
        (write("model.safetensors.index.json", b"[1]"), "model.safetensors.index.json in llama is not an object"),
        (write("model.safetensors", b""), "model.safetensors in llama is empty"),
        (write("model.safetensors", POINTER), "model.safetensors in llama is a pointer of git-lfs"),
        (write("model.safetensors", weights()[:-1]), "model.safetensors in llama is cut off"),
        (lambda f: (f / "tokenizer.json").unlink(), "llama has no tokenizer"),
        (write("tokenizer.json", b""), "tokenizer.json in llama is empty"),
        (write("tokenizer.json", POINTER), "tokenizer.json in llama is a pointer of git-lfs"),
    ],
)
def test_each_fault_of_a_folder(model: Path, change: Any, words: str) -> None:
    change(model)
    found = list(faults(model))
    assert words in found[0].message
    assert all(isinstance(fault, Fault) and fault.fix for fault in found)
    with pytest.raises(ModelError) as caught:
        resolve_model(str(model))
    assert caught.value.message == f"model.model_name_or_path: {found[0].message}"


def test_several_faults_are_all_told(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "model.safetensors").write_bytes(weights()[:20])
    assert [fault.message.split(" in ")[0].split("llama ")[-1] for fault in check(str(model))] == [
        "model.safetensors",
        "has no tokenizer",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1234567", "is cut off or no safetensors file"),
        (b"PK\x03\x04 a zip archive, as torch saves", "is cut off or no safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "is cut off or no safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"\xff\xff", "its header cannot be read"),
        (weights({"w": 1}), "its header cannot be read"),
        (weights({"w": {"dtype": "F32", "data_offsets": [8, 0]}}), "its header cannot be read"),
        (weights({"w": {"dtype": "F32", "data_offsets": [0, "8"]}}), "its header cannot be read"),
        (weights({"w": {"dtype": "F32", "data_offsets": [0, 10**12]}}), "is cut off: "),
        (weights(data=b"\0" * 9), "is damaged: 1 bytes too long"),
        (weights(), ""),
        (weights({"__metadata__": {"format": "pt"}}, b""), ""),
    ],
)
def test_the_beginning_of_a_file_says_how_long_it_is(weird_path: Path, content: bytes, words: str) -> None:
    file = weird_path / "w.safetensors"
    file.write_bytes(content)
    assert words in damage(file)
    assert bool(words) == bool(damage(file))


def test_a_file_is_looked_at_again_once_it_has_changed(weird_path: Path) -> None:
    file = weird_path / "w.safetensors"
    file.write_bytes(weights()[:-1])
    assert damage(file)
    file.write_bytes(weights())
    assert not damage(file)
    file.unlink()
    assert "cannot be read" in damage(file)


# ---- what was downloaded ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache, empty."""
    cache = tmp_path / "hf"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    return cache


def downloaded(hub: Path, model_id: str, ref: str = "main", commit: str = COMMIT) -> Path:
    """A model as the client leaves it: links to blobs."""
    home = hub / f"models--{model_id.replace('/', '--')}"
    snapshot, blobs = home / "snapshots" / commit, home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    for file in EMBER.iterdir():
        blob = blobs / f"{commit}{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_downloaded_model_is_used_from_where_it_lies(hub: Path) -> None:
    assert not resolve_model("owner/small").local
    snapshot = downloaded(hub, "owner/small")
    found = resolve_model("owner/small")
    assert (found.local, found.ref, Path(found.path_or_id)) == (True, "owner/small", snapshot)
    (snapshot / "model.safetensors").unlink()  # half a download is still the hub's
    assert not resolve_model("owner/small").local
    assert cached_model("owner/small") == snapshot


def test_the_list(hub: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded(hub, "owner/small")
    other = downloaded(hub, "owner/small", "v2", "d" * 40)
    half = downloaded(hub, "owner/half")
    (half / "model.safetensors").unlink()
    (hub / "datasets--a--b" / "snapshots" / COMMIT).mkdir(parents=True)
    merged = make(workspace.exports / "merged 合")
    scope = make(tmp_path / "ms" / "hub" / "models" / "owner" / "new-1___5")
    newer = make(tmp_path / "ms" / "models" / "owner--name" / "snapshots" / "master")
    named = make(tmp_path / "named" / "mine")
    (tmp_path / "named" / "again").symlink_to(merged, target_is_directory=True)
    (tmp_path / "named" / "broken").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("CRUCIBLE_MODELS", os.pathsep.join([str(tmp_path / "named"), str(named), str(tmp_path / "no")]))
    found = {model.value: model for model in list_models(workspace)}
    assert {value: (model.where, model.complete) for value, model in found.items()} == {
        "crucible/ember": ("built-in", True),
        str(merged): ("workspace", True),
        str(named): ("folder", True),
        "owner/small": ("huggingface", True),
        str(other): ("huggingface", True),
        "owner/half": ("huggingface", False),
        "owner/new-1.5": ("modelscope", True),
        "owner/name": ("modelscope", True),
    }
    assert found["owner/small"].size_bytes == sum(file.stat().st_size for file in EMBER.iterdir())
    assert found[str(other)].id == "owner/small (v2)"
    assert "lacks model.safetensors" in found["owner/half"].problem
    assert found[str(merged)].kind == "llama"
    assert json.loads(json.dumps(found["owner/half"].as_dict()))["complete"] is False
    assert {item.path for item in cached_models() if item.hub == "modelscope"} == {scope, newer}


def test_an_empty_machine_has_the_built_in_model(hub: Path, workspace: Workspace) -> None:
    shutil.rmtree(hub)
    assert [model.value for model in list_models(workspace)] == ["crucible/ember"]


def test_the_choices_of_the_form(hub: Path, workspace: Workspace) -> None:
    before = [value for _, value in choices(workspace)]
    assert before[0] == "crucible/ember"
    assert "Qwen/Qwen2.5-0.5B-Instruct" in before
    downloaded(hub, "Qwen/Qwen2.5-0.5B-Instruct")
    downloaded(hub, "owner/own")
    downloaded(hub, "owner/half").joinpath("model.safetensors").unlink()
    after = [value for _, value in choices(workspace)]
    assert after[:3] == ["crucible/ember", "Qwen/Qwen2.5-0.5B-Instruct", "owner/own"]
    assert "owner/half" not in after
    assert len(after) == len(set(after)) == len(before) + 1


def test_a_reference_leads_to_its_folder(hub: Path) -> None:
    snapshot = downloaded(hub, "owner/small")
    assert folder_of("owner/small") == snapshot
    assert folder_of("crucible/ember") == EMBER
    for wrong in ("nowhere", "owner/none", "a\0b", "x" * 5000, ""):
        if wrong:
            with pytest.raises(ModelError, match="does not exist"):
                folder_of(wrong)


# ---- jobs and the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "hub_name", "name"),
    [
        ("owner/name", "huggingface", "owner/name"),
        (" https://huggingface.co/owner/name/tree/main ", "huggingface", "owner/name"),
        ("hf.co/gpt2", "huggingface", "gpt2"),
        ("https://www.modelscope.cn/models/owner/name/summary", "modelscope", "owner/name"),
    ],
)
def test_jobs_for_models(typed: str, hub_name: str, name: str) -> None:
    job = model_job(typed)
    assert (job.what, job.hub, job.id) == ("model", hub_name, name)


@pytest.mark.parametrize(
    ("typed", "settings", "words"),
    [
        ("", {}, "is no hub id"),
        ("/etc/passwd", {}, "is no hub id"),
        ("https://huggingface.co/datasets/owner/name", {}, "is no hub id"),
        ("https://evil.example/a/b", {}, "is no hub id"),
        ("a/b", {"endpoint": "file:///etc"}, "is no address of a hub"),
        ("a/b", {"endpoint": "https://user:secret@host"}, "is no address of a hub"),
        ("a/b", {"endpoint": "https://host/?a=b"}, "is no address of a hub"),
        ("a/b", {"revision": "--force"}, "revision: "),
        ("a/b", {"revision": "a b"}, "revision: "),
    ],
)
def test_no_jobs_for_models(typed: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        model_job(typed, **settings)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_models_list_and_check(
    hub: Path, workspace: Workspace, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_MODELS", str(model))
    (model / "tokenizer.json").unlink()
    place = ("--workspace", str(workspace.path))
    code, out, _ = run(capsys, "models", "list", *place)
    assert code == 0
    assert "cannot be used: llama has no tokenizer" in out
    listed = json.loads(run(capsys, "models", "list", "--json", *place)[1])
    assert [(item["where"], item["complete"]) for item in listed] == [("built-in", True), ("folder", False)]
    assert run(capsys, "models", "check", "crucible/ember") == (
        0,
        "ember is complete: qwen3, bfloat16, 11 MB of weights\n",
        "",
    )
    code, out, _ = run(capsys, "models", "check", str(model), "--json")
    assert (code, json.loads(out)["ok"]) == (4, False)
    assert run(capsys, "models", "check", str(model))[1] == "llama has no tokenizer; copy tokenizer.json beside it\n"
    code, _, err = run(capsys, "models", "check", "nowhere")
    assert (code, err) == (4, "error: the folder 'nowhere' does not exist; check the path\n")


def test_models_fetch_says_offline_at_once(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "models", "fetch", "owner/small", "--workspace", str(workspace.path))
    assert code == 4
    assert "The hubs are switched off" in err
    assert not (workspace.path / "downloads").exists()


def test_what_is_being_made_or_failed_its_proof_is_not_offered(workspace: Workspace) -> None:
    for name in (".20261129-120000_merge.part", "nova.unproven", "nova.unproven-2", "nova"):
        make(workspace.exports / name)
    for name in (".20261129-120000_convert.part", "star.unproven", "star"):
        folder = workspace.exports / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "crucible/ember"}', encoding="utf-8")
    made = [choice.name for choice in list_choices(workspace) if choice.base.startswith(str(workspace.path))]
    assert made == ["nova"]
    assert [choice.name for choice in list_choices(workspace) if choice.what == "adapter"] == ["star"]
