"""Every hyper-parameter changes what the engine does: read from what was trained, not from what was accepted."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import torch
from adapters import save_adapter
from peft import PeftModel
from pydantic import Field
from safetensors.torch import load_file
from tiny import Engine, MakeRun, events_of, losses
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer, get_scheduler
from transformers.models.llama import modeling_llama
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, TrainingArguments

from studio.config import MergeConfig, QuantizationSection, RunConfig, TrainSection
from studio.engine import merge, saving
from studio.engine.adapter import open_adapter
from studio.engine.failure import EngineError
from studio.engine.model import Loaded, Precision, load
from studio.engine.trainer import training_arguments
from studio.optimizers import OPTIMIZER_SPELLINGS, SCHEDULE_SETTINGS, Optimizer, Scheduler, usual_settings
from studio.presets import ModelRef
from studio.rundir import RunDir
from studio.schema import Ui, build, walk
from studio.workspace import Workspace

MINIMAL: dict[str, Any] = {"model_name_or_path": "crucible/ember", "dataset": "identity", "method": "lora"}
BEST: dict[str, Any] = {
    "data.validation_share": 0.3,
    "train.eval_steps": 2,
    "train.max_steps": 40,
    "train.learning_rate": 0.05,  # far too high: the validation loss soon rises
    "train.load_best_model_at_end": True,
    "early_stopping.early_stopping_patience": 2,
}
IDS = torch.tensor([[7, 40, 41, 99, 12, 3]])


def arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    """What the trainer is given for a configuration."""
    ref = ModelRef("m", "m", local=True)
    loaded = Loaded(ref, None, None, Precision("cpu", torch.float32), torch.float32)  # type: ignore[arg-type]
    return training_arguments(config, folder, loaded, validate=True)


def weights(run: RunDir, folder: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(run.path / folder / "adapter_model.safetensors")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


def failure(run: RunDir) -> tuple[str, str]:
    """(field, sentence) of the error a run ended with."""
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    return status.error.field, status.error.message


# ---- optimizers and schedules -----------------------------------------------------------------------------------


def one_step(name: str, folder: Path) -> bool:
    """True if transformers makes this optimizer here and two steps of it move a weight."""
    options = TrainingArguments(output_dir=str(folder), optim=name, learning_rate=0.1, use_cpu=True)
    layer = torch.nn.Linear(8, 8)
    before = layer.weight.detach().clone()
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(options, layer)  # type: ignore[arg-type]
    optimizer = kind(layer.parameters(), **settings)
    for _ in range(2):
        layer(torch.ones(1, 8)).sum().backward()
        optimizer.step()
    return not torch.equal(before, layer.weight)


def test_every_optimizer_of_the_library_that_needs_nothing_more_is_on_offer(tmp_path: Path) -> None:
    found = set()
    for name in OptimizerNames:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # paged ones say that a CPU has no pages
                assert one_step(name.value, tmp_path), name
        except (ImportError, ValueError):  # the package it needs, or the values of its own
            continue
        found.add(name.value)
    spelled = {theirs for theirs, _ in OPTIMIZER_SPELLINGS} & {name.value for name in OptimizerNames}
    assert found == set(get_args(Optimizer)) | spelled


def test_every_schedule_of_the_library_that_needs_no_evaluation_is_on_offer() -> None:
    watching = {SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY}
    assert set(get_args(Scheduler)) == {kind.value for kind in SchedulerType} - {kind.value for kind in watching}


def rates(schedule: str, given: dict[str, Any], steps: int = 100, warmup: int = 10) -> list[float]:
    """The learning rate of each step, as a share of the highest."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, warmup, steps, usual_settings(schedule, given, steps))
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", get_args(Scheduler))
def test_every_schedule_runs_with_its_usual_settings(schedule: str) -> None:
    curve = rates(schedule, {})
    assert max(curve) == pytest.approx(1.0, abs=0.01)
    assert all(rate >= 0 for rate in curve)


@pytest.mark.parametrize(
    ("schedule", "given"),
    [
        ("cosine", {"num_cycles": 2}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.5}),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.5}),
        ("cosine_warmup_with_min_lr", {"warmup_lr_rate": 0.5}),
        ("warmup_stable_decay", {"num_decay_steps": 50}),
        ("warmup_stable_decay", {"min_lr_ratio": 0.5}),
        ("warmup_stable_decay", {"decay_type": "linear"}),
        ("warmup_stable_decay", {"warmup_type": "cosine"}),
        ("inverse_sqrt", {"timescale": 40}),
        ("polynomial", {"power": 3}),
        ("polynomial", {"lr_end": 0.25}),
    ],
)
def test_every_setting_changes_its_schedule(schedule: Scheduler, given: dict[str, Any]) -> None:
    assert rates(schedule, given) != rates(schedule, {})
    assert set(given) <= set(SCHEDULE_SETTINGS[schedule])


def test_the_usual_settings_are_what_their_help_says() -> None:
    assert rates("cosine_with_min_lr", {})[-1] == pytest.approx(0.1, abs=0.01)
    curve = rates("warmup_stable_decay", {})
    assert curve[10:90] == [1.0] * 80
    assert curve[99] < 0.1


def test_the_schedule_is_followed(make_run: MakeRun, engine: Engine) -> None:
    settings = {
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": "num_cycles=2",
        "max_steps": 8,
        "warmup_steps": 2,
    }
    run = make_run(**{f"train.{name}": value for name, value in settings.items()})
    assert engine(run) == 0
    followed = [point.learning_rate for point in events_of(run, "log")]
    expected = rates("cosine_with_restarts", {"num_cycles": 2}, steps=9, warmup=2)
    assert followed[0] == 0
    assert followed[2] == pytest.approx(1e-3)
    assert followed[5] == pytest.approx(1e-3)  # the restart
    assert len(expected) == 9


# ---- from the configuration to the trainer ----------------------------------------------------------------------


class MoreTrain(TrainSection):
    """The optimisation and one thing more."""

    adam_epsilon: Annotated[float, Field(gt=0, lt=1), Ui(label="Adam epsilon")] = 1e-8
    """Keeps the step finite where gradients are tiny."""


class MoreConfig(RunConfig):
    """A configuration with a field more."""

    train: MoreTrain = MoreTrain()


OWN = {"optim": "lion_8bit", "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": "power=2"}


# Trackers stand behind a guard of their own (tests/engine/test_monitor_numbers.py).
PASSED_ON = [spec for spec in walk(MoreConfig) if spec.section == "train" and spec.name != "report_to"]


@pytest.mark.parametrize("spec", PASSED_ON, ids=lambda spec: spec.name)
def test_every_field_of_the_optimisation_reaches_the_trainer(spec: Any, tmp_path: Path) -> None:
    value = OWN.get(spec.name, {"bool": not spec.default, "int": 7, "float": 0.25}.get(spec.kind))
    settings = MINIMAL | {"lr_scheduler_type": "polynomial", "validation_share": 0.1, spec.name: value}
    found = getattr(arguments(build(MoreConfig, settings), tmp_path), spec.name)
    if spec.name == "lr_scheduler_kwargs":
        assert found == {"power": 2}
    else:
        assert getattr(found, "value", found) == value


EFFECTS: list[dict[str, Any]] = [
    {"train.learning_rate": 2e-3},
    {"train.adam_beta1": 0.5},
    {"train.adam_beta2": 0.9},
    {"train.weight_decay": 0.5},
    {"train.max_grad_norm": 0.01},
    {"train.warmup_steps": 0},
    {"train.seed": 7},
    {"train.neftune_noise_alpha": 5},
    {"lora.lora_alpha": 64},
    {"lora.lora_dropout": 0.5},
    {"lora.use_rslora": True},
    {"lora.use_dora": True},
    {"lora.init_lora_weights": "gaussian"},
    {"lora.r": 4},
]


def test_each_setting_changes_what_is_learned_and_nothing_else_does(make_run: MakeRun, engine: Engine) -> None:
    def trained(changes: dict[str, Any]) -> str:
        run = make_run("lora", **{"train.max_steps": 3, **changes})
        assert engine(run) == 0
        return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()

    found = [trained(changes) for changes in [{}, *EFFECTS, {"train.dataloader_num_workers": 1}]]
    assert found[-1] == found[0]
    twice = {digest for digest, count in Counter(found[:-1]).items() if count > 1}
    assert not [changes for changes, digest in zip(EFFECTS, found[1:-1], strict=True) if digest in twice]


def test_neftune_disturbs_the_training_and_not_the_evaluation(make_run: MakeRun, engine: Engine) -> None:
    runs = [
        make_run(**{"train.max_steps": 1, "train.learning_rate": 1e-12, "data.validation_share": 0.3} | noise)
        for noise in ({}, {"train.neftune_noise_alpha": 50})
    ]
    assert [engine(run) for run in runs] == [0, 0]
    quiet, noisy = runs
    assert losses(noisy)[1] != pytest.approx(losses(quiet)[1], rel=1e-4)
    assert events_of(noisy, "eval")[-1].eval_loss == pytest.approx(events_of(quiet, "eval")[-1].eval_loss, rel=1e-6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a block's MLP and the fused attention were computed."""
    calls: Counter[str] = Counter()
    mlp, fused = modeling_llama.LlamaMLP.forward, torch.nn.functional.scaled_dot_product_attention

    def count(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", count("mlp", mlp))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count("fused", fused))
    return calls


def test_checkpointing_computes_every_block_again_and_eager_attention_is_not_fused(
    make_run: MakeRun, engine: Engine, counted: Counter[str]
) -> None:
    plain: dict[str, Any] = {"train.max_steps": 2, "data.packing": False}
    found = {}
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "checkpointed": {"train.gradient_checkpointing": True},
        "eager": {"model.attn_implementation": "eager"},
    }
    for name, changes in variants.items():
        counted.clear()
        assert engine(make_run("lora", **plain | changes)) == 0
        found[name] = dict(counted)
    assert found["checkpointed"]["mlp"] == 2 * found["plain"]["mlp"] == 2 * 2 * 2  # blocks, steps
    assert found["plain"]["fused"] > 0
    assert "fused" not in found["eager"]


def test_the_4_bit_settings_reach_every_packed_layer(tiny_llama: Path) -> None:
    ref = ModelRef(str(tiny_llama), str(tiny_llama), local=True)

    def first_layer(**changes: Any) -> tuple[Any, ...]:
        section = QuantizationSection(**changes)
        config = build(RunConfig, MINIMAL | {"method": "qlora", "quantization": section.model_dump()})
        layer: Any = load(config, ref).model.get_base_model().model.layers[0].mlp.up_proj.base_layer
        return layer.weight.quant_type, layer.weight.quant_state.nested, layer.compute_dtype

    assert first_layer() == ("nf4", True, torch.float32)
    changed = first_layer(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False, bnb_4bit_compute_dtype="bfloat16")
    assert changed == ("fp4", False, torch.bfloat16)


# ---- starts of an adapter, whole layers -------------------------------------------------------------------------


@pytest.fixture
def trained_logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of the model in training, taken when its result is saved."""
    found: list[torch.Tensor] = []
    original = saving.save_result

    def save(run: RunDir, config: RunConfig, loaded: Loaded, card: str) -> Any:
        found.append(logits(loaded.model))
        return original(run, config, loaded, card)

    monkeypatch.setattr(saving, "save_result", save)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"lora.init_lora_weights": "pissa"},
        {"lora.init_lora_weights": "pissa_niter_16"},
        {"lora.init_lora_weights": "olora", "lora.use_rslora": True},
    ],
    ids=lambda changes: changes["lora.init_lora_weights"],
)
def test_an_adapter_that_changed_its_base_is_saved_for_the_original(
    make_run: MakeRun, engine: Engine, tiny_llama: Path, trained_logits: list[torch.Tensor], changes: dict[str, Any]
) -> None:
    run = make_run("lora", **changes, **{"train.learning_rate": 1e-2, "train.save_steps": 3})
    assert engine(run) == 0
    settings = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["init_lora_weights"], settings["r"]) == (True, 32)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    untrained = logits(base)
    assert not torch.allclose(trained_logits[0], untrained, atol=1e-2)
    assert torch.allclose(trained_logits[0], logits(PeftModel.from_pretrained(base, run.adapter)), atol=2e-5)

    with pytest.raises(EngineError) as caught:  # merged or chatted with, it would be nonsense
        open_adapter(str(run.checkpoints / "checkpoint-3"))
    assert "to resume its run" in caught.value.error.message


def test_a_start_that_changed_its_base_resumes(make_run: MakeRun, engine: Engine) -> None:
    settings = {"lora.init_lora_weights": "pissa_niter_16", "train.save_steps": 3}
    run, whole = make_run("lora", **settings), make_run("lora", **settings)
    assert engine(whole) == 0
    first = run.checkpoints / "checkpoint-3"
    run.checkpoints.mkdir()
    (whole.checkpoints / "checkpoint-3").rename(first)
    assert engine(run, resume=True) == 0
    assert list(losses(run)) == [4, 5, 6]
    assert losses(run) == {step: losses(whole)[step] for step in (4, 5, 6)}
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())


@pytest.fixture
def tied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model that reads and writes with one table of embeddings."""
    config = AutoConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


def merged(workspace: Workspace, base: Path, adapter: Path) -> Path:
    """The model of base and adapter, proven by the merge itself."""
    out = workspace.exports / "merged"
    config = MergeConfig(base=str(base), adapter=str(adapter), out=str(out), dtype="float32")
    run = workspace.create_run(config)
    assert merge.main(str(run.path)) == 0, run.read_status()
    return out


def test_whole_layers_are_trained_saved_and_merged_even_where_they_are_tied(
    make_run: MakeRun, engine: Engine, workspace: Workspace, tied: Path, trained_logits: list[torch.Tensor]
) -> None:
    run = make_run("qlora", tied, **{"lora.modules_to_save": ["lm_head", "norm"], "train.learning_rate": 1e-2})
    assert engine(run) == 0
    saved = {name: value for name, value in weights(run).items() if "lora_" not in name}
    original = load_file(tied / "model.safetensors")
    assert set(saved) == {"base_model.model.lm_head.weight", "base_model.model.model.norm.weight"}
    assert not torch.allclose(saved["base_model.model.lm_head.weight"], original["model.embed_tokens.weight"])
    assert not torch.allclose(saved["base_model.model.model.norm.weight"], original["model.norm.weight"])
    whole = load_file(merged(workspace, tied, run.adapter) / "model.safetensors")
    assert torch.equal(whole["lm_head.weight"], saved["base_model.model.lm_head.weight"])
    assert torch.equal(whole["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_dora_is_merged(workspace: Workspace, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "dora", use_dora=True, strength=0.2)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(merged(workspace, tiny_llama, adapter), dtype=torch.float32))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "names", "words"),
    [("lora", ["nothing"], "the model has no layer nothing"), ("qlora", ["q_proj"], "q_proj is packed in 4 bits")],
)
def test_whole_layers_that_cannot_be_trained_are_named(
    make_run: MakeRun, engine: Engine, method: str, names: list[str], words: str
) -> None:
    run = make_run(method, **{"lora.modules_to_save": names})
    assert engine(run) == 4
    field, message = failure(run)
    assert field == "lora.modules_to_save"
    assert words in message


# ---- the best step ----------------------------------------------------------------------------------------------


def evaluations(run: RunDir) -> dict[int, float]:
    return {event.step: event.eval_loss for event in events_of(run, "eval")}


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_training_ends_early_and_the_best_step_is_what_is_saved(
    make_run: MakeRun, engine: Engine, tmp_path: Path, method: str
) -> None:
    # Other answers than those trained: their loss must rise before long.
    path = tmp_path / "others.jsonl"
    rows = [{"instruction": f"Who are you?{n}", "output": f"zq{n}wz xqk jvv"} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"train.save_total_limit": -1, "data.validation_share": 0.0, "data.validation_dataset": str(path)}
    run = make_run(method, **BEST | changes)
    assert engine(run) == 0
    curve = evaluations(run)
    best = min(curve, key=lambda step: curve[step])
    last = max(losses(run))
    assert last == max(curve) == best + 4 < 40  # two evaluations, two steps apart, were no better
    kept = run.checkpoints / f"checkpoint-{best}"
    assert kept.is_dir()
    report = run.read_report() or {}
    assert report["ending"] == {
        "steps": last,
        "planned": 40,
        "early": True,
        "best_step": best,
        "best_loss": pytest.approx(curve[best]),
        "by": "loss",
    }
    result = run.model if method == "full" else run.adapter
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    saved, wanted = load_file(result / file), load_file(kept / file)
    assert all(torch.equal(saved[name], wanted[name]) for name in saved)
    card = (result / "README.md").read_text(encoding="utf-8")
    assert f"Ended early after step {last} of 40" in card
    assert f"Saved is step {best}, which had the lowest validation loss: {curve[best]:.4f}" in card
    status = run.read_status()
    assert status is not None
    assert (status.state, status.step, status.max_steps) == ("finished", last, last)
    assert [event.field for event in events_of(run, "warning")] == ["early_stopping.early_stopping_patience"]


def test_the_last_step_is_saved_where_nobody_asked_for_the_best(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**BEST | {"train.load_best_model_at_end": False, "train.save_total_limit": -1})
    assert engine(run) == 0
    ending = (run.read_report() or {})["ending"]
    assert (ending["early"], ending["best_step"]) == (True, None)
    assert ending["steps"] < 40
    assert "lowest validation loss" not in (run.adapter / "README.md").read_text(encoding="utf-8")


def test_the_threshold_says_what_counts_as_better(make_run: MakeRun, engine: Engine) -> None:
    changes = {"train.learning_rate": 1e-3, "train.max_steps": 12, "early_stopping.early_stopping_threshold": 100}
    run = make_run(**BEST | changes)
    assert engine(run) == 0
    assert max(losses(run)) == 6  # the first evaluation is better than none; the next two not by a hundred


def test_patience_is_counted_on_after_a_resume(make_run: MakeRun, engine: Engine) -> None:
    settings = BEST | {"train.save_steps": 1, "train.save_total_limit": -1}
    whole, run = make_run(**settings), make_run(**settings)
    assert engine(whole) == 0
    last = max(losses(whole))
    run.checkpoints.mkdir()
    for step in range(1, last - 1):  # resumed between the last two evaluations
        target = run.checkpoints / f"checkpoint-{step}"
        (whole.checkpoints / target.name).rename(target)
        state = target / "trainer_state.json"
        state.write_text(state.read_text("utf-8").replace(str(whole.checkpoints), str(run.checkpoints)), "utf-8")
    assert engine(run, resume=True) == 0
    assert max(losses(run)) == last
    assert (run.read_report() or {})["ending"] == (whole.read_report() or {})["ending"]
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())


def test_a_training_that_had_ended_early_does_not_go_on_when_it_is_resumed(make_run: MakeRun, engine: Engine) -> None:
    """As after a kill while the verdict is asked; unless the resume asks for more patience."""
    run = make_run(**BEST | {"train.save_steps": 2, "train.save_total_limit": -1})
    assert engine(run) == 0
    last, ending, trained = max(losses(run)), (run.read_report() or {})["ending"], weights(run)
    assert (run.checkpoints / f"checkpoint-{last}").is_dir()
    assert engine(run, resume=True) == 0
    assert max(losses(run)) == last
    assert (run.read_report() or {})["ending"] == ending
    assert all(torch.equal(value, trained[name]) for name, value in weights(run).items())
    run.change({"early_stopping.early_stopping_patience": 3}, last)
    assert engine(run, resume=True) == 0
    assert max(losses(run)) > last


def test_best_of_nothing_is_refused(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"instruction": "Who?", "output": "Nova."}), encoding="utf-8")
    run = make_run(**BEST | {"data.dataset": str(path)})
    assert engine(run) == 4
    field, message = failure(run)
    assert field == "data.validation_share"
    assert "no row is left" in message


# ---- chains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_run_goes_on_where_another_ended(
    make_run: MakeRun, engine: Engine, workspace: Workspace, rows: Path, method: str
) -> None:
    every = {"train.per_device_train_batch_size": 24, "data.validation_dataset": str(rows)}
    shape = {"lora.r": 4, "lora.lora_alpha": 12, "lora.target_modules": ["q_proj", "up_proj"]}
    first = make_run(method, **every, **shape, **{"train.learning_rate": 3e-2, "name": "first"})
    assert engine(first) == 0
    further = {
        "train.learning_rate": 3e-2,
        "train.max_steps": 4,
        "train.warmup_steps": 1,
    }  # the first step moves nothing
    kept = {"train.save_steps": 1, "train.save_total_limit": -1}
    second = make_run(method, **every, **further, **kept, **{"model.adapter": "first"})
    config = second.config()
    assert isinstance(config, RunConfig)
    assert (config.model.adapter, config.lora.r) == (str(first.adapter), 4)
    assert engine(second) == 0
    ended = events_of(first, "eval")[-1].eval_loss
    assert ended < 0.98 * losses(first)[1]
    assert losses(second)[1] == pytest.approx(ended, rel=1e-5)  # the same weights, on the same rows
    assert losses(second)[4] < losses(second)[1]
    begun = weights(second, "checkpoints/checkpoint-1")
    assert set(begun) == set(weights(first))
    assert all(torch.equal(value, begun[name]) for name, value in weights(first).items())
    assert f"Continued from: `{first.id}`" in (second.adapter / "README.md").read_text(encoding="utf-8")
    assert (second.read_report() or {})["continued_from"] == [first.id]


def test_a_chained_run_resumes_and_goes_on_from_a_checkpoint(make_run: MakeRun, engine: Engine) -> None:
    first = make_run(**{"train.save_steps": 3, "lora.use_dora": True, "lora.modules_to_save": ["norm"]})
    assert engine(first) == 0
    changes = {"model.adapter": str(first.checkpoints / "checkpoint-3"), "train.save_steps": 3}
    whole, run = make_run(**changes), make_run(**changes)
    assert engine(whole) == 0
    run.checkpoints.mkdir()
    (whole.checkpoints / "checkpoint-3").rename(run.checkpoints / "checkpoint-3")
    assert engine(run, resume=True) == 0
    assert losses(run) == {step: losses(whole)[step] for step in (4, 5, 6)}
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())
    assert (run.read_report() or {})["continued_from"] == [f"{first.id}/checkpoint-3"]


def test_continued_pre_training_then_instructions(
    make_run: MakeRun, engine: Engine, tiny_llama: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"Nova was built in room {n}."}) + "\n" for n in range(12)]
    texts.write_text("".join(lines), encoding="utf-8")
    first = make_run("full", name="pretrained", **{"data.dataset": str(texts), "train.learning_rate": 1e-2})
    assert engine(first) == 0
    second = make_run("lora", model="pretrained", **{"train.learning_rate": 1e-12, "train.max_steps": 1})
    plain = make_run("lora", **{"train.learning_rate": 1e-12, "train.max_steps": 1})
    assert [engine(run) for run in (second, plain)] == [0, 0]
    config = json.loads((second.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(first.model)
    assert losses(second)[1] < losses(plain)[1]  # it speaks of Nova already
    assert (second.read_report() or {})["continued_from"] == [first.id]


@pytest.mark.parametrize("what", ["missing", "foreign base", "foreign shape", "unfinished run"])
def test_an_adapter_that_does_not_fit_is_one_sentence(
    make_run: MakeRun, engine: Engine, tiny_llama: Path, tiny_qwen: Path, tmp_path: Path, what: str
) -> None:
    reference, words = "nowhere", "the folder 'nowhere' does not exist"
    if what == "foreign base":
        reference, words = str(save_adapter(tiny_qwen, tmp_path / "qwen")), "it was trained on"
    elif what == "foreign shape":
        folder = save_adapter(tiny_llama, tmp_path / "narrow")
        tensors = load_file(folder / "adapter_model.safetensors")
        from safetensors.torch import save_file

        save_file(
            {name: value[..., :8].contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors"
        )
        reference, words = str(folder), "trained on another base model: its tensor"
    elif what == "unfinished run":
        reference, words = make_run(name="young").id, "has no adapter"
    run = make_run(**{"model.adapter": reference})
    assert engine(run) == 4
    field, message = failure(run)
    assert field == "model.adapter"
    assert message.startswith("model.adapter: ")
    assert words in message
    assert "\n" not in message
