"""A field added to the configuration has its control in the form, with nothing else changed."""

from __future__ import annotations

from typing import Annotated, Any

import gradio as gr
import pytest
from building import built
from pydantic import Field

from studio.config import RunConfig, TrainSection
from studio.schema import Ui
from studio.ui.widgets import form as form_module
from studio.ui.widgets.form import Form


class MoreTrain(TrainSection):
    """The optimisation and one thing more."""

    adam_epsilon: Annotated[float, Field(gt=0, lt=1), Ui(label="Adam epsilon", aliases=("eps",), advanced=True)] = 1e-8
    """Keeps the step finite where gradients are tiny."""


class MoreConfig(RunConfig):
    """A configuration with the field more."""

    train: MoreTrain = MoreTrain()


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> Form:
    monkeypatch.setattr(form_module, "T", lambda key: key)  # its texts come from RunConfig itself

    def make() -> Form:
        with gr.Blocks():
            made = Form(MoreConfig)
            made.place([spec.path for spec in made.specs])
        return made

    return built(make)


def values(form: Form, **changes: str) -> list[Any]:
    shown = form.defaults() | {"model.model_name_or_path": "crucible/ember", "data.dataset": "d"} | changes
    return [shown[spec.path] for spec in form.specs]


def test_it_has_a_control_with_all_its_names(form: Form) -> None:
    control = form["train.adam_epsilon"]
    assert control.value == "1e-08"
    assert "adam_epsilon · eps" in control.info
    assert "train.adam_epsilon" in form.paths(advanced=True)


def test_what_is_typed_is_what_comes_out_and_faults_stand_at_the_field(form: Form) -> None:
    config: Any = form.config(values(form, **{"train.adam_epsilon": "1e-6"}))
    assert config.train.adam_epsilon == pytest.approx(1e-6)
    assert form.errors(values(form, **{"train.adam_epsilon": "3"}))["train.adam_epsilon"].code == "less_than"


def test_a_rule_between_fields_is_shown_at_the_field_it_begins_with(form: Form) -> None:
    wrong = form.errors(values(form, **{"model.adapter": "last", "method": "full"}))
    assert not wrong  # what does not apply to a method is left out of the configuration
    settings = {"train.lr_scheduler_kwargs": "power=2"}
    assert "has no setting power" in form.errors(values(form, **settings))["train.lr_scheduler_kwargs"].message
