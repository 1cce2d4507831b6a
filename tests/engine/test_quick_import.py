"""What a start of the engine saves: searches for garbage while libraries are imported, and torch's compiler."""

from __future__ import annotations

import gc
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.engine import quick_import
from studio.engine.quick_import import quickly, without_collecting
from studio.engine.ticker import importing

ROOT = Path(__file__).resolve().parents[2]
START = """
import gc, sys
searches = []
gc.callbacks.append(lambda phase, info: searches.append(phase))
from studio.engine.quick_import import quickly
searches.clear()
with quickly():
    from studio.engine import backend
print(len(searches), gc.isenabled(), gc.get_freeze_count() > 100_000, "torch._inductor.compile_fx" in sys.modules)
"""


def test_a_chat_server_is_imported_without_searches_and_without_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["0", "True", "True", "False"], done.stderr[-2000:]


def test_garbage_is_searched_for_again_also_after_an_import_that_failed() -> None:
    def fail() -> None:
        with without_collecting():
            assert not gc.isenabled()
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()


def test_a_training_imports_without_searches() -> None:
    journal: Any = SimpleNamespace(progress=lambda *_: None)
    with importing(journal):
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_had_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with without_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_what_many_modules_brought_is_left_out_of_later_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    with quickly():  # the libraries are there already
        pass
    assert frozen == []
    with without_collecting():
        for number in range(quick_import.MANY):
            monkeypatch.setitem(sys.modules, f"nothing_{number}", types.ModuleType("nothing"))
    assert frozen == [True]
