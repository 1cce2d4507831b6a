"""What is promised before a run: counts, zones, findings, and the X-ray of its first batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio import estimate
from studio.config import RunConfig
from studio.estimate import plan, zone
from studio.preflight import preflight
from studio.records import DataError, sources, xray
from studio.records.counts import Counts
from studio.records.places import EMBER
from studio.records.sources import NotCounted
from studio.schema import build, merge
from studio.workspace import Workspace


def config(path: Path | str, **settings: Any) -> RunConfig:
    layer = {"model.model_name_or_path": "crucible/ember", "data.dataset": str(path), "data.max_length": 256}
    return build(RunConfig, merge(RunConfig, layer | settings))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int, repeat: int = 1) -> list[dict[str, str]]:
    return [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(count)] * repeat


def test_a_plan_counts_every_step(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", [*pairs(40), {"instruction": "x", "output": None}])
    found = plan(config(path, **{"train.num_train_epochs": 2.0}), workspace)
    assert found is not None
    counts = found.counts
    assert (counts.rows_read, counts.rows_skipped, counts.conversations, counts.packs) == (41, 1, 40, 40)
    assert counts.updates == 6  # 10 batches of 4, added up by 4, twice
    assert counts.distinct == 40
    assert 0 < counts.trained_tokens < counts.tokens


def test_self_replay_rows_are_promised(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(10))
    found = plan(config(path, **{"data.self_replay": 30}), workspace)
    assert found is not None
    assert (found.counts.self_replay, found.counts.conversations, found.counts.packs) == (30, 40, 40)


@pytest.mark.parametrize(
    ("updates", "distinct", "expected"),
    [
        (4, 1, "few"),  # the course's 1,000 copies: nothing learned
        (18, 1, "good"),  # learned, still sane
        (37, 1, "parrot"),  # says its sentence to everything
        (56, 1, "parrot"),
        (144, 384, "good"),  # the built-in job
        (600, 150, "good"),  # a varied set, four epochs: no parrot was reported
    ],
)
def test_zones_are_those_that_were_seen(updates: int, distinct: int, expected: str) -> None:
    counts = Counts(rows_read=1, rows_skipped=0, conversations=1, tokens=1, trained_tokens=1, truncated=0, packs=1,
                    updates=updates, distinct=distinct)  # fmt: skip
    assert zone(counts) == expected


def advice(found: list[estimate.Advice]) -> dict[str, str]:
    return {item.field: f"{item.level}: {item.message}" for item in found}


def test_copies_of_one_row_are_warned_about(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(1, 400))
    said = advice(preflight(config(path), workspace))
    assert "75 updates on 1 different rows" in said["train.num_train_epochs"]
    assert "too few" in advice(preflight(config(path, **{"data.max_samples": 3}), workspace))["train.num_train_epochs"]


def test_a_run_in_which_nothing_would_be_trained_cannot_start(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", [{"instruction": "word " * 100, "output": "Answer."}])
    found = preflight(config(path, **{"data.max_length": 32}), workspace)
    assert (found[0].level, found[0].field) == ("error", "data.max_length")


def test_a_large_dataset_does_not_hold_up_the_form(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(40))
    monkeypatch.setattr(sources, "INLINE_BYTES", 10)
    with pytest.raises(NotCounted):
        plan(config(path), workspace)
    said = preflight(config(path), workspace)
    assert [item.level for item in said if item.field == "data.dataset"] == ["info"]
    assert plan(config(path), workspace, wait=True) is not None
    assert plan(config(path), workspace) is not None


def test_a_model_that_is_not_here_yet_has_no_plan(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(40))
    assert plan(config(path, **{"model.model_name_or_path": "some/model"}), workspace) is None
    with pytest.raises(DataError):
        plan(config("nowhere.jsonl", **{"model.model_name_or_path": "some/model"}), workspace)


# ---- the X-ray -------------------------------------------------------------------------------------------------------


def test_the_xray_shows_tokens_with_their_state_and_messages(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(10))
    found = plan(config(path, **{"train.per_device_train_batch_size": 3}), workspace)
    assert found is not None
    batches = xray.batches_view(found.prepared, found.recipes, found.chat, found.numbers, 2)
    assert [len(batch["rows"]) for batch in batches] == [3, 3]
    example = batches[0]["rows"][0]["examples"][0]
    assert [message["role"] for message in example["messages"]] == ["user", "assistant"]
    assert [message["trained"] for message in example["messages"]] == [False, True]
    trained = "".join(piece for _, piece, state in example["tokens"] if state == xray.TRAINED)
    assert trained == example["messages"][1]["content"] + "<|im_end|>"
    assert example["trained"] == sum(state == xray.TRAINED for _, _, state in example["tokens"])
    assert example["messages"][0]["content"] == f"Question {example['row'] - 1}?"
    assert json.dumps(batches)  # it goes to the browser


def test_what_is_cut_is_shown_behind_the_cut(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", [{"instruction": "Hi", "output": "A long answer. " * 40}])
    found = plan(config(path, **{"data.max_length": 32}), workspace)
    assert found is not None
    (batch,) = xray.batches_view(found.prepared, found.recipes, found.chat, found.numbers, 1)
    example = batch["rows"][0]["examples"][0]
    states = [state for _, _, state in example["tokens"]]
    assert batch["shape"] == [1, 32]
    assert states == sorted(states)  # context, trained, truncated
    assert states.count(xray.TRUNCATED) == xray.SHOWN_CUT
    assert example["length"] == 32
    assert example["length"] + example["cut"] == found.prepared.sources[0].table.lengths[0]
    assert [item.code for item in xray.findings(found.prepared, found.chat)] == ["truncated"]


def test_packed_rows_list_their_examples(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(30))
    found = plan(config(path, **{"data.packing": True}), workspace)
    assert found is not None
    (batch,) = xray.batches_view(found.prepared, found.recipes, found.chat, found.numbers, 1)
    assert len(batch["rows"][0]["examples"]) > 3
    total = sum(example["length"] for row in batch["rows"] for example in row["examples"])
    assert total + sum(row["padding"] for row in batch["rows"]) == batch["shape"][0] * batch["shape"][1]


def test_findings_name_rows(tmp_path: Path, workspace: Workspace) -> None:
    rows: list[Any] = [*pairs(3), {"instruction": "word " * 90, "output": "x"}, {"instruction": "y", "output": ""}]
    found = plan(config(write(tmp_path / "rows.jsonl", rows), **{"data.max_length": 64}), workspace)
    assert found is not None
    said = {item.code: item for item in xray.findings(found.prepared, found.chat)}
    assert (said["nothing_trained"].count, said["nothing_trained"].rows) == (1, (4,))
    assert (said["skipped"].count, said["skipped"].rows) == (1, (5,))


def test_a_template_without_an_end_token_is_found(tmp_path: Path, workspace: Workspace) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
    found = plan(config(write(tmp_path / "r.jsonl", pairs(3)), **{"model.chat_template": template}), workspace)
    assert found is not None
    assert "no_end" in {item.code for item in xray.findings(found.prepared, found.chat)}


def test_the_histogram_holds_every_row(tmp_path: Path, workspace: Workspace) -> None:
    rows = [{"instruction": "Hi", "output": "word " * (n + 1)} for n in range(100)]
    found = plan(config(write(tmp_path / "rows.jsonl", rows)), workspace)
    assert found is not None
    shown = xray.histogram(found.prepared, 256)
    assert sum(shown["counts"]) == shown["rows"] == 100
    assert len(shown["edges"]) == len(shown["counts"]) + 1
    assert shown["shortest"] < shown["median"] < shown["p95"] < shown["longest"]


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_another_chat_template_in_the_model_folder_is_seen(tmp_path: Path, workspace: Workspace, name: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in EMBER.iterdir():
        if file.suffix in (".json", ".jinja"):
            (model / file.name).write_bytes(file.read_bytes())
    (model / "model.safetensors").symlink_to(EMBER / "model.safetensors")
    settings = config(write(tmp_path / "r.jsonl", pairs(3)), **{"model.model_name_or_path": str(model)})
    before = plan(settings, workspace)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    for jinja in model.glob("*.jinja"):
        jinja.unlink()
    if name.endswith(".jinja"):
        (model / name).write_text(template, encoding="utf-8")
    else:
        known = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps(known | {"chat_template": template}), encoding="utf-8")
    after = plan(settings, workspace)
    assert before is not None
    assert after is not None
    assert after.chat.template.source == template != before.chat.template.source
