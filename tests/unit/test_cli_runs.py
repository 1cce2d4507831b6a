"""`studio runs`: what the browser's library does, from the terminal."""

import json

import pytest

from studio import chat_memory, labels, processes, runner
from studio.cli import main
from studio.config import MergeConfig, RunConfig
from studio.events import Launch, LogEvent, RunError, RunState, SampleEvent, Status
from studio.records import DatasetInfo, DatasetStore
from studio.schema import build, load_yaml
from tests.fake_ranks import FakeRanks


@pytest.fixture(autouse=True)
def ws(workspace, monkeypatch):
    monkeypatch.setenv("CRUCIBLE_WORKSPACE", str(workspace.path))
    monkeypatch.setenv("COLUMNS", "400")
    return workspace


def said(capsys, *argv):
    """(exit code, stdout, stderr) of `studio runs …`."""
    code = main(["runs", *argv])
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    return code, told.out, told.err


def new(ws, name="one", dataset="rows", **more):
    data = {"name": name, "model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": dataset}} | more
    return ws.create_run(build(RunConfig, data))


@pytest.fixture
def pair(ws):
    first = new(ws, "first", train={"learning_rate": 1e-4})
    second = new(ws, "second", train={"learning_rate": 5e-4, "num_train_epochs": 7})
    for run, loss in ((first, 0.5), (second, 0.125)):
        run.append_event(LogEvent(step=3, loss=loss))
        run.append_event(SampleEvent(step=0, index=0, prompt="who?", answer="I am Ember.", reason="start"))
        talk = [{"role": "user", "content": "Hello"}]
        run.append_event(SampleEvent(step=3, index=1, prompt=talk, answer="Hi.", reason="end"))
        run.append_event(SampleEvent(step=3, index=0, prompt="who?", answer=f"I am {run.id}.", reason="end"))
    return first, second


def test_list_filters_and_sorts(capsys, ws, pair):
    first, second = pair
    labels.tag(first, ["Keep"])
    labels.rename(second, "Novas lehrer")
    ids = lambda *options: [line["id"] for line in json.loads(said(capsys, "list", "--json", *options)[1])]  # noqa: E731
    assert ids("--tag", "keep") == [first.id]
    assert ids("--search", "LEHRER nova") == [second.id]
    assert ids("--search", "absent") == []
    assert set(ids("--state", "queued")) == {first.id, second.id}
    assert ids("--sort", "loss") == [second.id, first.id]
    assert "2 runs" in said(capsys, "list")[1]
    assert "#Keep" in said(capsys, "list")[1]
    assert "no run is like that" in said(capsys, "list", "--tag", "x")[1]


def test_show_tells_all_in_words_and_as_json(capsys, pair):
    first, _ = pair
    code, out, _ = said(capsys, "show", "first")
    assert code == 0
    assert first.id in out
    assert json.loads(said(capsys, "show", first.id, "--json")[1])["loss"] == 0.5


def test_rename_and_tag(capsys, pair):
    first, _ = pair
    assert said(capsys, "rename", "first", "Best so far")[0] == 0
    assert said(capsys, "tag", "first", "--add", "a", "--add", "b")[0] == 0
    assert json.loads(said(capsys, "tag", "first", "--remove", "a", "--json")[1])["tags"] == ["b"]
    assert "Best so far #b" in said(capsys, "tag", first.id)[1]
    code, _, err = said(capsys, "tag", "first", "--add", " ")
    assert (code, err.startswith("error: tag: is empty")) == (4, True)


def test_delete_asks_first(capsys, ws, pair, monkeypatch):
    first, second = pair
    code, _, err = said(capsys, "delete", "first")
    assert (code, "--yes" in err) == (4, True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert said(capsys, "delete", "first")[0] == 4
    assert first.path.exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert said(capsys, "delete", "first")[0] == 0
    assert not first.path.exists()
    assert json.loads(said(capsys, "delete", second.id, "--yes", "--json")[1])["deleted"] == [second.id]
    assert ws.list_runs() == []


def test_delete_says_what_it_refused(capsys, ws, pair):
    first, _ = pair
    first.adapter.mkdir()
    child = new(ws, "child", model={"model_name_or_path": "crucible/ember", "adapter": str(first.adapter)})
    code, _, err = said(capsys, "delete", "first", "--yes")
    assert code == 4
    assert f"error: run {first.id} cannot be deleted: run {child.id} continues from it; delete that first" in err


def test_clone_writes_a_configuration_that_can_be_trained(capsys, pair, tmp_path):
    first, _ = pair
    code, out, _ = said(capsys, "clone", "first", "--set", "lr=0.002", "--set", "name=new")
    assert code == 0
    config = load_yaml(out, RunConfig)
    assert (config.train.learning_rate, config.name) == (0.002, "new")
    file = tmp_path / "c.yaml"
    assert said(capsys, "clone", "first", str(file))[0] == 0
    assert load_yaml(file.read_text(encoding="utf-8"), RunConfig) == first.config()
    code, _, err = said(capsys, "clone", "first", "--set", "learnig_rate=1")
    assert (code, "learning_rate" in err) == (4, True)
    code, _, err = said(capsys, "clone", "first", str(tmp_path / "no" / "c.yaml"))
    assert (code, "cannot be written" in err) == (4, True)


def test_a_merge_has_nothing_to_clone(capsys, ws):
    ws.create_run(build(MergeConfig, {"name": "m", "base": "b", "adapter": "a", "out": "o"}))
    for verb in ("clone", "again"):
        code, _, err = said(capsys, verb, "m")
        assert (code, "is no training" in err) == (4, True)


def test_again_starts_the_frozen_configuration_and_says_that_the_data_changed(capsys, ws, monkeypatch):
    store = DatasetStore(ws.datasets)
    talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Nova."}]
    name = store.save("rows", [{"messages": talk}], [], DatasetInfo(kind="upload")).name
    run = new(ws, "nova", dataset=name, train={"learning_rate": 0.00042})
    run.data_file.write_text(json.dumps([[name, "0" * 64]]), encoding="utf-8")
    started = []

    def submit(workspace, config):
        started.append(config)
        made = workspace.create_run(config)
        made.write_status(Status(state=RunState.FINISHED))
        return made

    monkeypatch.setattr(runner, "submit", submit)
    code, out, err = said(capsys, "again", "nova", "--detach", "--json")
    assert code == 0, err
    assert started == [run.config()]
    assert json.loads(out)["id"] != run.id
    assert f"The dataset {name} has changed since run {run.id}" in err


def test_again_is_refused_when_it_could_not_work_now(capsys, ws, monkeypatch):
    new(ws, "nova", dataset="gone")
    monkeypatch.setattr(runner, "submit", lambda *_: pytest.fail("must not start"))
    code, _, err = said(capsys, "again", "nova")
    assert (code, "error: " in err) == (4, True)


def test_compare_shows_only_what_differs(capsys, pair):
    first, second = pair
    code, out, _ = said(capsys, "compare", "first", "second")
    assert code == 0
    for wanted in ("train.learning_rate", "0.0005", "train.num_train_epochs", f"I am {second.id}.", "0.125"):
        assert wanted in out, wanted
    assert "lora_dropout" not in out
    found = json.loads(said(capsys, "compare", first.id, "second", "--json")[1])
    assert [row["path"] for row in found["fields"]] == ["train.learning_rate", "train.num_train_epochs"]
    assert found["fields"][0]["values"] == ["0.0001", "0.0005"]
    assert [row["prompt"] for row in found["prompts"]] == ["who?", "user: Hello"]
    assert found["prompts"][0]["before"] == "I am Ember."


def test_compare_wants_two_different_runs(capsys, pair):
    code, _, err = said(capsys, "compare", "first", "first")
    assert (code, "at least two" in err) == (4, True)


def test_card_goes_where_it_shall(capsys, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, _ = pair
    assert said(capsys, "card", "first", "--md", str(tmp_path / "c.md"), "--lang", "zh")[0] == 0
    assert "运行卡片" in (tmp_path / "c.md").read_text(encoding="utf-8")
    code, out, _ = said(capsys, "card", "first")
    assert out.split() == [f"{first.id}.html", f"{first.id}.md"]
    assert first.id in (tmp_path / f"{first.id}.html").read_text(encoding="utf-8")


def test_resume_hands_its_changes_on(capsys, pair, monkeypatch):
    first, _ = pair
    asked = []
    monkeypatch.setattr(runner, "resume", lambda run, changes: asked.append((run.id, changes)))
    assert said(capsys, "resume", "first", "--set", "train.per_device_train_batch_size=1", "--detach")[0] == 0
    assert said(capsys, "resume", "first", "--detach")[0] == 0
    assert asked == [(first.id, {"train.per_device_train_batch_size": 1}), (first.id, None)]


def test_a_resume_gets_the_memory_that_the_chat_holds(capsys, pair, monkeypatch):
    first, _ = pair
    first.write_launch(Launch(argv=[], **processes.record(2**22 + 1)))
    first.write_status(Status(state=RunState.STOPPED))
    holder = chat_memory.ChatHolder(**processes.record(2**22 + 1), port=5, base="crucible/ember")
    monkeypatch.setattr(runner, "needs_chat_memory", lambda *_: holder)
    monkeypatch.setattr(chat_memory, "release", lambda *_: [holder])
    monkeypatch.setattr(runner, "resume", lambda *_: None)
    code, _, err = said(capsys, "resume", "first", "--detach")
    assert (code, "the chat with crucible/ember was ended" in err) == (0, True)


def test_of_a_run_that_failed_no_process_is_said_to_run(capsys, ws):
    run = new(ws, parallel={"num_processes": 2})
    FakeRanks(run).beat("train", 4, "step")
    assert run.read_ranks()[0].state is RunState.RUNNING
    error = RunError(kind="internal", message="Process 1 of 2 (vm) was killed by SIGKILL.", details={"rank": 1})
    run.write_launch(Launch(argv=[], pid=2**22 + 1, create_time=1.0, host="here"))
    run.write_status(Status(state=RunState.FAILED, phase="train", error=error))
    told = said(capsys, "show", run.id)[1]
    assert "0 on node-a (pid 4000)  ended, step 4  " in told
    assert "1 on node-a (pid 4001)  died, step 4" in told
