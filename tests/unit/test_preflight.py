"""Everything that is said before a process is started: one test for each finding, on machines that are made up."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_model_library import make

from studio import hardware, preflight
from studio.availability import Machine, defaults_for, installed, options, usable
from studio.config import RunConfig
from studio.estimate import Advice
from studio.hardware import Gpu, Hardware
from studio.schema import build, merge
from studio.workspace import Workspace

GB = 10**9
CPU = Hardware(8, 0.0, 32 * GB, 24 * GB, 500 * GB, (), None)
MODEL = "model.model_name_or_path"


def card(name: str, memory: int, capability: tuple[int, int] | None, free: int | None = None) -> Hardware:
    return replace(CPU, gpus=(Gpu(0, name, memory * GB, (memory if free is None else free) * GB, "570", capability),))


T4, H200 = card("Tesla T4", 16, (7, 5)), card("NVIDIA H200", 141, (9, 0))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"instruction": f"Question {n}?", "output": f"Answer {n}."}) for n in range(200)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch could use a GPU, every package is there, nothing is hidden."""
    monkeypatch.setattr(hardware, "torch_has_cuda", lambda: True)
    monkeypatch.setattr("studio.availability.installed", lambda package: True)
    monkeypatch.setattr("studio.preflight.installed", lambda package: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


Say = Callable[..., list[Advice]]


@pytest.fixture
def say(rows: Path, workspace: Workspace) -> Say:
    """say(machine, **{"field": value}) -> findings for the built-in model and two hundred good rows."""

    def findings(machine: Hardware = CPU, **settings: Any) -> list[Advice]:
        layer = {MODEL: "crucible/ember", "data.dataset": str(rows), "train.save_steps": 100_000}
        return preflight.preflight(build(RunConfig, merge(RunConfig, layer | settings)), workspace, machine)

    return findings


def said(found: list[Advice], field: str) -> str:
    return "\n".join(f"{item.level}: {item.message}; {item.fix}" for item in found if item.field == field)


def test_nothing_is_said_where_nothing_is_wrong(say: Say) -> None:
    assert say() == []
    assert say(H200, method="full") == []


def without(*packages: str) -> Callable[[pytest.MonkeyPatch], None]:
    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("availability", "preflight"):
            monkeypatch.setattr(f"studio.{module}.installed", lambda package: package not in packages)

    return change


CASES: list[tuple[str, Any, Hardware, dict[str, Any], str, str]] = [
    ("no folder", None, CPU, {MODEL: "/no/such/model"}, MODEL, "error: .*does not exist"),
    ("a name", None, CPU, {MODEL: "crucible/embre"}, MODEL, "error: .*did you mean"),
    ("offline", None, CPU, {MODEL: "owner/name"}, MODEL, "error: owner/name is not on this machine, and the hub is"),
    (
        "download",
        lambda m: m.delenv("HF_HUB_OFFLINE"),
        CPU,
        {MODEL: "owner/name"},
        MODEL,
        "info: owner/name is loaded from the hub; the first start downloads it",
    ),
    (
        "known download",
        lambda m: m.delenv("HF_HUB_OFFLINE"),
        CPU,
        {MODEL: "Qwen/Qwen2.5-0.5B-Instruct"},
        MODEL,
        "info: .* is loaded from the hub; the first start downloads 1.0 GB",
    ),
    (
        "no room for it",
        lambda m: (m.delenv("HF_HUB_OFFLINE"), m.setattr(hardware, "disk_free_bytes", lambda _: GB // 2)),
        CPU,
        {MODEL: "Qwen/Qwen2.5-0.5B-Instruct"},
        MODEL,
        "error: downloading Qwen/Qwen2.5-0.5B-Instruct takes 1.0 GB, and 0.5 GB are free",
    ),
    (
        "remote code",
        None,
        CPU,
        {MODEL: "baichuan-inc/Baichuan2-13B-Chat"},
        MODEL,
        "error: baichuan-inc/Baichuan2-13B-Chat needs Python code of its own, which is not run",
    ),
    ("template", None, CPU, {"model.chat_template": "chatlm"}, "model.chat_template", "error: .*chatml"),
    (
        "template of a model that is not here",
        lambda m: m.delenv("HF_HUB_OFFLINE"),
        CPU,
        {MODEL: "owner/name", "model.chat_template": "chatlm"},
        "model.chat_template",
        "error: .*chatml",
    ),
    ("adapter", None, CPU, {"model.adapter": "/no/adapter"}, "model.adapter", "error: /no/adapter holds no adapter"),
    (
        "qlora without its package",
        without("bitsandbytes"),
        CPU,
        {"method": "qlora"},
        "method",
        "error: qlora needs the package bitsandbytes, which is not installed; install bitsandbytes, or choose lora",
    ),
    (
        "8 bits without the package",
        without("bitsandbytes"),
        H200,
        {"method": "lora", "train.optim": "paged_adamw_32bit"},
        "train.optim",
        "error: paged_adamw_32bit needs the package bitsandbytes, .*choose adamw_torch",
    ),
    (
        "flash attention without its package",
        without("flash_attn", "kernels"),
        H200,
        {"model.attn_implementation": "flash_attention_2"},
        "model.attn_implementation",
        "error: flash_attention_2 needs the package flash_attn, .*choose auto",
    ),
    (
        "flash attention on a CPU",
        None,
        CPU,
        {"model.attn_implementation": "flash_attention_2"},
        "model.attn_implementation",
        "error: flash_attention_2 needs a GPU and this machine has none; choose auto",
    ),
    (
        "flash attention on an old card",
        None,
        T4,
        {"model.attn_implementation": "flash_attention_2"},
        "model.attn_implementation",
        "error: flash_attention_2 needs compute capability 8.0, and Tesla T4 has 7.5; choose auto",
    ),
    (
        "flash attention in 32 bits",
        None,
        H200,
        {"model.attn_implementation": "flash_attention_2", "model.dtype": "float32"},
        "model.dtype",
        "error: flash_attention_2 computes in 16 bits only, and the precision is float32",
    ),
    ("float16 on a CPU", None, CPU, {"model.dtype": "float16"}, "model.dtype", "error: float16 needs a GPU and"),
    (
        "bfloat16 on an old card",
        None,
        T4,
        {"model.dtype": "bfloat16"},
        "model.dtype",
        "warning: bfloat16 is many times slower here: Tesla T4 has 7.5 and only imitates it; choose float16",
    ),
    (
        "4 bits in bfloat16 on an old card",
        None,
        T4,
        {"quantization.bnb_4bit_compute_dtype": "bfloat16"},
        "quantization.bnb_4bit_compute_dtype",
        "warning: bfloat16 is many times slower",
    ),
    (
        "paging on a CPU",
        None,
        CPU,
        {"train.optim": "paged_adamw_8bit"},
        "train.optim",
        "info: paged optimizers do not page on a CPU; adamw_torch is faster",
    ),
    (
        "an idle card",
        lambda m: m.setattr(hardware, "torch_has_cuda", lambda: False),
        H200,
        {},
        "method",
        "warning: the NVIDIA H200 stays idle: the installed PyTorch is a build without CUDA; run python launch.py",
    ),
    (
        "a card others use",
        None,
        card("NVIDIA L4", 24, (8, 9), free=10),
        {},
        MODEL,
        r"warning: other programs hold 14.0 GB of NVIDIA L4; end them \(nvidia-smi",
    ),
    (
        "disk nearly full",
        None,
        replace(CPU, disk_free_bytes=100 * 2**20),
        {},
        "workspace",
        "error: only 100 MB are free in ",
    ),
    (
        "no room for checkpoints",
        None,
        replace(CPU, disk_free_bytes=GB // 4),
        {"method": "full", "train.save_steps": 1, "train.save_total_limit": 9},
        "workspace",
        r"error: the run writes about 0\.\d GB \(10 checkpoints of 0.1 GB and the result\), and 0.2 GB are free",
    ),
    ("no dataset", None, CPU, {"data.dataset": "nowhere"}, "data.dataset", "error: "),
    ("a wrong mapping", None, CPU, {"data.mapping": "alpacca"}, "data.mapping", "error: .*alpaca"),
    ("too few updates", None, CPU, {"train.max_steps": 3}, "train.num_train_epochs", "warning: only 3 optimizer"),
    (
        "too many updates",
        None,
        CPU,
        {"data.max_samples": 2, "train.num_train_epochs": 100},
        "train.num_train_epochs",
        "warning: 100 updates on 2 different rows",
    ),
    (
        "no validation rows",
        None,
        CPU,
        {"data.max_samples": 1, "data.validation_share": 0.1},
        "data.validation_share",
        "warning: no row is left for the evaluation loss",
    ),
    (
        "no validation rows where they decide",
        None,
        CPU,
        {"data.max_samples": 1, "data.validation_share": 0.1, "train.load_best_model_at_end": True},
        "data.validation_share",
        "error: no row is left for the evaluation loss; .*turn off early stopping",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_each_finding(say: Say, monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...]) -> None:
    _, change, machine, settings, field, words = case
    if change:
        change(monkeypatch)
    found = say(machine, **settings)
    matching = [item for item in found if item.field == field]
    assert matching, found
    pattern = re.compile(words)
    assert any(pattern.search(f"{item.level}: {item.message}; {item.fix}") for item in matching), said(found, field)
    levels = [("error", "warning", "info").index(item.level) for item in found]
    assert levels == sorted(levels)
    if words.startswith("error"):
        assert found[0].level == "error"


# ---- memory: a model folder whose weights are made up ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "method", "gigabytes", "words"),
    [
        (card("NVIDIA L4", 24, (8, 9)), "lora", 30, "error: the weights alone need 30.0 GB, and NVIDIA L4 has 24.0 GB"),
        (card("NVIDIA L4", 24, (8, 9)), "full", 15, "error: the weights alone need 30.0 GB, and NVIDIA L4 has 24.0 GB"),
        (card("NVIDIA L4", 24, (8, 9)), "qlora", 30, ""),
        (card("NVIDIA L4", 24, (8, 9), free=3), "qlora", 16, "and only 3.0 GB of NVIDIA L4 are free; end the programs"),
        (CPU, "lora", 40, "error: the weights alone need 40.0 GB, and this machine has 32.0 GB"),
        (CPU, "lora", 28, "warning: the weights alone need 28.0 GB, and only 24.0 GB of memory are free"),
        (CPU, "qlora", 40, ""),
    ],
)
def test_weights_that_do_not_fit(
    say: Say, monkeypatch: pytest.MonkeyPatch, machine: Hardware, method: str, gigabytes: int, words: str
) -> None:
    known = preflight.model_facts(Path())
    monkeypatch.setattr(
        preflight, "model_facts", lambda _: replace(known, dtype="bfloat16", weight_bytes=gigabytes * GB)
    )
    assert words in said(say(machine, method=method), MODEL)
    assert bool(words) == bool(said(say(machine, method=method), MODEL))


@pytest.mark.parametrize(
    "case",
    [
        (
            "gptq",
            "qlora",
            "",
            r"error: the weights of q are quantised already (gptq), and qlora needs",
        ),
        ("gptq", "full", "", "needs them in 16 bits"),
        ("gptq", "lora", "gptqmodel", "error: q (gptq) needs the package gptqmodel"),
        ("gptq", "lora", "", ""),
        ("bitsandbytes", "qlora", "", ""),
    ],
)
def test_weights_somebody_quantised(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, str, str]
) -> None:
    how, method, missing, words = case
    without(missing)(monkeypatch)
    folder = make(tmp_path / "q", quantization_config={"quant_method": how})
    found = said(say(method=method, **{MODEL: str(folder)}), MODEL)
    assert words in found
    assert "quantised" not in found or words


def test_adapters_on_experts_have_no_dropout(say: Say, tmp_path: Path) -> None:
    folder = make(tmp_path / "moe", num_experts=8)
    layer = {"model.model_name_or_path": str(folder), "method": "lora", "lora.lora_dropout": 0.05}
    assert said(say(**layer), "lora.lora_dropout").startswith("error: moe has 8 experts")
    for change in ({"lora.lora_dropout": 0.0}, {"method": "full"}, {"lora.target_modules": ["q_proj"]}):
        assert said(say(**layer | change), "lora.lora_dropout") == ""


def test_a_large_dataset_is_not_waited_for(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.records.sources.INLINE_BYTES", 10)
    assert said(say(), "data.dataset").startswith("info: the dataset is large and has not been counted yet")


def test_the_name_of_an_earlier_run_is_told(say: Say, workspace: Workspace) -> None:
    (workspace.runs / "20260101-000000_mine").mkdir()
    assert said(say(name="mine"), "name").startswith("info: there is a run named mine already")
    assert said(say(name="other"), "name") == ""
    assert said(say(), "name") == ""


def test_it_loads_nothing_heavy(say: Say) -> None:
    heavy = {"torch", "transformers", "bitsandbytes", "datasets", "accelerate", "peft"}
    before = heavy & set(sys.modules)
    say()
    assert heavy & set(sys.modules) == before


# ---- what a machine offers, and what suits it ------------------------------------------------------------------------


def machine(found: Hardware, *missing: str) -> Machine:
    return Machine(usable(found).gpus, lambda package: package not in missing)


@pytest.mark.parametrize(
    ("found", "missing", "unavailable"),
    [
        (H200, (), {}),
        (H200, ("flash_attn",), {}),  # transformers can fetch a kernel instead
        (H200, ("flash_attn", "kernels"), {"model.attn_implementation": {"flash_attention_2"}}),
        (CPU, (), {"model.attn_implementation": {"flash_attention_2"}, "model.dtype": {"float16"}}),
        (
            T4,
            (),
            {
                "model.attn_implementation": {"flash_attention_2"},
                "model.dtype": {"bfloat16"},
                "quantization.bnb_4bit_compute_dtype": {"bfloat16"},
            },
        ),
        (card("unknown", 8, None), (), {}),
    ],
)
def test_choices_a_machine_does_not_have(
    found: Hardware, missing: tuple[str, ...], unavailable: dict[str, set[str]]
) -> None:
    seen = options(machine(found, *missing))
    assert {path: set(reasons) for path, reasons in seen.items()} == unavailable
    assert all(reason.text and reason.fix for reasons in seen.values() for reason in reasons.values())


def test_without_bitsandbytes_nothing_with_few_bits_is_offered() -> None:
    seen = options(machine(H200, "bitsandbytes"))
    assert set(seen) == {"method", "train.optim"}
    assert set(seen["method"]) == {"qlora"}
    assert {"adamw_8bit", "paged_adamw_32bit", "lion_8bit"} <= set(seen["train.optim"])
    assert not {"adamw_torch", "adafactor", "sgd"} & set(seen["train.optim"])


@pytest.mark.parametrize(
    ("found", "missing", "expected"),
    [
        (CPU, (), {"model.dtype": "auto", "train.optim": "adamw_torch"}),
        (T4, (), {"model.dtype": "float16", "quantization.bnb_4bit_compute_dtype": "float16"}),
        (H200, (), {"model.dtype": "bfloat16", "quantization.bnb_4bit_compute_dtype": "bfloat16"}),
        (CPU, ("bitsandbytes",), {"method": "lora"}),
    ],
)
def test_defaults_that_suit_a_machine(
    say: Say, found: Hardware, missing: tuple[str, ...], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without(*missing)(monkeypatch)
    defaults = defaults_for(machine(found, *missing))
    assert expected.items() <= defaults.items()
    assert say(found, **defaults) == []


def test_gpus_that_cannot_be_used_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    two = replace(CPU, gpus=(H200.gpus[0], replace(T4.gpus[0], index=1)))
    assert usable(two).gpu == H200.gpus[0]
    for visible, names in (
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA H200"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["NVIDIA H200"]),
        ("GPU-8a4f", ["NVIDIA H200", "Tesla T4"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [gpu.name for gpu in usable(two).gpus] == names
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(hardware, "torch_has_cuda", lambda: False)
    assert usable(two).gpus == ()


def test_packages_are_looked_up_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = "transformers" in sys.modules
    assert installed("transformers")
    assert ("transformers" in sys.modules) == before
    assert not installed("no_such_package")
    assert not installed("no_such.package")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert not installed("deepspeed")
