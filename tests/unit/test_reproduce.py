"""The command line and the YAML of a configuration start exactly it again."""

import shlex

import pytest

from studio.cli.train import load_config
from studio.config import RunConfig
from studio.presets import compose
from studio.reproduce import base_preset, command_line, same_run
from studio.schema import build, dump_yaml, load_yaml, merge, parse_overrides, walk

MINIMAL = {"model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "identity"}}
# What some fields need beside them: 16-bit weights, validation rows.
COMPANIONS = {"method": "lora", "data": {"validation_share": 0.1}}
MACHINES = {"parallel.num_processes": 120, "parallel.num_machines": 60, "parallel.main_process_ip": "10.0.0.1"}
BESIDE = {
    "parallel.fsdp": {"parallel.num_processes": 2},
    "parallel.sequence_parallel_size": {"parallel.num_processes": 118, "parallel.deepspeed": "zero3"},
    "parallel.num_machines": MACHINES | {"parallel.num_processes": 118},
    "parallel.machine_rank": MACHINES,
}
HARD = "a: b\n#  'ü' \"$HOME\" `id` 5"
SPECIAL = {
    "schema_version": 1,
    "train.lr_scheduler_kwargs": None,
    "train.report_to": ["tensorboard", "wandb"],
    "parallel.main_process_ip": "fe80::1%eth0",
    "verdict.probes": [{"prompt": "a 'b' $(c)\n#", "expect": ["二: {y}", "null"]}],
}


def again(config):
    """The configuration a shell would start from the command line."""
    program, verb, *rest = shlex.split(shlex.join(command_line(config)))
    assert (program, verb) == ("studio", "train")
    reference = rest.pop(0) if rest and rest[0] != "--set" else None
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    return load_config(reference, parse_overrides(rest[1::2]))


def value_for(spec):
    """A value unlike the default and hard to write on a command line."""
    if spec.choices:
        return next((choice for choice in spec.choices if choice != spec.default), spec.choices[0])
    if spec.item:
        return [{"dataset": "a 'b' $(c)", "weight": 0.1}, {"dataset": "二", "system": "x: {y}\n- z #"}]
    plain = {"bool": not spec.default, "int": 59, "float": 0.1234567890123}
    return plain.get(
        spec.kind, ["a: b", "null", "2e-4", ""] if spec.kind == "list" else "a: b\n#  'ü' \"$HOME\" `id` 5"
    )


@pytest.mark.parametrize("spec", walk(RunConfig), ids=lambda spec: spec.path)
def test_every_field_survives_the_command_line_and_the_yaml(spec):
    value = SPECIAL[spec.path] if spec.path in SPECIAL else value_for(spec)
    config = build(RunConfig, merge(RunConfig, MINIMAL, COMPANIONS, BESIDE.get(spec.path, {}), {spec.path: value}))
    assert same_run(again(config), config)
    assert load_yaml(dump_yaml(config, full=True), RunConfig) == config


@pytest.mark.parametrize(
    "text", ["null", "~", "yes", "2e-4", "1", "", " ", "[x", "a=b", "!x", "&a", "*a", "日本", "\t", "--set"]
)
def test_texts_that_yaml_reads_as_something_else_survive(text):
    config = build(RunConfig, merge(RunConfig, MINIMAL, {"name": text, "system": text}))
    assert same_run(again(config), config)


def test_a_preset_is_named_and_only_what_differs_from_it_is_set():
    config = build(RunConfig, compose("internlm2_chat_7b_qlora_alpaca_enzh_e3"))
    assert command_line(config) == ["studio", "train", "internlm2_chat_7b_qlora_alpaca_enzh_e3"]
    changed = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 2e-4, "seed": 7})})
    assert command_line(changed, ("python", "launch.py"))[-2:] == ["--set", "train.seed=7"]
    assert same_run(again(changed), changed)


def test_a_default_that_a_preset_changed_can_be_set_back():
    config = build(RunConfig, compose("internlm2_chat_7b_qlora_alpaca_e3"))
    back = build(RunConfig, MINIMAL | {"name": config.name})
    assert same_run(again(back), back)
    assert back.lora.r != config.lora.r
    assert base_preset(back) == config.name
    assert base_preset(build(RunConfig, MINIMAL | {"name": "my run"})) is None
