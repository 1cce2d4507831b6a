"""What the trainer gets: the batches the preview shows, packed without a trace, several sources, validation rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Engine, MakeRun, events_of, losses
from transformers import AutoModelForCausalLM

from studio.config import RunConfig
from studio.engine import train
from studio.engine.attention import Collator
from studio.engine.data import with_replay
from studio.engine.epoch_order import EpochOrder
from studio.estimate import plan
from studio.records import xray
from studio.records.batches import training_rows, validation_rows
from studio.records.chat_tokenizer import Encoded
from studio.records.counts import Mixed, Numbers, prepare, unpacked
from studio.records.token_table import table_of
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace


def config_of(run: RunDir) -> RunConfig:
    config = run.config()
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("packing", [False, True])
def test_the_batches_shown_are_the_batches_trained(
    make_run: MakeRun, engine: Engine, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    run = make_run(**{"data.packing": packing, "train.per_device_train_batch_size": 3, "train.max_steps": 2})
    trained: list[dict[str, torch.Tensor]] = []
    original = Collator.__call__

    def spy(self: Collator, rows: Any) -> dict[str, torch.Tensor]:
        trained.append(original(self, rows))
        return trained[-1]

    monkeypatch.setattr(Collator, "__call__", spy)
    assert engine(run) == 0
    trained = [batch for batch in trained if batch["input_ids"].shape[0] > 1]  # without the check for leaks
    found = plan(config_of(run), workspace)
    assert found is not None
    shown = xray.batches_view(found.prepared, found.recipes, found.chat, found.numbers, 2)
    assert len(shown) == 2
    for view, batch in zip(shown, trained, strict=False):
        assert view["shape"] == list(batch["input_ids"].shape)
        for row, ids, labels in zip(view["rows"], batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            tokens = [token for example in row["examples"] for token in example["tokens"]]
            assert [token[0] for token in tokens] + [row["pad_id"]] * row["padding"] == ids
            states = [token[2] == xray.TRAINED for token in tokens] + [False] * row["padding"]
            assert states == [label != -100 for label in labels]
            assert [example["messages"][0]["role"] for example in row["examples"]] == ["user"] * len(row["examples"])


def test_the_order_goes_on_after_a_resume(make_run: MakeRun, engine: Engine) -> None:
    """Two epochs in one go, and stopped in the middle of the second: the same losses."""
    changes = {"train.max_steps": -1, "train.num_train_epochs": 2, "train.save_steps": 1}
    whole = make_run(**changes)
    assert engine(whole) == 0
    halves = make_run(**changes | {"train.max_steps": -1})
    watched = train._fit

    def fit(run: RunDir, journal: Any, trainer: Any, checkpoint: Any) -> None:
        if checkpoint is None:
            trainer.add_callback(_stop_at(8, run))
        watched(run, journal, trainer, checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_fit", fit)
        assert engine(halves) == 3
    halves.stop_file.unlink()
    assert engine(halves, resume=True) == 0
    assert losses(halves) == losses(whole)
    assert len(losses(whole)) == 12


def _stop_at(step: int, run: RunDir) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                run.request_stop()

    return Stop()


def test_the_sampler_knows_its_epoch() -> None:
    order = EpochOrder(np.full(10, 7), seed=3, per_update=4)
    first = list(order)
    order.set_epoch(1)
    assert sorted(first) == sorted(order) == list(range(10))
    assert list(order) != first


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
def test_packed_gradients_equal_unpacked_ones(
    make_run: MakeRun, workspace: Workspace, request: pytest.FixtureRequest, kind: str
) -> None:
    folder: Path = request.getfixturevalue(kind)
    run = make_run(model=folder, **{"data.packing": True})
    found = plan(config_of(run), workspace)
    assert found is not None
    assert found.prepared.packing
    assert len(found.prepared.packs) < 24
    results = []
    for prepared in (found.prepared, unpacked(found.prepared)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        rows = training_rows(prepared)
        batch = Collator(0, packed=prepared.packing)([rows[n] for n in range(len(rows))])
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (packed_loss, packed), (plain_loss, plain) = results
    assert packed_loss == pytest.approx(plain_loss, rel=1e-5)
    assert (packed - plain).norm() < 1e-5 * plain.norm()


def write_rows(path: Path, count: int, text: str) -> Path:
    rows = [{"instruction": f"{text} {n}?", "output": f"{text} number {n}."} for n in range(count)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_several_sources_a_validation_share_and_their_loss(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    second, third = write_rows(tmp_path / "two.json", 10, "Two"), write_rows(tmp_path / "three.json", 8, "Three")
    sources = [
        {"dataset": str(second), "weight": 2.0},
        {"dataset": str(third), "max_samples": 4, "system": "Be short."},
    ]
    run = make_run(**{"data.sources": sources, "data.validation_share": 0.1, "train.eval_steps": 3})
    assert engine(run) == 0
    (counts,) = events_of(run, "counts")
    assert counts.validation == 2 + 1 + 1  # a tenth of each, at least one row
    assert counts.conversations == 22 + 2 * 9 + 3
    evaluations = events_of(run, "eval")
    assert [event.step for event in evaluations] == [3, 6]
    assert all(0 < event.eval_loss < 10 for event in evaluations)
    assert not events_of(run, "warning")
    names = [line for line in (run.adapter / "README.md").read_text(encoding="utf-8").splitlines() if "SHA-256" in line]
    assert len(names) == 3


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_own_answers_mixed_in_leave_the_validation_rows_alone(tmp_path: Path, share: float) -> None:
    def source(name: str, count: int, first: int) -> Mixed:
        rows = [(n, Encoded([1, first + n, 2], [0, 1, 1])) for n in range(1, count + 1)]
        return Mixed(table_of(rows, tmp_path / name))

    numbers = Numbers(max_length=16, validation_share=share)
    before = prepare([source("rows", 10, 100)], numbers)
    after = with_replay(before, source("replay", 5, 200), numbers)
    assert len(after.examples) == len(before.examples) + 5
    kept = [validation_rows(prepared)[n]["input_ids"] for prepared in (before, after) for n in range(round(10 * share))]
    assert len(after.validation) == len(before.validation) == round(10 * share)
    assert kept[: len(kept) // 2] == kept[len(kept) // 2 :]
    trained = [training_rows(after)[n]["input_ids"] for n in range(len(after.packs))]
    assert not [row for row in kept if row in trained]


def test_own_answers_and_a_validation_dataset(tmp_path: Path) -> None:
    def source(name: str, first: int) -> Mixed:
        return Mixed(table_of([(n, Encoded([1, first + n], [0, 1])) for n in range(1, 5)], tmp_path / name))

    numbers = Numbers(max_length=16)
    before = prepare([source("rows", 100)], numbers, [source("own", 200)])
    after = with_replay(before, source("replay", 300), numbers)
    assert (len(after.examples), len(after.validation)) == (8, 4)
    assert validation_rows(after)[0]["input_ids"] == [1, 201]


def test_the_training_does_not_feel_the_evaluation(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    own = write_rows(tmp_path / "own.json", 5, "Own")
    changes: dict[str, Any] = {"lora.lora_dropout": 0.3}
    silent, watched = (
        make_run("qlora", **changes),
        make_run("qlora", **changes, **{"data.validation_dataset": str(own), "train.eval_steps": 1}),
    )
    for run in (silent, watched):
        assert engine(run) == 0
    assert len(events_of(watched, "eval")) == 6
    assert losses(watched) == losses(silent)


def test_plain_texts_train_on_every_token(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("A furnace is hot. " * 100, encoding="utf-8")
    run = make_run(**{"data.dataset": str(tmp_path / "book.txt"), "data.max_length": 128})
    assert engine(run) == 0
    (counts,) = events_of(run, "counts")
    assert counts.tokens == counts.trained_tokens > 1800
    assert counts.packs == counts.conversations == -(-counts.tokens // 128)
    assert counts.truncated == 0


def test_a_second_start_finds_the_tokens_ready(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.records import sources

    made: list[str] = []
    original = sources.write_table
    monkeypatch.setattr(
        sources, "write_table", lambda recipe, *rest: made.append(recipe.key) or original(recipe, *rest)
    )
    for _ in range(2):
        assert engine(make_run(**{"data.max_length": 100 + 20 * len(made)})) == 0
    assert len(made) == 1


def test_a_run_in_which_nothing_would_be_trained_does_not_start(make_run: MakeRun, engine: Engine, rows: Path) -> None:
    run = make_run(**{"data.max_length": 16})
    assert engine(run) == 4
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert (status.error.kind, status.error.field) == ("data", "data.max_length")


def test_tokens_on_disk_are_what_the_tokenizer_says(make_run: MakeRun, workspace: Workspace) -> None:
    found = plan(config_of(make_run()), workspace)
    assert found is not None
    table = found.prepared.sources[0].table
    assert isinstance(table.ids, np.memmap)
    assert found.chat.backend.decode(table.tokens(0).tolist(), skip_special_tokens=False).startswith("<|im_start|>user")


def test_sources_are_frozen_with_absolute_paths(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "a.json", 3, "A")
    monkeypatch.chdir(tmp_path)
    settings = {
        "model.model_name_or_path": "crucible/ember", "data.dataset": "a.json", "data.sources": ["a.json"],
        "data.validation_dataset": "a.json",
    }  # fmt: skip
    config = config_of(workspace.create_run(build(RunConfig, merge(RunConfig, settings))))
    expected = str(tmp_path / "a.json")
    assert (config.data.dataset, config.data.sources[0].dataset, config.data.validation_dataset) == (expected,) * 3
