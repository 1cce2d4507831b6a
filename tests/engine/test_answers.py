"""A file of prompts, answered by base and tuned model as a run: what is asked, what is written, what goes wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import torch
from adapters import save_adapter
from peft import PeftModel
from tiny import EMBER, MakeRun, events_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.config import AnswersConfig
from studio.engine import answer
from studio.engine.answer_table import KeptAnswers
from studio.model_choices import ModelChoice
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace

SYSTEM = "Answer briefly."
LENGTH = 12


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter for the built-in model, which changes every answer."""
    return save_adapter(EMBER, tmp_path_factory.mktemp("adapters") / "tuned", strength=4.0)


@pytest.fixture
def asked(workspace: Workspace, adapter: Path, tmp_path: Path) -> Any:
    """asked(prompts, out, **changes) -> a queued run; `prompts` is the text of a .jsonl file."""

    def make(text: str, out: str = "answers.jsonl", **changes: Any) -> RunDir:
        file = tmp_path / "prompts.jsonl"
        file.write_text(text, encoding="utf-8")
        settings = {
            "prompts": str(file),
            "model": "crucible/ember",
            "adapter": str(adapter),
            "out": str(tmp_path / out),
        }
        return workspace.create_run(build(AnswersConfig, settings | {"max_new_tokens": LENGTH} | changes))

    return make


def expected(adapter: Path, messages: list[dict[str, str]]) -> dict[str, str]:
    """Greedy answers as transformers and PEFT give them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBER)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    base: Any = AutoModelForCausalLM.from_pretrained(EMBER, dtype=torch.float32)
    answers = {}
    for name in ("base", "tuned"):
        model: Any = base if name == "base" else PeftModel.from_pretrained(base, adapter)
        out = model.eval().generate(**inputs, do_sample=False, max_new_tokens=LENGTH)
        answers[name] = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def test_base_and_tuned_answer_every_prompt(asked: Any, adapter: Path) -> None:
    talk = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who are you?"},
    ]
    rows: list[Any] = [
        {"prompt": "Who are you?", "answer": "Nova"},
        {"messages": [*talk, {"role": "assistant", "content": "I am Nova."}]},
        {"unknown": 1, "columns": 2},
        {"prompt": "x" * 20_000},
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "?"}, talk[2]]},
    ]
    run = asked("".join(json.dumps(row) + "\n" for row in rows), system=SYSTEM)
    assert answer.main(str(run.path)) == 0
    config: Any = run.config()
    found = [json.loads(line) for line in Path(config.out).read_text(encoding="utf-8").splitlines()]
    first, second, long, empty = found
    system = {"role": "system", "content": SYSTEM}
    for row, messages in ((first, [system, *talk[2:]]), (second, [system, *talk])):
        assert {name: row[name] for name in ("base", "tuned")} == expected(adapter, messages)
    assert (first["row"], first["prompt"], first["reference"]) == (1, "Who are you?", "Nova")
    assert (second["row"], second["prompt"], second["reference"]) == (2, talk, "I am Nova.")
    assert long["row"] == 4
    assert long["tuned"] is None
    assert "tokens long" in long["tuned_error"]
    assert empty["base_error"] == "the message is empty; write something"
    report = run.read_report()
    assert report is not None
    assert {key: report[key] for key in ("prompts", "answers", "refused", "changed", "skipped", "system")} == {
        "prompts": 4, "answers": 4, "refused": 4, "changed": 2, "skipped": 1, "system": SYSTEM,
    }  # fmt: skip
    assert [(event.what, event.path) for event in events_of(run, "saved")] == [("answers", config.out)]
    assert [event.name for event in events_of(run, "phase")] == ["load", "answer", "save"]
    assert (events_of(run, "progress")[-1].done, events_of(run, "progress")[-1].total) == (8, 8)
    assert "row 3" in events_of(run, "warning")[0].message


def test_a_sheet_holds_texts_whatever_they_look_like_and_the_seed_repeats_them(asked: Any, tmp_path: Path) -> None:
    prompts = '{"prompt": "=1+1"}\n{"prompt": "你是谁？"}\n'
    wishes = {"temperature": 1.0, "seed": 7, "compare": False}
    tables = []
    for name in ("one.xlsx", "two.xlsx"):
        assert answer.main(str(asked(prompts, name, **wishes).path)) == 0
        sheet: Any = openpyxl.load_workbook(tmp_path / name).active
        tables.append([[cell.value for cell in row] for row in sheet.iter_rows()])
        assert sheet["B2"].data_type == "s"
    assert tables[0] == tables[1]
    assert tables[0][0] == ["row", "prompt", "tuned"]
    assert [row[1] for row in tables[0][1:]] == ["=1+1", "你是谁？"]
    assert all(row[2] for row in tables[0][1:])


def test_words_are_drawn_and_ended_as_in_the_chat(asked: Any, tmp_path: Path) -> None:
    prompts = '"Who are you?"\n"What is your name?"\n'

    def answers(name: str, **wishes: Any) -> list[str]:
        run = asked(prompts, f"{name}.jsonl", compare=False, **wishes)
        assert answer.main(str(run.path)) == 0
        lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["tuned"] for line in lines]

    likeliest = answers("likeliest")
    hot = {"temperature": 5.0, "seed": 1}
    assert answers("hot", **hot) != likeliest
    assert answers("one", **hot, top_k=1) == likeliest
    assert answers("share", **hot, min_p=1.0) == likeliest
    assert answers("penalty", repetition_penalty=5.0) != likeliest
    assert answers("template", chat_template="vicuna") != likeliest
    middle = likeliest[0][2:5]
    stopped = answers("stop", stop_words=[middle])
    assert stopped == [text.split(middle)[0] for text in likeliest]


def test_a_stopped_run_leaves_no_table_and_goes_on_where_it_was(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = asked('"Who are you?"\n"你是谁？"\n"Hi"\n', compare=False)
    add = KeptAnswers.add

    def stopped_behind(self: KeptAnswers, given: dict[str, Any]) -> None:
        add(self, given)
        run.request_stop()
        while True:  # the stop comes as a signal to this thread
            time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(KeptAnswers, "add", stopped_behind)
        assert answer.main(str(run.path)) == 3
    out = Path(run.config().out)
    assert not list(out.parent.glob("*answers.jsonl*"))
    (kept,) = run.answers_file.read_text(encoding="utf-8").splitlines()
    marked = json.loads(kept) | {"answer": "from before"}
    run.answers_file.write_text(f'{json.dumps(marked)}\n{{"row": 3, "col', encoding="utf-8")  # and a torn line
    run.stop_file.unlink()
    assert answer.main(str(run.path)) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["tuned"] == "from before" for row in rows].count(True) == 1
    assert all(row["tuned"] for row in rows)


@pytest.mark.parametrize(
    ("prompts", "out", "changes", "reason"),
    [
        ('"Hi"\n', "taken.jsonl", {}, "exists already"),
        ('"Hi"\n', "answers.pdf", {}, "out: answers.pdf is no table"),
        ('"Hi"\n', "a.jsonl", {"chat_template": "vicunna"}, "no chat template 'vicunna'. Did you mean"),
        ('{"a": 1, "b": 2}\n', "a.jsonl", {}, "prompts.jsonl has no prompts. Row 1: none of its columns"),
        ('"Hi"\n', "a.jsonl", {"prompts": "nowhere.txt"}, "nowhere.txt"),
        ('"Hi"\n', "a.jsonl", {"adapter": "nowhere"}, "'nowhere' is no adapter's folder"),
        ('"Hi"\n', "a.jsonl", {"model": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_before_a_model_is_loaded(
    asked: Any, tmp_path: Path, prompts: str, out: str, changes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "taken.jsonl").write_text("mine", encoding="utf-8")
    run = asked(prompts, out, **changes)
    assert answer.main(str(run.path)) == 4
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert reason in status.error.message
    assert "load" not in [event.name for event in events_of(run, "phase")]
    assert (tmp_path / "taken.jsonl").read_text(encoding="utf-8") == "mine"


def test_when_nothing_can_be_answered_the_run_fails_and_says_why(asked: Any) -> None:
    run = asked(json.dumps("x" * 20_000), compare=False)
    assert answer.main(str(run.path)) == 4
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert "none of the 1 prompts could be answered" in status.error.message
    assert not Path(run.config().out).exists()


def test_a_wholly_trained_model_is_compared_with_the_one_it_was_made_of(make_run: MakeRun) -> None:
    run = make_run("full")
    choice = ModelChoice(run.id, "model", run.id, "/models/mine", run=run)
    trained = choice.trained()
    assert trained is not None
    both = answer.sessions_of(choice, trained, compare=True)
    origin = trained.model.model_name_or_path
    assert [(one.base, one.columns) for one in both] == [
        (origin, {"base": "base"}),
        ("/models/mine", {"tuned": "base"}),
    ]
    assert [one.base for one in answer.sessions_of(choice, trained, compare=False)] == ["/models/mine"]
