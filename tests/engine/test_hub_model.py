"""Fetching models with the real client from a hub on the loopback, and through a stand-in for ModelScope's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from minihub import COMMIT, MiniHub, digest, serve
from safetensors.numpy import save_file
from tiny import EMBER

from studio.engine import hub, hub_model, modelscope
from studio.engine.hub_model import chosen
from studio.events import RunState
from studio.fetchdir import FetchDir, FetchJob, FetchStatus, fetches, model_job, new_fetch
from studio.fetching import start_fetch, stop_fetch
from studio.model_library import choices, list_models
from studio.records import DataError
from studio.workspace import Workspace

np = pytest.importorskip("numpy")
BIG, TORN = 24 * 2**20, 15 * 2**20  # the client writes 10 MB at a time
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """owner/small (with pickles, code, other formats), owner/big (two shards), owner/pickled, owner/torn."""
    root = tmp_path_factory.mktemp("models")
    small = root / "owner" / "small"
    shutil.copytree(EMBER, small)
    for name in ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "original/params.json"):
        (small / name).parent.mkdir(exist_ok=True)
        (small / name).write_bytes(b"raise SystemExit")
    big = root / "owner" / "big"
    shutil.copytree(EMBER, big)
    (big / "model.safetensors").unlink()
    for number, name in enumerate(SHARDS):
        save_file({f"w{number}": np.full(BIG // 4, number, dtype=np.float32)}, big / name)
    index = {"metadata": {}, "weight_map": {f"w{number}": name for number, name in enumerate(SHARDS)}}
    (big / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    pickled = root / "owner" / "pickled"
    pickled.mkdir()
    shutil.copy(EMBER / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    torn = root / "owner" / "torn"
    shutil.copytree(EMBER, torn)
    (torn / "tokenizer.json").unlink()
    return root


@pytest.fixture
def mini(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniHub]:
    with serve(root) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # This process has imported the client already, with other settings.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield found


def ended(fetch: FetchDir) -> FetchStatus:
    while (status := fetch.status()).state.live or status.state is RunState.QUEUED:
        time.sleep(0.05)
    return status


def test_only_what_is_needed_comes_and_it_is_in_the_list(workspace: Workspace, mini: MiniHub) -> None:
    status = ended(start_fetch(workspace, model_job("https://huggingface.co/owner/small/tree/main")))
    assert (status.state, status.phase, status.error) == (RunState.FINISHED, "end", None)
    assert {path.name for path in Path(status.path).rglob("*")} == {path.name for path in EMBER.iterdir()}
    assert status.done == status.total == sum(path.stat().st_size for path in EMBER.iterdir())
    assert digest(Path(status.path) / "model.safetensors") == digest(EMBER / "model.safetensors")
    assert mini.authorizations == {""}
    (found,) = [item for item in list_models(workspace) if item.where == "huggingface"]
    assert (found.id, found.path, found.complete, found.kind) == ("owner/small", Path(status.path), True, "qwen3")
    assert "owner/small" in [value for _, value in choices(workspace)]
    assert [fetch.job().what for fetch in fetches(workspace, "model")] == ["model"]
    assert fetches(workspace) == []  # the Data tab lists those


def test_a_killed_download_goes_on_where_it_was(workspace: Workspace, mini: MiniHub) -> None:
    first, second = (mini.root / "owner" / "big" / name for name in SHARDS)
    mini.torn[second.name] = TORN
    fetch = start_fetch(workspace, model_job("owner/big"))
    blobs = Path(os.environ["HF_HOME"]) / "hub" / "models--owner--big" / "blobs"
    part = blobs / f"{digest(second)}.incomplete"
    while not (part.exists() and part.stat().st_size > 0 and (blobs / digest(first)).exists()):
        assert fetch.status().error is None
        time.sleep(0.05)
    launch = fetch.launch()
    assert launch is not None
    os.kill(launch.pid, signal.SIGKILL)
    assert ended(fetch).state is RunState.LOST
    assert fetch.status().total > 2 * BIG
    there = part.stat().st_size
    mini.torn.clear()
    mini.sent.clear()
    status = ended(start_fetch(workspace, model_job("owner/big")))
    assert status.state is RunState.FINISHED, status.error
    assert (second.name, there) in mini.sent
    assert first.name not in [name for name, _ in mini.sent]
    assert status.done == status.total
    assert digest(Path(status.path) / second.name) == digest(second)
    assert not part.exists()


def test_a_stop_ends_it_at_once(workspace: Workspace, mini: MiniHub) -> None:
    mini.torn[SHARDS[0]] = 100
    fetch = start_fetch(workspace, model_job("owner/big"))
    assert mini.asked.wait(60)
    assert stop_fetch(fetch).state is RunState.STOPPED
    assert fetch.status().phase == "end"  # its own last word, not that of whoever stopped it


# ---- in this process -------------------------------------------------------------------------------------------------


@pytest.fixture
def here() -> Iterator[None]:
    """Our signal handlers back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fetched(workspace: Workspace, job: FetchJob) -> FetchStatus:
    fetch = new_fetch(workspace, job)
    hub.main(str(fetch.path))
    return FetchStatus.model_validate_json(fetch.status_file.read_bytes())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("owner/pickled", {}, "owner/pickled has no weights in safetensors format"),
        ("owner/torn", {}, "has no tokenizer"),
        ("owner/nothing", {}, "There is no model owner/nothing on Hugging Face, or it is private"),
        ("owner/small", {"revision": "v9"}, "owner/small has no revision v9"),
        ("owner/small", {"endpoint": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached from this machine"),
    ],
)
def test_faults_are_one_sentence(
    workspace: Workspace, mini: MiniHub, name: str, settings: dict[str, Any], words: str
) -> None:
    status = fetched(workspace, model_job(name, **({"endpoint": mini.address} | settings)))
    assert status.state is RunState.FAILED
    assert status.error is not None
    assert words in status.error.message
    assert status.error.field == "model.model_name_or_path"
    assert "\n" not in status.error.message


def leave_part(folder: Path, content: bytes) -> Path:
    part = Path(os.environ["HF_HOME"]) / "hub" / f"models--owner--{folder.name}" / "blobs"
    part.mkdir(parents=True)
    part /= f"{digest(folder / SHARDS[0])}.incomplete"
    part.write_bytes(content)
    return part


@pytest.mark.usefixtures("here")
def test_a_server_that_cannot_go_on_sends_it_again(workspace: Workspace, mini: MiniHub) -> None:
    big = mini.root / "owner" / "big"
    leave_part(big, (big / SHARDS[0]).read_bytes()[:TORN])
    mini.resumes = False
    status = fetched(workspace, model_job("owner/big", endpoint=mini.address))
    assert status.state is RunState.FINISHED, status.error
    assert status.done == status.total
    assert digest(Path(status.path) / SHARDS[0]) == digest(big / SHARDS[0])


@pytest.mark.usefixtures("here")
def test_bytes_that_are_not_what_was_promised_are_thrown_away(workspace: Workspace, mini: MiniHub) -> None:
    part = leave_part(mini.root / "owner" / "big", b"rubbish of an earlier try")
    status = fetched(workspace, model_job("owner/big", endpoint=mini.address))
    assert status.error is not None
    assert f"{SHARDS[0]} of owner/big is not what its hub promised" in status.error.message
    assert not part.exists()


@pytest.mark.usefixtures("here")
def test_an_address_from_a_form_is_told_no_token(
    workspace: Workspace, mini: MiniHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    job = model_job("owner/small", endpoint=mini.address, revision=COMMIT)
    assert fetched(workspace, job).state is RunState.FINISHED
    assert mini.authorizations == {""}
    mini.gated.add("owner/big")
    status = fetched(workspace, model_job("owner/big", endpoint=mini.address))
    assert status.error is not None
    assert "Ask for access on its page" in status.error.message


@pytest.mark.usefixtures("here")
def test_a_full_disk_is_known_before_the_first_byte(
    workspace: Workspace, mini: MiniHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.hardware.disk_free_bytes", lambda _: 2**28 + BIG)
    status = fetched(workspace, model_job("owner/big", endpoint=mini.address))
    assert status.error is not None
    assert "owner/big takes 0.1 GB more" in status.error.message
    assert mini.sent == []


@pytest.mark.usefixtures("here")
def test_offline_is_said_at_once(workspace: Workspace, mini: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status = fetched(workspace, model_job("owner/small", endpoint=mini.address))
    assert status.error is not None
    assert "The hub is switched off" in status.error.message
    assert mini.authorizations == set()


@pytest.mark.usefixtures("here")
def test_modelscope(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that has the real client's arguments and puts the model where the real one does."""
    folder = tmp_path / "modelscope" / "hub" / "models" / "owner" / "small-1___5"

    def snapshot_download(model_id: str, revision: Any, allow_patterns: Any, ignore_patterns: Any, **more: Any) -> str:
        assert (model_id, revision, more["endpoint"], more["token"]) == ("owner/small-1.5", "v1", None, None)
        (progress,) = more["progress_callbacks"]
        shutil.copytree(EMBER, folder)
        for path in EMBER.iterdir():
            bar = progress(path.name, path.stat().st_size)
            bar.update(path.stat().st_size)
            bar.end()
        return str(folder)

    client = ModuleType("modelscope")
    client.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", client)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    status = fetched(workspace, model_job("owner/small-1.5", "modelscope", revision="v1"))
    assert (status.error, status.path) == (None, str(folder))
    assert status.done == status.total == sum(path.stat().st_size for path in EMBER.iterdir())
    (found,) = [item for item in list_models(workspace) if item.where == "modelscope"]
    assert (found.id, found.value) == ("owner/small-1.5", "owner/small-1.5")


@pytest.mark.usefixtures("here")
def test_modelscope_without_its_package(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    status = fetched(workspace, model_job("owner/small", "modelscope"))
    assert status.error is not None
    assert f"-m pip install {modelscope.PIN}" in status.error.message


def test_the_files_of_a_model() -> None:
    names = [
        "a.bin",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "x.py",
        "onnx/model.safetensors",
        "vocab.txt",
    ]
    assert chosen(names, "m") == ["model.safetensors", "vocab.txt"]
    with pytest.raises(DataError, match="no weights in safetensors format"):
        chosen(["a.bin", "onnx/model.safetensors", "config.json"], "m")


def test_one_failure_ends_the_other_threads() -> None:
    meter = hub_model.Meter()
    meter.add(5)
    meter.broken = True
    with pytest.raises(hub_model._Broken):
        meter.add(5)
