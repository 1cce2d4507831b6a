"""The numbers of the monitor: complete points, the longest batch first, NaN, signs of life, trackers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import Engine, MakeRun, events_of, losses
from transformers import TrainerCallback

from studio.coach import notes
from studio.devices import card_of
from studio.engine import gpu_meter, soundness
from studio.engine.gpu_meter import Arithmetic, Meter, Usage
from studio.engine.trackers import Guarded
from studio.engine.trainer import Trainer
from studio.events import ExitCode, LogEvent
from studio.rundir import RunDir

VARIED = "varied.jsonl"


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """40 rows of very different length; row 30 is the longest, row 11 the next."""
    lengths = [3 + n * 7 % 40 for n in range(40)]
    lengths[29], lengths[10] = 150, 120
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "y" * length}]}
        for n, length in enumerate(lengths)
    ]
    path = tmp_path / VARIED
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def status(run: RunDir) -> Any:
    found = run.read_status()
    assert found is not None
    return found


# ---- complete points -------------------------------------------------------------------------------------------------


def test_padding_is_the_share_of_filler_in_the_batches_of_each_point(
    make_run: MakeRun, engine: Engine, varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    original = Trainer.training_step

    def step(self: Trainer, model: Any, inputs: Any, *args: Any) -> Any:
        seen.append((int(inputs["attention_mask"].sum()), inputs["attention_mask"].numel()))
        return original(self, model, inputs, *args)

    monkeypatch.setattr(Trainer, "training_step", step)
    run = make_run(**{"data.dataset": str(varied), "train.gradient_accumulation_steps": 2, "train.logging_steps": 3})
    assert engine(run) == 0
    points = events_of(run, "log")
    assert [point.step for point in points] == [3, 6]
    for point, part in zip(points, (seen[:6], seen[6:]), strict=True):
        real, places = (sum(column) for column in zip(*part, strict=True))
        assert point.padding == pytest.approx(1 - real / places)
        assert point.gpu_utilization is None
        assert point.mfu is None


def test_the_longest_rows_are_trained_first_and_still_are_after_a_resume(
    make_run: MakeRun, engine: Engine, varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    original = Trainer.training_step

    def step(self: Trainer, model: Any, inputs: Any, *args: Any) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return original(self, model, inputs, *args)

    monkeypatch.setattr(Trainer, "training_step", step)
    changes = {"data.dataset": str(varied), "train.max_steps": 14, "train.save_steps": 7}
    whole = make_run(**changes)
    assert engine(whole) == 0
    assert widths[0] == max(widths)
    assert widths[1] == max(widths[1:10])
    unbroken = list(widths)

    widths.clear()
    broken = make_run(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", crash_after(7, step))
        assert engine(broken) != 0
    widths.clear()
    assert engine(broken, resume=True) == 0
    assert widths == unbroken[7:]
    assert losses(broken) == losses(whole)


def crash_after(count: int, step: Callable[..., Any]) -> Callable[..., Any]:
    made = iter(range(count))

    def crash(self: Trainer, *args: Any) -> Any:
        if next(made, None) is None:
            raise RuntimeError("crash")
        return step(self, *args)

    return crash


# ---- the GPU ---------------------------------------------------------------------------------------------------------


def test_readings_of_the_gpu_become_means_and_the_last_one_stands_until_the_next() -> None:
    answers = iter([Usage(0.5, 100.0), Usage(1.0, 300.0), Usage(0.8, None)])
    meter = Meter(lambda: next(answers))
    assert meter.read() == Usage()
    meter.take()
    assert meter.read() == Usage(0.5, 100.0)
    meter.take()
    meter.take()
    assert meter.read() == Usage(0.9, 300.0)
    assert meter.read() == Usage(0.8, None)


def test_a_driver_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(name: str) -> Callable[[], float]:
        def ask() -> float:
            asked.append(name)
            raise RuntimeError("NVML")

        return ask

    monkeypatch.setattr(torch.cuda, "utilization", refuse("utilization"))
    monkeypatch.setattr(torch.cuda, "power_draw", refuse("power"))
    meter = Meter(gpu_meter.look_at_gpu)
    meter.start()
    meter.stop()
    assert asked == ["utilization", "power"]
    assert meter.read() == Usage()


def test_the_driver_counts_in_percent_and_milliwatts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 87)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda: 312_500)
    assert gpu_meter.look_at_gpu() == Usage(0.87, 312.5)


def test_the_share_of_the_peak_arithmetic() -> None:
    assert Meter(arithmetic=Arithmetic(6e9, 3e14)).mfu(10_000) == pytest.approx(0.2)
    assert Meter().mfu(10_000) is None
    assert Meter(arithmetic=Arithmetic(6e9, 3e14)).mfu(None) is None


@pytest.mark.parametrize(
    ("name", "gigabytes", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "A100 80GB"),
        ("NVIDIA H200", 140, "H200 141GB"),
        ("NVIDIA GeForce RTX 4090", 24, "RTX 4090 24GB"),
        ("Some Future Card", 24, None),
    ],
)
def test_a_card_is_known_by_the_name_the_driver_gives(name: str, gigabytes: int, card: str | None) -> None:
    found = card_of(name, gigabytes << 30)
    assert (found.name if found else None) == card


@pytest.mark.parametrize(("method", "low", "high"), [("full", 6.0, 7.5), ("qlora", 4.0, 5.0)])
def test_the_arithmetic_of_a_token_follows_the_usual_rule(
    monkeypatch: pytest.MonkeyPatch, method: str, low: float, high: float
) -> None:
    """6 operations per weight and token for full training, 4 when the weights stay, and some for the attention."""
    from studio.config import RunConfig
    from studio.model_shape import ModelShape
    from studio.schema import build

    settings = {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000,
        "tie_word_embeddings": True,
    }  # fmt: skip
    config = build(
        RunConfig, {"method": method, "model": {"model_name_or_path": "x"}, "data": {"dataset": "x"}, "lora": {"r": 8}}
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=80 << 30),
    )
    model: Any = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: settings))
    loaded: Any = SimpleNamespace(precision=SimpleNamespace(dtype=torch.bfloat16), model=model)
    import numpy as np

    examples: Any = SimpleNamespace(examples=SimpleNamespace(length=np.full(10, 1024)))
    found = gpu_meter.arithmetic_of(config, loaded, examples, processes=2)
    assert found is not None
    assert found.peak == 2 * 312e12
    weights = ModelShape.from_config(settings).parameters
    assert low < found.per_token / weights < high
    loaded.precision.dtype = torch.float32
    assert gpu_meter.arithmetic_of(config, loaded, examples) is None


# ---- numbers that are none -------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], None]]:
    """poison(what, update, batch): the loss of that batch, or the gradient after it, becomes NaN or infinite."""

    def prepare(what: str, update: int, batch: int) -> None:
        original = Trainer.compute_loss

        def compute_loss(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            loss = original(self, *args, **kwargs)
            here = self.state.global_step == update - 1 and self._at[1] == batch
            if not here:
                return loss
            if what == "gradient":
                hook = next(p for p in self.model.parameters() if p.requires_grad)
                return loss + (hook.reshape(-1)[0] * 0).sqrt()  # its value is 0, its slope is none
            return loss * float(what)

        monkeypatch.setattr(Trainer, "compute_loss", compute_loss)

    return prepare


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_number_that_is_none_stops_the_run_names_the_rows_and_keeps_the_last_checkpoint(
    make_run: MakeRun, engine: Engine, varied: Path, poison: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "data.dataset": str(varied),
        "train.save_steps": 2,
        "train.gradient_accumulation_steps": 2,
        "train.per_device_train_batch_size": 2,
        "train.logging_steps": 3,
    }
    whole = make_run(**changes)
    assert engine(whole) == 0
    poison(what, 5, 1)
    run = make_run(**changes)
    assert engine(run) == ExitCode.BAD_INPUT
    error = status(run).error
    name = "gradient" if what == "gradient" else "loss"
    assert f"the {name} stopped being a number at step 5" in error.message
    assert f" of {VARIED}" in error.message
    assert error.details["saved_step"] == 4
    assert "Step 4 is saved" in error.hint
    assert [entry.name for entry in run.checkpoints.iterdir() if entry.is_dir()].count("checkpoint-5") == 0
    point = events_of(run, "log")[-1]
    assert (point.step, point.loss) == (5, None)
    (note,) = notes(events_of(run, "log"))
    assert (note.kind, note.step) == ("nan", 5)
    monkeypatch.undo()
    assert engine(run, resume=True) == 0
    name = "adapter/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_the_rows_named_are_those_of_the_batch(
    make_run: MakeRun, engine: Engine, varied: Path, poison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told apart by their tokens: what the batch held is what is said."""
    held: list[list[int]] = []
    original = Trainer.training_step

    def step(self: Trainer, model: Any, inputs: Any, *args: Any) -> Any:
        held.append(inputs["attention_mask"].sum(1).tolist())
        return original(self, model, inputs, *args)

    monkeypatch.setattr(Trainer, "training_step", step)
    poison("nan", 12, 1)  # in the second epoch
    run = make_run(
        **{
            "data.dataset": str(varied),
            "train.max_steps": 20,
            "train.gradient_accumulation_steps": 2,
            "train.per_device_train_batch_size": 3,
        }
    )
    assert engine(run) == ExitCode.BAD_INPUT
    rows = status(run).error.details["rows"]
    assert [name for name, _ in rows] == [VARIED] * 3
    answers = [json.loads(line)["messages"] for line in varied.read_text(encoding="utf-8").splitlines()]
    lengths = [sum(len(message["content"]) for message in answers[row - 1]) for _, row in rows]
    differences = {tokens - length for tokens, length in zip(held[-1], lengths, strict=True)}
    assert len(differences) == 1  # the same frame of the template around each


def test_many_rows_are_not_all_said() -> None:
    rows = [("a", n) for n in range(1, 6)] + [("b.jsonl", 7), ("b.jsonl", 9)]
    assert soundness.named(rows) == "rows 1, 2, 3, 4, 5 of a; row 7 of b.jsonl; 1 more"


# ---- signs of life ---------------------------------------------------------------------------------------------------


def test_the_first_event_comes_before_any_slow_import(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    program = (
        "import sys; from studio.engine.start import start\n"
        "def training():\n"
        "    print(sorted({'torch', 'numpy', 'pandas', 'transformers', 'datasets'} & set(sys.modules)))\n"
        "    print(open(sys.argv[1] + '/events.jsonl').read())\n"
        "    raise SystemExit\n"
        "start(sys.argv[1], training)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run.path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    loaded, *events = done.stdout.splitlines()
    assert not {"torch", "transformers", "datasets"} & set(eval(loaded)), loaded  # noqa: S307 - our own list of names
    assert [json.loads(line)["type"] for line in events[:2]] == ["started", "phase"]


def test_what_is_loaded_is_counted(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    assert engine(run) == 0
    told = [(event.label, event.done, event.total) for event in events_of(run, "progress")]
    weights = [(done, total) for label, done, total in told if label == "weights loaded"]
    assert weights
    assert all(done <= total for _, done, total in told)
    assert any(label == "modules loaded" for label, _, _ in told)


# ---- trackers --------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_points_and_the_training_does_not_feel_it(make_run: MakeRun, engine: Engine) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes: dict[str, Any] = {"lora.lora_dropout": 0.3}
    silent, told = make_run(**changes), make_run(**changes, **{"train.report_to": "tensorboard"})
    assert engine(silent) == 0
    assert engine(told) == 0
    assert losses(told) == losses(silent)
    found = EventAccumulator(str(told.path / "trackers" / "tensorboard"))
    found.Reload()
    curve = {point.step: point.value for point in found.Scalars("train/loss")}
    assert curve == pytest.approx(losses(told), rel=1e-6)
    assert not (silent.path / "trackers").exists()


@pytest.mark.parametrize(
    ("name", "title", "package"),
    [
        ("wandb", "Weights & Biases", "wandb"),
        ("swanlab", "SwanLab", "swanlab"),
        ("mlflow", "MLflow", "mlflow"),
        ("trackio", "Trackio", "trackio"),
    ],
)
def test_a_tracker_that_is_not_installed_is_refused_with_its_package(
    make_run: MakeRun, engine: Engine, name: str, title: str, package: str
) -> None:
    run = make_run(**{"train.report_to": [name]})
    assert engine(run) == ExitCode.BAD_INPUT
    error = status(run).error
    assert error.field == "train.report_to"
    assert error.message == f"train.report_to: {title} needs the package {package}, which is not installed."
    assert f"pip install {package}" in error.hint


class Failing(TrainerCallback):
    """Works until the third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.rand(3)
        if state.global_step >= 3:
            raise ConnectionError("no route to the service\nsecond line")


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"lora.lora_dropout": 0.3}
    silent, run = make_run(**changes), make_run(**changes)
    assert engine(silent) == 0
    monkeypatch.setattr(
        "studio.engine.trackers.trackers", lambda config, journal: [Guarded("Somewhere", Failing, journal)]
    )
    assert engine(run) == 0
    assert losses(run) == losses(silent)
    (warning,) = events_of(run, "warning")
    assert warning.field == "train.report_to"
    assert warning.message == ("Somewhere was switched off, the training goes on without it: no route to the service")


def test_a_point_without_a_number_is_written_as_null() -> None:
    assert json.loads(LogEvent(loss=math.nan, grad_norm=math.inf).model_dump_json())["loss"] is None
