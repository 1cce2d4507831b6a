"""Several GPUs and machines in the form and in Export: conflicts at the field, numbers, lines to paste, jobs."""

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import yaml
from building import built, context

from studio.config import RunConfig
from studio.launch_lines import machine_lines
from studio.schema import build, merge
from studio.ui.context import Context, Refused
from studio.ui.tabs import export_job, starting, train_parallel
from studio.ui.tabs.train_preview import review
from studio.ui.widgets.form import Form
from studio.workspace import Workspace

BASE = {"name": "n", "model.model_name_or_path": "crucible/ember", "data.dataset": "rows", "method": "lora"}


@pytest.fixture
def ctx(workspace: Workspace) -> Context:
    found = context(workspace)

    def form() -> Form:
        with gr.Blocks():
            return Form(RunConfig)

    found.form = built(form)
    return found


def _values(ctx: Context, **parallel: Any) -> list[Any]:
    """What the controls hold; a value need not be right."""
    assert ctx.form is not None
    given = {f"parallel.{name}": value for name, value in parallel.items()}
    return list((ctx.form.defaults() | BASE | given).values())


def _layer(**parallel: Any) -> dict[str, Any]:
    return merge(RunConfig, BASE | {f"parallel.{name}": value for name, value in parallel.items()})


def _review(ctx: Context, **parallel: Any) -> dict[str, Any]:
    assert ctx.form is not None
    return review(ctx.form, _values(ctx, **parallel), ctx.counting)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs."""
    four = [SimpleNamespace(index=n, name="H200") for n in range(4)]
    monkeypatch.setattr(starting, "cards", lambda: four)


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"num_processes": "3", "num_machines": "2", "main_process_ip": "a"}, "num_processes", "3 processes cannot"),
        ({"num_processes": "2", "num_machines": "2"}, "main_process_ip", "Name the address"),
        ({"num_processes": "0"}, "num_processes", ""),
        ({"num_processes": "many"}, "num_processes", ""),
    ],
)
def test_what_cannot_be_is_said_at_its_field(ctx: Context, given: dict[str, str], field: str, words: str) -> None:
    issues = _review(ctx, **given)["issues"]
    assert [issue["field"] for issue in issues] == [f"parallel.{field}"]
    assert issues[0]["message"].startswith(words)
    assert "parallel." not in issues[0]["message"]


def test_every_way_to_divide_has_its_numbers_and_can_be_chosen(ctx: Context) -> None:
    found = _review(ctx, num_processes="4", deepspeed="zero1")["parallel"]
    assert found["processes"] == 4
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "none"
    assert {"zero1", "zero2", "zero3"} < set(names)
    assert [row["name"] for row in found["rows"] if row["now"]] == ["zero1"]
    assert all(row["bytes"] > 0 for row in found["rows"])
    for row in found["rows"]:
        if not row["problem"]:
            build(RunConfig, merge(RunConfig, BASE | {"parallel.num_processes": 4} | row["set"]))


def test_a_dataset_that_is_not_chosen_yet_hides_neither_conflicts_nor_numbers(ctx: Context) -> None:
    assert ctx.form is not None
    place = [spec.path for spec in ctx.form.specs].index("data.dataset")
    for given, wrong in (({}, []), ({"num_machines": "2"}, ["parallel.num_processes"])):
        values = _values(ctx, **{"num_processes": "3", "main_process_ip": "a"} | given)
        values[place] = ""
        found = review(ctx.form, values, ctx.counting)
        assert [issue["field"] for issue in found["issues"]] == ["data.dataset", *wrong]
        assert bool(found.get("parallel")) is not bool(wrong)


def test_each_machine_has_its_line(ctx: Context) -> None:
    found = _review(ctx, num_processes="4", num_machines="2", main_process_ip="10.0.0.1")["parallel"]
    config = build(RunConfig, _layer(num_processes=4, num_machines=2, main_process_ip="10.0.0.1"))
    assert found["lines"] == machine_lines(config)
    assert _review(ctx)["parallel"]["lines"] == []


def test_cards_together_set_the_processes_and_follow_them(cards: None) -> None:
    offered = [value for _, value in starting.card_choices()]
    assert offered == ["any", "together-2", "together-3", "together-4", "0", "1", "2", "3"]
    assert train_parallel.choose_cards("together-3", "1", "1") == "3"
    assert train_parallel.choose_cards("together-3", "1", "2") == "6"
    assert train_parallel.choose_cards("1", "3", "1") == "1"
    assert train_parallel.follow("any", "4", "1") == "together-4"
    assert train_parallel.follow("together-4", "1", "1") == "any"
    assert train_parallel.follow("2", "1", "1").get("__type__") == "update"
    assert starting.wanted_cards("together-4") is None
    assert starting.wanted_cards("1") == [1]
    for wrong in ("together-9", "together-x", "7", "<b>"):
        with pytest.raises(Refused):
            starting.wanted_cards(wrong)


def test_a_machine_without_cards_offers_none_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "cards", list)
    assert [value for _, value in starting.card_choices()] == ["any"]


@pytest.mark.parametrize("kind", ["slurm", "skypilot", "kubernetes", "nonsense", None])
def test_a_job_of_the_form_needs_no_address(ctx: Context, kind: str | None) -> None:
    values = _values(ctx, num_processes="4", num_machines="2")
    found = export_job.review(ctx, export_job.FORM, kind, values)
    assert found["problem"] == ""
    assert (found["processes"], found["machines"]) == (4, 2)
    assert "machine-0" not in found["text"]
    assert found["submit"].endswith(found["file"])
    if found["kind"] != "slurm":
        assert list(yaml.safe_load_all(found["text"]))


def test_a_job_of_a_run_is_what_that_run_trains(ctx: Context, workspace: Workspace) -> None:
    run = workspace.create_run(build(RunConfig, _layer(num_processes=2) | {"seed": 7}))
    assert export_job.first(ctx, run.id, None, _values(ctx, num_processes="0")) == run.id
    assert export_job.first(ctx, run.id, None, _values(ctx)) == export_job.FORM
    found = export_job.review(ctx, run.id, "slurm", [])
    assert "parallel.num_processes=2" in found["text"]
    for wrong in ("gone", "../..", "<b>"):
        with pytest.raises(Refused):
            export_job.review(ctx, wrong, "slurm", [])


def test_a_form_with_an_error_gives_no_job_but_the_reason(ctx: Context) -> None:
    found = export_job.review(ctx, export_job.FORM, "slurm", _values(ctx, num_processes="3", num_machines="2"))
    assert found["problem"].startswith("3 processes cannot be divided")
    assert found["label"] == "Processes (all machines)"
