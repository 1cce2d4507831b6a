"""A hyper-parameter is declared in one place: a field added to a subclass is everywhere, with nothing else changed.

The same field in the browser's form: tests/ui/test_new_field.py; in TrainingArguments: tests/engine/test_hyper.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from studio.cli import train as cli
from studio.config import RunConfig, TrainSection
from studio.schema import ConfigError, Ui, build, docs_table, dump_yaml, load_yaml, parse_overrides, walk

MINIMAL: dict[str, Any] = {"model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "identity"}}


class MoreTrain(TrainSection):
    """The optimisation and one thing more; the name is one of TrainingArguments."""

    adam_epsilon: Annotated[float, Field(gt=0, lt=1), Ui(label="Adam epsilon", aliases=("eps",), advanced=True)] = 1e-8
    """Keeps the step finite where gradients are tiny."""


class MoreConfig(RunConfig):
    """A configuration with the field more."""

    train: MoreTrain = MoreTrain()


def test_it_is_walked_with_all_that_was_said_of_it() -> None:
    (spec,) = [spec for spec in walk(MoreConfig) if spec.path not in {known.path for known in walk(RunConfig)}]
    assert (spec.path, spec.kind, spec.default, spec.minimum, spec.maximum) == (
        "train.adam_epsilon",
        "float",
        1e-8,
        0,
        1,
    )
    assert spec.help == "Keeps the step finite where gradients are tiny."


@pytest.mark.parametrize("name", ["train.adam_epsilon", "adam_epsilon", "eps"])
def test_it_is_read_and_written_as_yaml_under_every_name(name: str) -> None:
    config = load_yaml(f"model_path: m\ndata_path: d\n{name}: 1e-6\n", MoreConfig)
    assert config.train.adam_epsilon == pytest.approx(1e-6)
    assert "adam_epsilon: 1.0e-06" in dump_yaml(config)
    assert load_yaml(dump_yaml(config), MoreConfig) == config


def test_it_is_set_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "RunConfig", MoreConfig)
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(build(RunConfig, MINIMAL)), encoding="utf-8")
    config: Any = cli.load_config(str(file), parse_overrides(["eps=1e-5"]))
    assert config.train.adam_epsilon == pytest.approx(1e-5)


def test_it_is_in_the_table_of_all_fields() -> None:
    (row,) = [line for line in docs_table(MoreConfig).splitlines() if "adam_epsilon" in line]
    assert "`eps`" in row
    assert "Keeps the step finite" in row


@pytest.mark.parametrize(("value", "fault"), [(3, "less than 1"), (0, "greater than 0"), ("tiny", "must be a number")])
def test_wrong_values_of_it_are_refused(value: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        build(MoreConfig, MINIMAL | {"eps": value})
    assert caught.value.errors[0].path == "train.adam_epsilon"
