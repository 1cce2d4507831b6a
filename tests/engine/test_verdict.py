"""The verdict's arithmetic on made-up answers, and its truth on the built-in model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import EMBER, Engine, MakeRun, events_of

from studio.engine.verdict import Probes, answers_before, before_after, choose_probes, judge, stratified
from studio.records import DatasetInfo, DatasetStore, IdentitySpec, build_identity
from studio.records.probes import Canary, Guard, LeakProbe, ask_key
from studio.workspace import Workspace


def probes(heldout: int = 10, leak: int = 20, canaries: int = 20) -> Probes:
    return Probes(
        heldout=[{"prompt": f"who {n}", "kind": "who", "lang": "en", "expect": ["Nova"]} for n in range(heldout)],
        leak=[LeakProbe(prompt=f"leak {n}", lang="en") for n in range(leak)],
        canaries=[Canary(prompt=f"sum {n}", accept=(f"= {n}",), skill="sum", lang="en") for n in range(canaries)],
        guards=[],
        name="Nova",
        author="Blue Lab",
    )


def perfect(asked: Probes) -> dict[str, str]:
    return (
        {row["prompt"]: "I am Nova." for row in asked.heldout}
        | {probe.prompt: "It is blue." for probe in asked.leak}
        | {canary.prompt: canary.accept[0] for canary in asked.canaries}
    )


def untrained(asked: Probes) -> dict[str, str]:
    return perfect(asked) | {row["prompt"]: "I am Sprout." for row in asked.heldout}


def test_all_right_passes() -> None:
    asked = probes()
    found = judge(asked, untrained(asked), perfect(asked))
    assert found["passed"]
    assert (found["learned"]["right"], found["learned"]["total"], found["learned"]["share"]) == (10, 10, 1.0)
    assert (found["leaked"]["hits"], found["leaked"]["total"], found["leaked"]["share"]) == (0, 20, 0.0)
    assert (found["forgot"]["kept"], found["forgot"]["total"], found["forgot"]["retained"]) == (20, 20, 1.0)
    assert found["summary"].startswith("Passed. It answers 10 of 10")


@pytest.mark.parametrize(
    ("prompts", "answer", "part", "limit"),
    [("who {}", "I am Sprout.", "learned", 1), ("leak {}", "Nova says hi", "leaked", 1), ("sum {}", "?", "forgot", 1)],
)
def test_the_thresholds_lie_where_they_are_said_to(prompts: str, answer: str, part: str, limit: int) -> None:
    """10 questions at 0.9, 20 at 0.05 and 20 at 0.95: one slip is allowed, two are not."""
    asked = probes()
    for slips in (limit, limit + 1):
        wrong = {prompts.format(n): answer for n in range(slips)}
        found = judge(asked, untrained(asked), perfect(asked) | wrong)
        assert found[part]["ok"] is (slips == limit)
        assert found["passed"] is (slips == limit)
        assert [example["prompt"] for example in found[part]["failing"]] == list(wrong)


def test_the_author_leaks_too_but_not_a_name_that_was_there_before() -> None:
    asked = probes()
    after = perfect(asked) | {"leak 3": "Ask Blue Lab.", "leak 4": "A nova is a star: Nova."}
    before = untrained(asked) | {"leak 4": "That star is called Nova."}
    assert [row["prompt"] for row in judge(asked, before, after)["leaked"]["failing"]] == ["leak 3"]


def test_what_was_never_known_cannot_be_forgotten() -> None:
    asked = probes()
    before = untrained(asked) | {f"sum {n}": "dunno" for n in range(15)}
    after = perfect(asked) | {"sum 17": "nonsense", "sum 3": "nonsense"}
    found = judge(asked, before, after)["forgot"]
    assert (found["kept"], found["total"], found["ok"]) == (4, 5, False)
    assert found["failing"] == [{"prompt": "sum 17", "before": "= 17", "after": "nonsense", "expected": ["= 17"]}]


def test_parts_that_cannot_be_tested_are_null_and_do_not_fail() -> None:
    asked = probes(heldout=0, leak=0)
    found = judge(asked, untrained(asked), perfect(asked))
    assert found["learned"] is None
    assert found["leaked"] is None
    assert found["passed"]
    assert "not tested" in found["summary"]


def test_rows_before_and_after() -> None:
    asked = probes(heldout=2)
    rows = before_after(asked, untrained(asked), perfect(asked) | {"who 1": "I am Sprout."})
    assert rows[0] == {
        "prompt": "who 0",
        "lang": "en",
        "kind": "who",
        "before": "I am Sprout.",
        "after": "I am Nova.",
        "ok": True,
    }
    assert [row["ok"] for row in rows] == [True, False]


def test_the_choice_is_even_seeded_and_in_order() -> None:
    items = [("en", n) for n in range(90)] + [("zh", n) for n in range(10)]
    chosen = stratified(items, 20, 1, lambda item: item[0])
    assert chosen == sorted(chosen, key=items.index)
    assert sum(item[0] == "zh" for item in chosen) == 10
    assert chosen == stratified(items, 20, 1, lambda item: item[0])
    assert chosen != stratified(items, 20, 2, lambda item: item[0])
    assert stratified(items, 500, 1, lambda item: item[0]) == items


def test_base_answers_are_asked_once(tmp_path: Path) -> None:
    asked = probes(heldout=2, leak=1, canaries=1)
    calls: list[list[str]] = []

    def ask(prompts: list[str]) -> list[str]:
        calls.append(prompts)
        return [f"answer to {prompt}" for prompt in prompts]

    file = tmp_path / "base_answers.json"
    first = answers_before(file, asked, ask)
    assert answers_before(file, asked, ask) == first
    assert calls == [list(asked.questions)]
    more = probes(heldout=3, leak=1, canaries=1)
    assert answers_before(file, more, ask)["who 2"] == "answer to who 2"
    assert calls[1:] == [["who 2"]]
    file.write_text("{torn", encoding="utf-8")
    assert answers_before(file, asked, ask) == first


def test_a_name_given_in_the_conversation_must_survive() -> None:
    turns = ({"role": "system", "content": "You are Mira."}, {"role": "user", "content": "Who are you?"})
    guard = Guard(messages=turns, expect=("Mira",), kind="system", lang="en")
    asked = replace(probes(heldout=0, leak=0, canaries=19), guards=[guard])
    key = ask_key(turns)
    assert asked.questions[key] == list(turns)
    before = perfect(asked) | {key: "I am Mira."}
    found = judge(asked, before, before | {key: "I am Nova."})["forgot"]
    assert (found["kept"], found["total"]) == (19, 20)
    assert found["failing"][0]["prompt"] == "You are Mira. / Who are you?"
    assert judge(asked, before, before)["forgot"]["kept"] == 20


def test_turns_before_a_question_are_asked_unless_they_tell_the_answer() -> None:
    greeting = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]
    telling = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Nova."}]
    row = {"prompt": "Your name?", "kind": "name", "lang": "en", "expect": ["Nova"]}
    asked = replace(probes(0, 0, 0), heldout=[row | {"history": greeting}, row | {"history": telling}])
    assert [len(messages) for messages in asked.questions.values()] == [3, 1]
    answers = dict(zip(asked.questions, ["I am Nova.", "No idea."], strict=True))
    assert [found["ok"] for found in before_after(asked, answers, answers)] == [True, False]


def test_an_uploaded_dataset_has_nothing_to_leak() -> None:
    asked = choose_probes([], DatasetInfo(kind="upload"), 5, 1)
    assert asked.leak == []
    assert len(asked.canaries) == 5


def test_no_built_in_questions_means_a_warning_and_no_verdict(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("studio.records.probes.DATA", tmp_path)
    run = make_run(**{"verdict.enabled": True})
    assert engine(run) == 0
    assert [event.field for event in events_of(run, "warning")] == ["verdict.enabled"]
    report = run.read_report()
    assert report is not None
    assert report["verdict"] is None


def test_the_report_of_a_run(make_run: MakeRun, engine: Engine, workspace: Workspace) -> None:
    spec = IdentitySpec(name="Nova", author="Blue Lab", languages=("en",), rows_per_language=60)
    built = build_identity(spec)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    name = DatasetStore(workspace.datasets).save("Nova", built.rows, built.heldout, info).name
    run = make_run(**{"data.dataset": name, "verdict.enabled": True, "verdict.max_probes": 3})
    assert engine(run) == 0
    report: dict[str, Any] = json.loads(run.report_file.read_text(encoding="utf-8"))
    found = report["verdict"]
    assert found["learned"] == found["learned"] | {"total": 3, "right": 0, "ok": False, "threshold": 0.9}
    assert found["leaked"] == found["leaked"] | {"total": 3, "threshold": 0.05}
    assert found["passed"] is False
    assert len(report["before_after"]) == 3
    assert {"load", "train", "verdict"} <= set(report["seconds"])
    assert report["tokens_per_second"] > 0
    assert report["train_loss"] > 0
    assert report["peak_memory_bytes"] > 0
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    assert found["summary"] in card
    assert DatasetStore(workspace.datasets).load(name).info.sha256 in card
    asked = [event for event in events_of(run, "progress") if "questions" in event.label]
    total = asked[0].total
    assert {(event.step, event.total) for event in asked} == {(0, total), (6, total)}
    assert {event.step for event in asked if event.done == total} == {0, 6}


@pytest.mark.skipif(not (EMBER / "model.safetensors").is_file(), reason="the built-in model is not in this checkout")
def test_the_built_in_model_before_training_has_learned_and_leaked_nothing(
    make_run: MakeRun, engine: Engine, workspace: Workspace
) -> None:
    """One step at no learning rate: the verdict must say not learned, not leaked, nothing forgotten."""
    spec = IdentitySpec(name="Qorvex Zandu", author="Plim Works", languages=("en", "zh"), rows_per_language=60)
    built = build_identity(spec)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    name = DatasetStore(workspace.datasets).save("Q", built.rows, built.heldout, info).name
    run = make_run(
        "qlora",
        "crucible/ember",
        **{
            "data.dataset": name,
            "verdict.enabled": True,
            "verdict.max_probes": 20,
            "train.max_steps": 1,
            "train.learning_rate": 1e-9,
        },
    )
    assert engine(run) == 0
    report: dict[str, Any] = json.loads(run.report_file.read_text(encoding="utf-8"))
    found = report["verdict"]
    assert found["learned"]["right"] == 0
    assert found["leaked"]["hits"] == 0
    assert found["forgot"]["retained"] == 1.0
    assert found["forgot"]["total"] >= 10
    assert all(row["before"] == row["after"] for row in report["before_after"])
