"""Fetching datasets with the real `datasets` library: from folders, and over HTTP from a hub on the loopback."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets as hf
import pytest
from minihub import MiniHub, serve

from studio.engine import hub, modelscope
from studio.events import RunState
from studio.fetchdir import FetchDir, FetchJob, FetchStatus, fetches, job_for, job_for_folder, new_fetch
from studio.fetching import start_fetch, stop_fetch
from studio.presets import ROOT
from studio.records import DatasetStore
from studio.workspace import Workspace


def talk(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "你好"}]}


def lines(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """owner/plain (train, test), owner/parts (subsets en, zh), owner/table (parquet), owner/odd, owner/empty, …"""
    root = tmp_path_factory.mktemp("hub")
    lines(root / "owner" / "plain" / "train.jsonl", *map(talk, range(40)))
    lines(root / "owner" / "plain" / "test.jsonl", *map(talk, range(5)))
    parts = root / "owner" / "parts"
    lines(parts / "en" / "train.jsonl", *map(talk, range(3)))
    lines(parts / "zh" / "train.jsonl", *map(talk, range(4)))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("en", "zh"))
    (parts / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    table = root / "owner" / "table"
    table.mkdir()
    columns = {"question": ["1+1?", "2+2?", "?"], "answer": [2, 4, None], "image": [{"bytes": b"x", "path": None}] * 3}
    kinds = hf.Features({"question": hf.Value("string"), "answer": hf.Value("int64"), "image": hf.Image()})
    hf.Dataset.from_dict(columns, kinds).to_parquet(table / "validation.parquet")
    lines(root / "owner" / "odd" / "train.jsonl", {"x": 1, "y": "a"})
    lines(root / "owner" / "torn" / "train.jsonl", *map(talk, range(3)))
    with (root / "owner" / "torn" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": [')
    (root / "owner" / "empty").mkdir()
    lines(root / "owner" / "script" / "data.jsonl", talk(1))
    (root / "owner" / "script" / "script.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    hf.Dataset.from_list([talk(1)]).save_to_disk(root / "owner" / "saved")
    return root


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The engine in this process: with a cache of its own, and with our signal handlers back afterwards."""
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fetched(workspace: Workspace, job: FetchJob) -> tuple[int, FetchStatus]:
    fetch = new_fetch(workspace, job)
    code = hub.main(str(fetch.path))
    return code, FetchStatus.model_validate_json(fetch.status_file.read_bytes())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "settings", "rows"),
    [
        ("plain", {}, 40),
        ("plain", {"split": "test"}, 5),
        ("plain", {"split": "train[:10%]"}, 4),
        ("plain", {"split": "train+test"}, 45),
        ("plain", {"rows": 7}, 7),
        ("plain", {"rows": 1000, "split": "test"}, 5),
        ("parts", {"subset": "zh"}, 4),
        ("parts", {"subset": "zh", "rows": 2}, 2),
    ],
)
def test_folders(workspace: Workspace, root: Path, name: str, settings: dict[str, Any], rows: int) -> None:
    code, status = fetched(workspace, job_for_folder(root / "owner" / name, title="Fetched", **settings))
    assert (code, status.state, status.phase, status.error) == (0, RunState.FINISHED, "end", None)
    info = DatasetStore(workspace.datasets).info(status.dataset)
    assert (info.name, info.rows, info.format, info.kind) == ("fetched", rows, "messages", "import")
    assert info.source.startswith(f"{name} (")
    loaded = DatasetStore(workspace.datasets).load("fetched").rows
    assert loaded[0] == talk(0) | {"origin": "upload"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("rows", [None, 3])
def test_tables(workspace: Workspace, root: Path, rows: int | None) -> None:
    """Numbers are texts, pictures are left out unopened, a row without an answer is skipped and named."""
    code, status = fetched(workspace, job_for_folder(root / "owner" / "table", rows=rows))
    assert (code, status.skipped, [row for row, _ in status.first_skipped]) == (0, 1, [3])
    store = DatasetStore(workspace.datasets)
    assert [row["messages"][1]["content"] for row in store.rows("table")] == ["2", "4"]
    assert store.info("table").source == "table (validation)"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "settings", "field", "words"),
    [
        ("plain", {"split": "nope"}, "data.split", "plain has no split 'nope'. It has train, test."),
        ("plain", {"split": "train[:x"}, "data.dataset", "train[:x"),
        ("plain", {"subset": "en"}, "data.subset", "plain has no subset 'en'. It has default."),
        ("parts", {}, "data.subset", "parts comes in several subsets: en, zh. Choose one."),
        ("empty", {}, "data.dataset", "empty holds no data files"),
        ("odd", {}, "data.dataset", "columns"),
        ("odd", {"mapping": "instruction=x"}, "data.mapping", "output"),
        ("torn", {}, "data.dataset", "The files of torn cannot be read as one table"),
        ("torn", {"rows": 10}, "data.dataset", "The files of torn cannot be read as one table"),
        ("script", {}, "data.dataset", "never run here"),
        ("saved", {}, "data.dataset", "written by save_to_disk"),
        ("missing", {}, "data.dataset", "missing"),
    ],
)
def test_faults_are_one_sentence(
    workspace: Workspace, root: Path, name: str, settings: dict[str, Any], field: str, words: str
) -> None:
    code, status = fetched(workspace, job_for_folder(root / "owner" / name, **settings))
    assert (code, status.state) == (4, RunState.FAILED), status.error
    assert status.error is not None
    assert words in status.error.message
    assert status.error.field == field
    assert "\n" not in status.error.message
    assert list(workspace.datasets.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_rows_that_cannot_be_used_can_be_refused(workspace: Workspace, root: Path) -> None:
    code, status = fetched(workspace, job_for_folder(root / "owner" / "table", strict=True))
    assert code == 4
    assert status.error is not None
    assert "row 3" in status.error.message


@pytest.mark.usefixtures("here")
def test_a_stop_is_obeyed(workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "WRITE_EVERY_S", 0.0)
    fetch = new_fetch(workspace, job_for_folder(root / "owner" / "plain"))
    fetch.request_stop()
    monkeypatch.setattr("studio.records.importing._PROGRESS_EVERY", 1)
    assert hub.main(str(fetch.path)) == 3
    assert fetch.status().state is RunState.STOPPED
    assert list(workspace.datasets.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_modelscope_without_its_package(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if not installed, also where it is
    code, status = fetched(workspace, job_for("owner/plain", "modelscope"))
    assert code == 4
    assert status.error is not None
    assert f"-m pip install {modelscope.PIN}" in status.error.message


def test_the_pin_is_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["optional-dependencies"]["hub"] == [modelscope.PIN]


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mini(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniHub]:
    with serve(root) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text("hf_stored_by_somebody", encoding="utf-8")
        yield found


def ended(fetch: FetchDir) -> FetchStatus:
    while (status := fetch.status()).state.live or status.state is RunState.QUEUED:
        time.sleep(0.05)
    return status


def test_over_http(workspace: Workspace, mini: MiniHub) -> None:
    whole = start_fetch(workspace, job_for("owner/plain"))
    part = start_fetch(workspace, job_for("https://huggingface.co/datasets/owner/parts/viewer", subset="zh", rows=2))
    assert ended(whole).dataset == "plain", ended(whole).error
    assert ended(part).dataset == "parts", ended(part).error
    store = DatasetStore(workspace.datasets)
    assert (store.info("plain").rows, store.info("plain").source) == (40, "owner/plain (train)")
    assert (store.info("parts").rows, store.info("parts").source) == (2, "owner/parts (zh, train)")
    assert {fetch.id for fetch in fetches(workspace)} == {whole.id, part.id}
    assert mini.authorizations == {""}  # a stored token is not ours to send


def test_http_faults(workspace: Workspace, mini: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    mini.gated.add("owner/plain")
    gated = start_fetch(workspace, job_for("owner/plain"))
    missing = start_fetch(workspace, job_for("owner/nothing"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    unreached = start_fetch(workspace, job_for("owner/plain"))
    for fetch, words in (
        (gated, "Ask for access on its page"),
        (missing, "There is no dataset owner/nothing on Hugging Face, or it is private"),
        (unreached, "Hugging Face cannot be reached from this machine"),
    ):
        status = ended(fetch)
        assert status.state is RunState.FAILED
        assert status.error is not None
        assert words in status.error.message
    assert list(workspace.datasets.iterdir()) == []


def test_the_token_comes_from_the_environment_and_is_written_nowhere(
    workspace: Workspace, mini: MiniHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini.gated.add("owner/plain")
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    fetch = start_fetch(workspace, job_for("owner/plain"))
    assert ended(fetch).dataset == "plain", ended(fetch).error
    assert "Bearer hf_from_the_environment" in mini.authorizations
    for path in (path for path in workspace.path.rglob("*") if path.is_file()):
        assert b"hf_from" not in path.read_bytes()


def test_a_download_that_hangs_is_stopped_and_one_that_is_killed_is_lost(workspace: Workspace, mini: MiniHub) -> None:
    mini.hanging.add("train.jsonl")
    fetch = start_fetch(workspace, job_for("owner/plain", rows=5))
    assert mini.asked.wait(60)
    assert stop_fetch(fetch, stop_grace=0.2).state is RunState.STOPPED
    mini.asked.clear()
    fetch = start_fetch(workspace, job_for("owner/plain", rows=5))
    assert mini.asked.wait(60)
    launch = fetch.launch()
    assert launch is not None
    os.kill(launch.pid, signal.SIGKILL)
    assert ended(fetch).state is RunState.LOST
    assert list(workspace.datasets.iterdir()) == []
