"""Exports: every format is proven or fails, uploads go where they should, and what cannot be is said before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import minihub
import pytest
from adapters import save_adapter
from safetensors.torch import load_file, save_file
from tiny import EMBER, events_of

from studio.cli import main as cli
from studio.config import ExportConfig
from studio.engine import export
from studio.events import RunState
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace

Start = Callable[..., tuple[int, RunDir]]
TOKEN = "hf_a-token-nobody-has"


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny Llama. Do not write to it."""
    return save_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "adapter", strength=0.2)


@pytest.fixture
def out(workspace: Workspace) -> Path:
    """Where the export goes."""
    return workspace.exports / "packed 模型"


@pytest.fixture
def start(workspace: Workspace, tiny_llama: Path, out: Path) -> Start:
    """start(**changes) -> (exit code, run): one export, in this process."""

    def export_now(**changes: Any) -> tuple[int, RunDir]:
        settings = {"format": "bitsandbytes", "model": str(tiny_llama), "out": str(out)}
        run = workspace.create_run(build(ExportConfig, settings | changes))
        return export.main(str(run.path)), run

    return export_now


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[minihub.MiniHub]:
    """A hub that takes uploads with the token of the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with minihub.serve(tmp_path / "hub") as running:
        running.root.mkdir()
        running.writer = TOKEN
        yield running


@pytest.fixture
def send(workspace: Workspace, hub: minihub.MiniHub, tiny_adapter: Path) -> Start:
    """send(**changes) -> (exit code, run): one upload, in a process of its own that begins with this environment."""

    def upload_now(**changes: Any) -> tuple[int, RunDir]:
        settings = {"format": "hub", "repo_id": "nova/first", "endpoint": hub.address, "model": "crucible/ember"}
        run = workspace.create_run(build(ExportConfig, settings | {"adapter": str(tiny_adapter)} | changes))
        done = subprocess.run([sys.executable, "-m", "studio.engine", "export", str(run.path)], check=False)
        return done.returncode, run

    return upload_now


def report_of(run: RunDir) -> Any:
    report = run.read_report()
    assert report is not None
    return report


def error_of(run: RunDir) -> Any:
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    return status.error


def said_of(run: RunDir) -> str:
    """Everything the run wrote that a person could read."""
    return "".join(path.read_text(encoding="utf-8") for path in run.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_read_back_as_they_were_packed(start: Start, out: Path, bits: int) -> None:
    code, run = start(bits=bits)
    assert code == 0, run.read_status()
    report = report_of(run)
    proof = report["proof"]
    assert proof["passed"]
    assert proof["layers"] == proof["layers_packed"] == 14
    assert proof["answers_equal"] == proof["prompts"] == 6
    assert report["price"]["max_logit_difference"] > 0  # packing loses digits, and that is told
    stored = load_file(out / "model.safetensors")
    assert str(stored["model.layers.0.mlp.up_proj.weight"].dtype) == {4: "torch.uint8", 8: "torch.int8"}[bits]
    assert [event.what for event in events_of(run, "saved")] == ["export"]


def test_an_adapter_is_merged_first_and_both_proofs_are_kept(start: Start, tiny_adapter: Path) -> None:
    code, run = start(adapter=str(tiny_adapter))
    assert code == 0, run.read_status()
    report = report_of(run)
    assert report["merge"]["proof"]["passed"]
    assert report["proof"]["passed"]


def test_what_is_read_back_wrong_is_no_success(start: Start, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.engine.formats import quantized

    honest = quantized._prove

    def scratched(result: Path, *rest: Any) -> Any:
        tensors = load_file(result / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"][:64] = 0
        save_file(tensors, result / "model.safetensors", metadata={"format": "pt"})
        return honest(result, *rest)

    monkeypatch.setattr(quantized, "_prove", scratched)
    code, run = start()
    assert (code, out.exists()) == (1, False)
    assert "logits differ" in error_of(run).message
    assert out.with_name(f"{out.name}.unproven").is_dir()


def test_it_never_overwrites_and_leaves_nothing_behind(
    start: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.engine.formats import quantized

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized, "_write_card", full)
    code, run = start()
    assert code == 1
    assert (error_of(run).kind, error_of(run).field) == ("disk", "out")
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    code, run = start()
    assert (code, error_of(run).field) == (4, "out")


def test_weights_that_are_packed_already_are_refused_before(start: Start, out: Path) -> None:
    assert start()[0] == 0
    code, run = start(model=str(out), out=str(out.with_name("again")))
    assert code == 4
    assert "quantised already" in error_of(run).message


def test_an_adapter_is_uploaded_with_everything_that_belongs_to_it_and_nothing_else(
    send: Start, hub: minihub.MiniHub, tiny_adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapter, folder)
    for name in ("optimizer.pt", "training_args.bin", ".env", "trainer_state.json"):
        (folder / name).write_text("not for others", encoding="utf-8")
    code, run = send(adapter=str(folder))
    assert code == 0, run.read_status()
    there = hub.root / "nova" / "first"
    names = {file.name for file in there.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not {"optimizer.pt", "training_args.bin", ".env", "trainer_state.json"} & names
    assert (there / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    assert hub.made[0]["visibility"] == "private"
    assert report_of(run)["out"] == f"{hub.address}/nova/first"
    assert TOKEN not in said_of(run)

    said = json.loads((there / "adapter_config.json").read_text(encoding="utf-8"))
    assert said["base_model_name_or_path"] == "tiny-llama"  # not the folder it lies in on this machine
    assert str(tmp_path.parent) not in "".join(f.read_text("utf-8", "replace") for f in there.iterdir())

    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert send(adapter=str(folder))[0] == 0
    assert len(hub.received) == 1  # the weights are there already
    assert (there / "adapter_config.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize(
    "case",
    [
        ("no token", "hub", "HF_TOKEN"),
        ("bad token", "hub", "does not accept the token"),
        ("offline", "hub", "switched off"),
        ("nobody there", "hub", "cannot be reached"),
        ("open line", "endpoint", "others can read"),
        ("another's name", "endpoint", "others can read"),
        ("refused", "repo_id", "may not write"),
        ("torn", "repo_id", "instead of"),
    ],
)
def test_an_upload_that_cannot_be_says_why(
    send: Start, hub: minihub.MiniHub, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, str]
) -> None:
    wrong, field, said = case
    endpoints = {
        "nobody there": "http://127.0.0.1:9",
        "open line": "http://hub.example",
        "another's name": "http://127.0.0.1.hub.example",
    }
    endpoint = endpoints.get(wrong, hub.address)
    if wrong == "no token":
        monkeypatch.delenv("HF_TOKEN")
    if wrong == "bad token":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    if wrong == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if wrong == "refused":
        hub.refusing = minihub.digest(tiny_adapter / "adapter_model.safetensors")
    if wrong == "torn":
        hub.losing = "tokenizer.json"
    code, run = send(endpoint=endpoint)
    assert code == 4
    error = error_of(run)
    assert error.field == field
    assert said in f"{error.message} {error.hint}"


def test_the_verb_exports_and_says_before_what_cannot_be(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    where = ["--workspace", str(workspace.path)]
    assert cli(["export", "bitsandbytes", str(EMBER), "--bits", "8", *where]) == 0
    said = capfd.readouterr().out
    assert "6 of 6 answers equal" in said
    assert str(workspace.exports / "ember-8bit") in said
    assert cli(["export", "hub", str(workspace.exports / "ember-8bit"), "nova/x", *where]) == 4
    assert "HF_TOKEN" in capfd.readouterr().err
    assert [run.state() for run in workspace.list_runs()] == [RunState.FINISHED]


MODELSCOPE = '''
import json, os

class HubApi:
    """Stands in for the client of ModelScope: writes down what it is asked."""

    def __init__(self, endpoint=None, **_):
        self.endpoint = endpoint

    def _told(self, what, **said):
        with open(os.environ["TOLD"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **said}) + "\\n")

    def get_model_files(self, repo_id):
        with open(os.environ["TOLD"], encoding="utf-8") as file:
            said = [json.loads(line) for line in file]
        return [{"Path": one["name"], "Size": one["size"]} for one in said if one["what"] == "file"]

    def create_repo(self, repo_id, *, token, visibility, exist_ok):
        self._told("create", repo_id=repo_id, token=token, visibility=visibility)

    def upload_file(self, *, repo_id, path_or_fileobj, path_in_repo, token, commit_message):
        sent = path_or_fileobj if isinstance(path_or_fileobj, bytes) else open(path_or_fileobj, "rb").read()
        self._told("file", repo_id=repo_id, name=path_in_repo, size=len(sent))
'''


def test_modelscope_gets_a_private_repository_first_and_then_the_files(
    send: Start, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, run = send(hub="modelscope", endpoint=None)
    assert (code, error_of(run).field) == (4, "hub")
    assert "pip install modelscope" in error_of(run).message  # not installed here
    package = tmp_path / "packages" / "modelscope" / "hub"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "api.py").write_text(MODELSCOPE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parents[1]))
    code, run = send(hub="modelscope", endpoint=None)
    assert (code, "MODELSCOPE_API_TOKEN" in error_of(run).hint) == (4, True)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-x")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    code, run = send(hub="modelscope", endpoint=None)
    assert code == 0, run.read_status()
    told = [json.loads(line) for line in (tmp_path / "told").read_text(encoding="utf-8").splitlines()]
    assert told[0] == {"what": "create", "repo_id": "nova/first", "token": "ms-x", "visibility": "private"}
    sizes = {one["name"]: one["size"] for one in told[1:]}
    assert sizes["adapter_model.safetensors"] == (tiny_adapter / "adapter_model.safetensors").stat().st_size
    assert {"adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= sizes.keys()
