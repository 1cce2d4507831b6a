"""The command line: every verb explains itself, errors are one sentence, exit codes mean something."""

import json

import pytest

from studio.cli import build_parser, main
from studio.cli.demo import proven, verdict_lines
from studio.config import RunConfig
from studio.schema import load_yaml

VERBS = [
    "ui",
    "demo",
    "list-cfg",
    "copy-cfg",
    "import-cfg",
    "train",
    "estimate",
    "runs",
    "queue",
    "data",
    "models",
    "merge",
    "serve",
    "chat",
    "doctor",
    "test",
    "convert",
    "export",
    "answers",
    "tools",
]
GOOD = {"ok": True, "share": 1.0, "retained": 1.0, "right": 9, "hits": 0, "kept": 9, "total": 9}


@pytest.fixture(autouse=True)
def own_workspace(workspace, monkeypatch):
    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage: studio " + verb in capsys.readouterr().out


def test_the_parser_knows_every_verb_and_no_other():
    choices = next(a for a in build_parser()._subparsers._group_actions).choices
    assert sorted(choices) == sorted(VERBS)


def test_list_cfg_prints_names_json_and_fields(capsys):
    code, out, _ = run(capsys, "list-cfg", "-p", "ember_qlora")
    assert code == 0
    assert "ember_qlora_identity_e3" in out.splitlines()
    assert json.loads(run(capsys, "list-cfg", "-p", "ember_qlora", "--json")[1]) == out.split()
    assert "`train.learning_rate`" in run(capsys, "list-cfg", "--fields")[1]
    assert "no preset contains" in run(capsys, "list-cfg", "-p", "zzz")[2]


def test_copy_cfg_writes_a_file_once(capsys, tmp_path):
    code, out, _ = run(capsys, "copy-cfg", "ember_qlora_identity_e3", str(tmp_path))
    written = tmp_path / "ember_qlora_identity_e3.yaml"
    assert (code, out.strip()) == (0, str(written))
    assert load_yaml(written.read_text(encoding="utf-8"), RunConfig).method == "qlora"
    code, _, err = run(capsys, "copy-cfg", "ember_qlora_identity_e3", str(written))
    assert code == 4
    assert "exists already" in err
    full = json.loads(run(capsys, "copy-cfg", "ember_lora_custom_e2", "--json")[1])
    assert full["train"]["num_train_epochs"] == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["copy-cfg", "ember_qlra_identity_e3"], "did you mean ember_qlora_identity_e3"),
        (["copy-cfg", "ember_qlora_identity_e3", "/no/such/place/x.yaml"], "cannot be written"),
        (["train", "no_such_preset"], "there is no preset"),
        (["train", "x" * 300], "there is no preset"),
        (["train", "missing.yaml"], "cannot be read"),
        (["train", "ember_qlora_identity_e3", "--set", "lr"], "field=value"),
        (["train", "ember_qlora_identity_e3", "--set", "lerning_rate=1"], "learning_rate"),
        (["train", "ember_qlora_identity_e3", "--set", "lr=fast"], "train.learning_rate: must be a number"),
        (["train", "ember_qlora_identity_e3"], "no dataset"),
        (["train", "ember_qlora_custom_e3"], "data.dataset: is required"),
        (["train", "ember_qlora_identity_e3", "--set", "model_path=/nope"], "does not exist"),
        (["runs", "show", "nothing"], "there is no run"),
        (["runs", "stop", "../.."], "there is no run"),
        (["runs", "resume", ""], "there is no run"),
        (["demo", "--name", "a\nb"], "line"),
        (["demo", "--name", ""], "Name is empty"),
        (["demo", "--author", "{{author}}"], "uthor"),
        (["serve", "crucible/ember", "--port", "99999"], "port"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_4(capsys, argv, words):
    code, _, err = run(capsys, *argv)
    assert code == 4
    assert words in err
    assert len(err.splitlines()) <= 3


def test_a_refused_training_leaves_no_run(capsys, workspace):
    run(capsys, "train", "ember_qlora_identity_e3")
    assert workspace.list_runs() == []


def test_an_empty_workspace_lists_nothing(capsys):
    assert run(capsys, "runs", "list", "--json")[1].strip() == "[]"
    assert "no runs yet" in run(capsys, "runs", "list")[1]


def test_a_workspace_that_cannot_be_written_is_exit_4(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "runs", "list", "--workspace", str(tmp_path / "file" / "x"))
    assert code == 4
    assert "--workspace" in err


def test_the_demo_passes_only_if_all_three_checks_were_made():
    assert proven({"learned": GOOD, "leaked": GOOD, "forgot": GOOD})
    assert not proven({"learned": GOOD, "leaked": GOOD, "forgot": None, "passed": True})
    assert not proven({"learned": GOOD | {"ok": False}, "leaked": GOOD, "forgot": GOOD})
    assert not proven(None)


def test_a_check_that_was_not_made_says_so():
    lines = verdict_lines({"learned": GOOD, "leaked": None, "forgot": GOOD | {"ok": False, "retained": 0.5}})
    assert "100.0%" in lines[0]
    assert "not checked" in lines[1]
    assert lines[2].strip().startswith("✗")
