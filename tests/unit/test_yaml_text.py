"""YAML of people: limits, tags, aliases and keys given twice are one sentence each; nothing hangs."""

import pytest

from studio.config import RunConfig
from studio.schema import ConfigError, build, parse_overrides, parse_yaml
from studio.yaml_text import LONGEST, MOST, YamlFault, read_text, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a: !!python/object/apply:os.system ['id']",
            "line 1, column 4: the tag !!python/object/apply:os.system is not",
        ),
        ("a: !mine x", "the tag !mine is not allowed"),
        ("a: !!binary aGk=", "the tag !!binary is not allowed"),
        (BOMB, "aliases that stand for too many values"),
        (CHAIN, "aliases that stand for too many values"),
        (MERGES, "aliases that stand for too many values"),
        ("a: &a [*a]", "a value that contains itself"),
        ("a: &a {<<: *a}", "a value that contains itself"),
        ("[" * 200_000, "more than 50 levels"),
        ("{a: " * 60 + "}" * 60, "more than 50 levels"),
        ("- 1\n" * (MOST + 1), f"more than {MOST} values"),
        ("x" * (LONGEST + 1), "longer than 1 MB"),
        ("lr: 1\nname: x\nlr: 2\n", "line 3, column 1: 'lr' is given twice with different values, first at line 1"),
        ("train: {lr: 1, lr: 2}", "'lr' is given twice"),
        ("lr: [1]\nlr: [1]", "'lr' is given twice"),
        ("a: " + "9" * 5000, "a number of thousands of digits"),
        ("a: 2024-99-99", "month must be"),
        ("a: [1", "cannot be read at line"),
        ("a: b: c", "line 1, column 5"),
        ("? [a]\n: b", "line 1"),
        ("a: b\n---\nc: d", "another document"),
        ("a: *nothing", "line 1"),
        ("\0", "cannot be read"),
        ("a: \ud800", "cannot be read"),
    ],
)
def test_what_is_not_read_says_where_and_why(text, words):
    with pytest.raises(YamlFault) as caught:
        read_yaml(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: &x [1, 2]\nb: *x\n", {"a": [1, 2], "b": [1, 2]}),
        ("base: &b {x: 1}\nc: {<<: *b, y: 2}\n", {"base": {"x": 1}, "c": {"x": 1, "y": 2}}),
        ("lr: 1\nlr: 1\n", {"lr": 1}),
        ("a: !!str 5", {"a": "5"}),
        ("名字: 丹", {"名字": "丹"}),
    ],
)
def test_ordinary_yaml_is_read_as_ever(text, value):
    assert read_yaml(text) == value


def test_a_text_file_is_read_within_limits(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_text(path) == "a: 1\n"
    path.write_bytes(b"a" * (10 * 2**20))
    with pytest.raises(YamlFault, match="larger than 1 MB"):
        read_text(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(YamlFault, match="not UTF-8"):
        read_text(path)
    with pytest.raises(YamlFault, match="it is no file"):
        read_text(tmp_path)


def test_overrides_are_read_within_the_same_limits():
    deep = "[" * 1000
    assert parse_overrides([f"name={deep}", "name2=!!python/object:os.system {}"])["name"] == deep


MINIMAL = "model_path: m\ndata_path: d\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('lr: "5e-5,"', "must be a number, like 0.0002 or 2e-4 (got '5e-5,'; did you mean 5e-5?)"),
        ('lr: "0,0002"', "did you mean 0.0002?"),
        ("max_length: '2048。'", "did you mean 2048?"),
        ("max_epochs: abc", "must be a number, like 0.0002 or 2e-4 (got 'abc')"),
        ("epochs: 3", "did you mean 'max_epochs'"),
        ("lr: -1", "greater than 0"),
        ("lr: .nan", "finite"),
        ("lr: nan", "finite"),
        ("lr: .inf", "finite"),
        ("lr: 1e999", "finite"),
        (f"seed: {'9' * 400}", "at most 4294967295 (got a number of many digits)"),
        ("batch_size: 1.0e+30", "whole number"),
        ("max_epochs: 1e300", "at most 10000"),
        ("lr: 1e-4\ntrain: {learning_rate: 2e-4}", "given twice"),
        ("train: 5", "is a section"),
        ("name: 2024-09-09", "must be text"),
    ],
)
def test_bad_values_of_a_configuration_are_one_clear_sentence(line, words):
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, parse_yaml(MINIMAL + line))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
