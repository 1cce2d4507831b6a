"""What every tier shares: the folder is the tier, nothing leaks in from outside, paths are as odd as people's are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from studio import hardware
from studio.workspace import Workspace

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TESTS = Path(__file__).resolve().parent
TIERS = ("unit", "ui", "engine", "e2e", "gpu")
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Before any test module is imported: libraries read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    GRADIO_ANALYTICS_ENABLED="False",
    NO_PROXY="*",
)
# What this machine has downloaded must not change what a test sees.
_CACHE = tempfile.TemporaryDirectory(prefix="crucible-tests-")
os.environ.update(HF_HOME=f"{_CACHE.name}/huggingface", MODELSCOPE_CACHE=f"{_CACHE.name}/modelscope")
for _name in (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "CRUCIBLE_WORKSPACE",
    "CRUCIBLE_MODELS",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
):
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and skip those that need a GPU where there is none."""
    no_gpu = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    gpus: tuple[hardware.Gpu, ...] | None = None
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
        if item.get_closest_marker("gpu"):
            gpus = hardware.find_gpus() if gpus is None else gpus
            if not gpus:
                item.add_marker(no_gpu)


@pytest.fixture
def weird_path(tmp_path: Path) -> Path:
    """An empty folder with spaces, quotes and Chinese in its name."""
    path = tmp_path / 'my "odd" it\'s 丹炉 $HOME & co'
    path.mkdir()
    return path


@pytest.fixture
def workspace(weird_path: Path) -> Workspace:
    """An empty workspace in such a folder."""
    return Workspace(weird_path)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser."""
    found = hardware.find_chromium()
    if found is None:
        pytest.skip("no Chromium: set CHROMIUM to its path, or let `python launch.py test` install it")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for the whole session; each test opens its own context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        yield started
        started.close()
