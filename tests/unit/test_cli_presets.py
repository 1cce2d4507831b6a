"""list-cfg, copy-cfg, import-cfg and train by name: from the shell's side; datasets of a hub under their own id."""

import json
import shlex

import pytest

from studio.cli import main
from studio.config import RunConfig
from studio.presets import compose
from studio.records.store import DatasetInfo, DatasetStore
from studio.schema import build, load_yaml

NAME = "internlm2_chat_1_8b_qlora_alpaca_e3"
FACTORY = "model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ndataset: a\nuse_galore: true\n"
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "origin": "upload"}


@pytest.fixture(autouse=True)
def own_workspace(workspace, monkeypatch):
    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def test_several_presets_are_printed_fully_resolved_one_a_line(capsys):
    code, out, err = run(capsys, "copy-cfg", NAME, "qwen_7b_qlora_oasst1_512_e3", "ember_full_custom_e2", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [line["name"] for line in lines] == [NAME, "qwen_7b_qlora_oasst1_512_e3", "ember_full_custom_e2"]
    assert lines[0]["train"]["weight_decay"] == 0.0
    assert build(RunConfig, lines[0]) == build(RunConfig, compose(NAME))


def test_one_wrong_name_among_several_prints_nothing(capsys):
    code, out, err = run(capsys, "copy-cfg", NAME, "internlm2_chat_1_8b_qlora_alpacca_e3", "--json")
    assert (code, out) == (4, "")
    assert f"did you mean {NAME}" in err


def test_a_copied_preset_holds_the_differences_and_is_never_overwritten(capsys, tmp_path):
    code, out, _ = run(capsys, "copy-cfg", NAME, tmp_path)
    path = tmp_path / f"{NAME}.yaml"
    assert (code, out.strip()) == (0, str(path))
    text = path.read_text(encoding="utf-8")
    assert load_yaml(text, RunConfig) == build(RunConfig, compose(NAME))
    assert "weight_decay" not in text
    path.write_text("mine", encoding="utf-8")
    code, _, err = run(capsys, "copy-cfg", NAME, path)
    assert (code, path.read_text()) == (4, "mine")
    assert "exists already" in err


def test_what_a_name_cannot_do_is_said_beside_it(capsys):
    code, out, err = run(capsys, "copy-cfg", "internlm2_20b_full_custom_pretrain_e1_32k_sp2")
    assert code == 0
    assert "max_length: 32768" in out
    assert "note: sp2: sequences are not split" in err


def test_the_command_of_a_preset_is_what_train_takes(capsys):
    code, out, _ = run(capsys, "copy-cfg", "ember_qlora_custom_e2", "--command")
    assert code == 0
    words = ["studio", "train", "ember_qlora_custom_e2", "--set", "data.dataset=your-dataset"]
    assert shlex.split(out) == words


def test_an_import_writes_the_configuration_and_says_what_is_missing(capsys, tmp_path):
    (tmp_path / "old.yaml").write_text(FACTORY, encoding="utf-8")
    code, out, err = run(capsys, "import-cfg", tmp_path / "old.yaml", tmp_path / "new.yaml")
    assert (code, out.strip()) == (0, str(tmp_path / "new.yaml"))
    assert load_yaml((tmp_path / "new.yaml").read_text(encoding="utf-8"), RunConfig).name == "old"
    assert "2 settings could not be carried over:" in err
    assert "line 5: use_galore: has no counterpart here" in err
    code, out, err = run(capsys, "import-cfg", tmp_path / "old.yaml", "--json")
    found = json.loads(out)
    assert (found["origin"], found["config"]["lora"]["r"]) == ("llamafactory", 8)
    assert [one["name"] for one in found["left_out"]] == ["dataset", "use_galore"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train"], "model.model_name_or_path: is required"),
        (["train", "ember_qlora_identity_e0"], "must be greater than 0"),
        (["train", "minicpm_2b_dpo_qlora"], "training on preferences is not built yet"),
        (["train", "--set", "lr=1e-4,", "ember_qlora_identity_e3"], "did you mean 1e-4?"),
        (["import-cfg", "missing.py"], "missing.py cannot be read"),
        (["copy-cfg", NAME, "a", "b"], "only one file"),
        (["copy-cfg", NAME, "no/such/folder/a.yaml"], "cannot be written"),
        (["copy-cfg", NAME, "a\0b"], "cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(capsys, argv, words):
    code, _, err = run(capsys, *argv)
    assert code == 4
    assert words in err


def test_a_configuration_that_is_no_configuration_is_refused(capsys, tmp_path):
    path = tmp_path / "a.yaml"
    for text, words in (
        ("x" * (10 * 2**20), "larger than 1 MB"),
        ("a: !!python/object/apply:os.system ['id']", "is not allowed"),
        ("a: &a [*a]", "contains itself"),
        ("model_path: m\ndata_path: d\nlr: 1\nlr: 2", "given twice"),
    ):
        path.write_text(text, encoding="utf-8")
        code, _, err = run(capsys, "train", path)
        assert code == 4
        assert words in err


def test_a_dataset_of_a_hub_says_how_to_fetch_it_and_is_found_once_it_is(workspace, capsys):
    """Its columns were mapped when it was saved, so the preset's mapping must not be applied once more."""
    train = ("train", "ember_lora_medical_e1", "--set", "train.max_steps=1", "--detach")
    code, _, err = run(capsys, *train)
    assert code == 4
    assert "fetch it in the Data tab or with `studio data fetch shibing624/medical`" in err
    store = DatasetStore(workspace.datasets)
    saved = store.save("med", [ROW], [], DatasetInfo(kind="import", source="shibing624/medical (finetune, train)"))
    assert store.resolve("shibing624/medical") == workspace.datasets / saved.name / "rows.jsonl"
    assert main(["data", "preview", "ember_lora_medical_e1"]) == 0
    assert "Hello" in capsys.readouterr().out


def test_a_path_that_looks_like_a_hub_id_stays_a_path(workspace):
    with pytest.raises(Exception, match="there is no dataset or file 'data/rows.jsonl'") as caught:
        DatasetStore(workspace.datasets).resolve("data/rows.jsonl")
    assert "fetch" not in str(caught.value)
