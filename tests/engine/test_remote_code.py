"""A model that brings its own code: refused in one sentence, unless whoever started the program trusts it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import Engine, MakeRun, losses

from studio import remote_code
from studio.events import ExitCode
from studio.model_files import faults

CONFIGURATION = """from transformers import LlamaConfig


class OddConfig(LlamaConfig):
    model_type = "odd_llama"
"""
MODELING = """from transformers import LlamaForCausalLM

from .configuration_odd import OddConfig


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""


@pytest.fixture
def odd(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny Llama under a model type nobody knows, with the code that reads it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "odd"
    shutil.copytree(tiny_llama, folder)
    (folder / "configuration_odd.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_odd.py").write_text(MODELING, encoding="utf-8")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {
        "model_type": "odd_llama",
        "architectures": ["OddForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_odd.OddConfig",
            "AutoModelForCausalLM": "modeling_odd.OddForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_its_code_is_not_run_unasked(odd: Path, make_run: MakeRun, engine: Engine) -> None:
    (odd / "modeling_odd.py").write_text("raise SystemExit('this must not run')\n", encoding="utf-8")
    run = make_run(model=odd)
    assert engine(run) == ExitCode.BAD_INPUT
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert status.error.field == "model.model_name_or_path"
    assert "needs Python code of its own" in str(status.error)
    assert remote_code.OPTION in str(status.error)


def test_with_the_option_it_trains(
    odd: Path, make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote_code.VARIABLE, "1")
    assert list(faults(odd)) == []
    own, plain = make_run(model=odd), make_run()
    assert engine(own) == engine(plain) == 0
    assert losses(own) == losses(plain)


def test_the_verbs_that_load_models_have_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.cli import main

    monkeypatch.setenv(remote_code.VARIABLE, "0")
    assert main(["train", "no_such_preset_e3", remote_code.OPTION]) == ExitCode.BAD_INPUT
    assert remote_code.allowed()
