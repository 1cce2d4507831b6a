"""The Export tab's handlers: what is offered, what a wish becomes, what is refused, what is started and told."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from building import context
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio.context import LocalContext

from studio import runner
from studio.cli import build_parser
from studio.config import ConvertConfig, ExportConfig, MergeConfig, RunConfig
from studio.events import Launch, RunState, Status
from studio.outputs import OutputConfig
from studio.presets import BUILT_IN
from studio.rundir import RunDir
from studio.schema import build, walk
from studio.ui.context import Context
from studio.ui.fieldtexts import OUTPUTS
from studio.ui.i18n import table
from studio.ui.tabs import export_goals as eg
from studio.ui.tabs import export_list
from studio.ui.tabs.export_command import command
from studio.ui.tabs.export_handlers import CONTROLS, Handlers
from studio.ui.tabs.export_import import FILES
from studio.ui.widgets.form import to_control
from studio.workspace import Workspace

MADE = ("adapter", "safetensors", "bitsandbytes", "gguf", "ollama")
"""Goals that make a folder of a chosen model."""
EMBER = "crucible/ember"


def add_run(workspace: Workspace, name: str, state: RunState = RunState.FINISHED, *parts: str) -> RunDir:
    run = workspace.create_run(build(RunConfig, {"name": name, "model_path": EMBER, "dataset": "d"}))
    for part in parts:
        add_adapter(run.path / part, step=int(part.rpartition("-")[2]) if "-" in part else 0)
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here", started_at=0.0))
    run.write_status(Status(state=state))
    return run


def add_adapter(folder: Path, step: int = 0) -> Path:
    folder.mkdir(parents=True)
    settings = {"base_model_name_or_path": EMBER, "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    return folder


def values(what: str | None, goal: str, name: str = "", state: str | None = None, **options: Any) -> list[Any]:
    """What the controls hold after a visitor chose this."""
    shown = {spec.path: to_control(spec, spec.default) for spec in eg.specs().values()} | {FILES: None} | options
    chosen = {"what": what, "state": state or what, "goals": {"chosen": goal}, "name": name}
    return [(chosen | shown)[control] for control in CONTROLS]


def event(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The components of a page, which no handler here touches."""
    return context(tmp_path_factory.mktemp("page"))


@pytest.fixture
def handlers(page: Context, workspace: Workspace) -> Handlers:
    page.workspace = workspace
    return Handlers(page)


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    return add_run(workspace, "nova", RunState.FINISHED, "checkpoints/checkpoint-9", "adapter")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made and wait; no process is started."""

    def submit(workspace: Workspace, config: OutputConfig, **_: Any) -> RunDir:
        return workspace.create_run(config)

    monkeypatch.setattr(runner, "submit", submit)


# ---- what is offered -------------------------------------------------------------------------------------------------


def test_each_run_is_offered_once_then_imports_then_models(workspace: Workspace, run: RunDir) -> None:
    stopped = add_run(workspace, "stopped", RunState.STOPPED, "checkpoints/checkpoint-5")
    add_run(workspace, "nothing")
    imported = add_adapter(workspace.exports / "theirs")
    keys = [key for _, key in eg.offered(workspace)]
    assert keys == [*sorted([run.id, stopped.id], reverse=True), str(imported), EMBER]
    labels = [label for label, _ in eg.offered(workspace)]
    assert labels[-2:] == ["theirs · imported adapter", f"{EMBER} · base model"]


def test_states_are_the_result_then_complete_checkpoints(handlers: Handlers, workspace: Workspace, run: RunDir) -> None:
    (run.checkpoints / "checkpoint-11").mkdir()  # half-written
    state, facts, cards = handlers.choose(run.id, None)
    assert [key for _, key in state["choices"]] == [run.id, f"{run.id}#checkpoint-9"]
    assert (state["value"], state["visible"]) == (run.id, True)
    assert (facts["what"], facts["base"], facts["method"]) == ("adapter", "ember", "qlora")
    assert cards["chosen"] == "safetensors"


def test_the_best_step_is_chosen_by_default_and_marked(handlers: Handlers, run: RunDir) -> None:
    best = {"step": 9, "path": "checkpoints/checkpoint-9", "why": ""}
    run.best_file.write_text(json.dumps(best), encoding="utf-8")
    state, facts, _ = handlers.choose(run.id, None)
    assert state["value"] == f"{run.id}#checkpoint-9"
    assert [key for label, key in state["choices"] if "best step" in label] == [f"{run.id}#checkpoint-9"]
    assert (facts["best"], facts["step"]) == (True, 9)
    facts, _ = handlers.choose_state(run.id, run.id, None)
    assert (facts["best"], facts["step"]) == (False, None)


def test_an_empty_workspace_offers_the_built_in_model(handlers: Handlers) -> None:
    what, state, facts, cards, follow = handlers.opened("", None, None, None)
    assert what["value"] == EMBER
    assert state["visible"] is False
    assert facts["what"] == "base"
    assert cards["chosen"] == "gguf"
    assert follow["run"] == ""


def test_opening_prefers_what_was_chosen_then_the_selected_run(
    handlers: Handlers, workspace: Workspace, run: RunDir
) -> None:
    newer = add_run(workspace, "newer", RunState.FINISHED, "adapter")
    assert handlers.opened("", None, None, None)[0]["value"] in (run.id, newer.id)
    assert handlers.opened(run.id, None, None, None)[0]["value"] == run.id
    seen = {"chosen": "gguf", "run": newer.id}
    kept = handlers.opened(newer.id, run.id, f"{run.id}#checkpoint-9", seen)
    assert (kept[0]["value"], kept[1]["value"], kept[3]["chosen"]) == (run.id, f"{run.id}#checkpoint-9", "gguf")
    other = handlers.opened(newer.id, run.id, f"{run.id}#checkpoint-9", seen | {"run": run.id})
    assert (other[0]["value"], other[3]["run"]) == (newer.id, newer.id)
    assert handlers.choose(run.id, other[3])[2]["run"] == newer.id


def test_what_a_goal_does_not_support_is_on_its_card(
    handlers: Handlers, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cards = {card["id"]: card for card in handlers.choose(run.id, None)[2]["cards"]}
    assert cards["safetensors"] == {"id": "safetensors", "level": "", "said": ""}
    assert cards["hub"]["level"] == "error"
    assert cards["hub"]["said"] == "Hugging Face lets nobody upload without a token."
    assert "HF_TOKEN" in handlers.review(*values(run.id, "hub"))[0]["issues"][0]["message"]
    of_base = {card["id"]: card for card in handlers.choose(EMBER, None)[2]["cards"]}
    assert [name for name in MADE if of_base[name]["level"] == "error"] == ["adapter", "safetensors"]


@pytest.mark.parametrize(("method", "shown"), [("qlora", True), ("lora", False)])
def test_the_two_bases_are_offered_for_a_run_in_four_bits_only(
    handlers: Handlers, workspace: Workspace, method: str, shown: bool
) -> None:
    run = workspace.create_run(build(RunConfig, {"name": "r", "model_path": EMBER, "dataset": "d", "method": method}))
    add_adapter(run.adapter)
    assert handlers.choose(run.id, None)[2]["fourbit"] is shown
    assert handlers.review(*values(run.id, "safetensors"))[0]["fourbit"] is shown


# ---- what a wish becomes ---------------------------------------------------------------------------------------------


def config(handlers: Handlers, given: list[Any]) -> OutputConfig:
    started = handlers.workspace.run(handlers.start(*given)["run"]).config()
    assert isinstance(started, OutputConfig)
    return started


def test_a_merge_starts_with_the_complete_configuration(handlers: Handlers, run: RunDir, prepared: None) -> None:
    options = {"merge_base": "dequantized", "dtype": "float32", "max_shard_size": "500 mb"}
    made = config(handlers, values(run.id, "safetensors", "My Model", **options))
    assert isinstance(made, MergeConfig)
    assert (made.base, made.adapter) == (EMBER, str(run.adapter))
    assert (made.merge_base, made.dtype, made.max_shard_size) == ("dequantized", "float32", "500MB")
    assert Path(made.out) == handlers.workspace.exports / "My-Model"


def test_a_checkpoint_is_exported_and_names_the_result(handlers: Handlers, run: RunDir, prepared: None) -> None:
    made = config(handlers, values(run.id, "gguf", state=f"{run.id}#checkpoint-9", gguf_type="f16"))
    assert isinstance(made, ExportConfig)
    assert (made.format, made.gguf_type) == ("gguf", "f16")
    assert made.adapter == str(run.checkpoints / "checkpoint-9")
    assert Path(made.out).name == "nova-step9-gguf"


def test_other_goals(handlers: Handlers, workspace: Workspace, run: RunDir, prepared: None) -> None:
    given = config(handlers, values(run.id, "adapter"))
    assert isinstance(given, ConvertConfig)
    assert given.source == str(run.adapter)
    packed = config(handlers, values(EMBER, "bitsandbytes", bits="8"))
    assert isinstance(packed, ExportConfig)
    assert (packed.bits, packed.adapter, packed.model) == (8, None, EMBER)
    assert Path(packed.out).name == "ember-8bit"


def test_several_adapters_with_weights(handlers: Handlers, workspace: Workspace, run: RunDir, prepared: None) -> None:
    theirs = add_adapter(workspace.exports / "theirs")
    more = [
        {"path": str(theirs), "weight": "0.5"},
        {"path": f"{run.id}#checkpoint-9", "weight": ""},
        {"path": " ", "weight": ""},
    ]
    made = config(handlers, values(run.id, "safetensors", more_adapters=more, weight="0.25"))
    assert isinstance(made, MergeConfig)
    assert made.weight == 0.25
    added = [(one.path, one.weight) for one in made.more_adapters]
    assert added == [(str(theirs), 0.5), (str(run.checkpoints / "checkpoint-9"), 1.0)]


@pytest.mark.parametrize("name", ["../../outside", "/etc/x", "a/b", "$(id)", "<b>x</b>", "名字 🜂"])
def test_results_stay_inside_the_workspace(handlers: Handlers, run: RunDir, name: str, prepared: None) -> None:
    made = config(handlers, values(run.id, "safetensors", name))
    assert Path(made.out).resolve().parent == handlers.workspace.exports.resolve()


def test_the_suggested_name_is_one_nobody_will_take(handlers: Handlers, run: RunDir, prepared: None) -> None:
    (handlers.workspace.exports / "nova-merged").mkdir()
    assert handlers.review(*values(run.id, "safetensors"))[1]["placeholder"] == "nova-merged-2"
    handlers.start(*values(run.id, "safetensors"))  # at work or waiting, its folder is not there yet
    found, name = handlers.review(*values(run.id, "safetensors"))
    assert name["placeholder"] == "nova-merged-3"
    assert Path(found["out"]).name == "nova-merged-3"


# ---- before the start ------------------------------------------------------------------------------------------------


def test_the_review_says_place_space_and_command(handlers: Handlers, run: RunDir) -> None:
    found, _ = handlers.review(*values(run.id, "gguf", gguf_type="f32"))
    assert found["ok"] is True
    assert found["merges"] is True
    assert 0 < found["needed"] < found["free"]
    assert found["command"].startswith("studio export gguf ")
    smaller, _ = handlers.review(*values(run.id, "gguf", gguf_type="q8_0"))
    assert smaller["needed"] < found["needed"]


def test_a_wrong_option_is_named_with_its_field(handlers: Handlers, run: RunDir) -> None:
    found, _ = handlers.review(*values(run.id, "safetensors", max_shard_size="2 parsecs"))
    assert (found["ok"], [issue["field"] for issue in found["issues"]]) == (False, ["max_shard_size"])
    assert found["issues"][0]["message"] == "Write a size like 500MB or 2GB."
    answers = handlers.judge(*values(run.id, "safetensors", max_shard_size="2 parsecs"))
    assert [name for name, answer in zip(CONTROLS, answers, strict=True) if not answer["is_valid"]] == [
        "max_shard_size"
    ]
    assert all(answer["is_valid"] for answer in handlers.judge(*values(run.id, "safetensors")))


def test_what_a_goal_cannot_do_is_said_once(handlers: Handlers) -> None:
    (issue,) = handlers.review(*values(EMBER, "safetensors"))[0]["issues"]
    assert issue["message"] == "crucible/ember has no adapter. Choose a run or an adapter."


def test_every_wrong_field_is_named_at_once(handlers: Handlers, run: RunDir) -> None:
    (handlers.workspace.exports / "taken").mkdir()
    given = values(run.id, "safetensors", "taken", max_shard_size="much")
    assert {issue["field"] for issue in handlers.review(*given)[0]["issues"]} == {"name", "max_shard_size"}
    wrong = {
        name: answer for name, answer in zip(CONTROLS, handlers.judge(*given), strict=True) if not answer["is_valid"]
    }
    assert wrong.keys() == {"name", "max_shard_size"}
    assert "exists already" in wrong["name"]["message"]


def test_an_upload_needs_repository_and_token(
    handlers: Handlers, run: RunDir, monkeypatch: pytest.MonkeyPatch, prepared: None
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found, _ = handlers.review(*values(run.id, "hub"))
    assert [issue["field"] for issue in found["issues"]] == ["", "repo_id"]
    with pytest.raises(Exception, match="HF_TOKEN"):
        handlers.start(*values(run.id, "hub", repo_id="me/nova"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found, _ = handlers.review(*values(run.id, "hub", repo_id="me/nova"))
    assert found["ok"] is True
    assert "hf_secret" not in json.dumps(found)
    made = config(handlers, values(run.id, "hub", repo_id="me/nova", private=False))
    assert isinstance(made, ExportConfig)
    assert (made.repo_id, made.private, made.adapter) == ("me/nova", False, str(run.adapter))


@pytest.mark.parametrize(
    ("what", "goal", "options", "words"),
    [
        ("no-such-thing", "safetensors", {}, "Nothing is chosen"),
        ("/etc", "gguf", {}, "Nothing is chosen"),
        (None, "gguf", {}, "Nothing is chosen"),
        (EMBER, "safetensors", {}, "has no adapter"),
        (EMBER, "gguf", {"gguf_type": "q1"}, "gguf_type"),
        (None, "import", {}, "Upload the adapter"),
        (None, "import", {"source": "/etc/passwd"}, "no file"),
        (None, "import", {"source": "../../etc"}, "no file"),
    ],
)
def test_refusals(handlers: Handlers, what: Any, goal: str, options: Any, words: str) -> None:
    with pytest.raises(Exception, match=words):
        handlers.start(*values(what, goal, **options))
    assert handlers.workspace.list_runs() == []


@pytest.mark.parametrize(("name", "words"), [("!!!", "Type a name"), ("taken", "exists already")])
def test_wrong_names(handlers: Handlers, run: RunDir, name: str, words: str) -> None:
    (handlers.workspace.exports / "taken").mkdir()
    with pytest.raises(Exception, match=words):
        handlers.start(*values(run.id, "safetensors", name))
    assert [one.id for one in handlers.workspace.list_runs()] == [run.id]


def test_one_more_adapter_must_lie_where_it_may_be_read(handlers: Handlers, run: RunDir) -> None:
    found, _ = handlers.review(*values(run.id, "safetensors", more_adapters=[{"path": "/etc", "weight": ""}]))
    assert [issue["field"] for issue in found["issues"]] == ["more_adapters"]


@pytest.mark.parametrize("goal", [*MADE, "hub", "import"])
def test_the_line_for_a_terminal_is_understood(
    handlers: Handlers, workspace: Workspace, run: RunDir, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = add_adapter(workspace.exports / "theirs")
    options: dict[str, dict[str, Any]] = {
        "bitsandbytes": {"bits": "8", "max_shard_size": "1GB"},
        "gguf": {"gguf_type": "f16", "merge_base": "dequantized"},
        "ollama": {"system": "Be 'brief'.", "gguf_type": "bf16"},
        "hub": {"repo_id": "me/nova", "private": False},
        "import": {"source": str(theirs), "base": EMBER, "lora_alpha": "16", "prompt_template": "qwen_chat"},
        "safetensors": {
            "dtype": "float32",
            "merge_base": "dequantized",
            "max_shard_size": "1GB",
            "device": "auto",
            "weight": "0.5",
            "more_adapters": [{"path": str(theirs), "weight": "0.25"}],
        },
    }
    wish = handlers.wish(values(run.id, goal, "x", **options.get(goal, {})))
    wanted = eg.config_of(workspace, wish)
    line = shlex.split(command(wanted, workspace))
    assert line[0] == "studio"
    caught: list[OutputConfig] = []

    class Caught(Exception):
        pass

    def submit(_workspace: Workspace, made: OutputConfig, **_: Any) -> None:
        caught.append(made)
        raise Caught

    monkeypatch.setattr(runner, "submit", submit)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    arguments = build_parser().parse_args(line[1:])
    with pytest.raises(Caught):
        arguments.func(arguments)
    (made,) = caught
    assert made.model_dump(exclude={"name"}) == wanted.model_dump(exclude={"name"})


def test_the_page_does_not_say_where_a_token_goes(handlers: Handlers, workspace: Workspace, run: RunDir) -> None:
    options = {"repo_id": "me/nova", "endpoint": "https://elsewhere.example"}
    made = eg.config_of(workspace, handlers.wish(values(run.id, "hub", "x", **options)))
    assert isinstance(made, ExportConfig)
    assert made.endpoint is None


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_uploaded_files_are_kept_in_the_workspace(handlers: Handlers, tmp_path: Path, prepared: None) -> None:
    files = [tmp_path / "iter_9.pth", tmp_path / "my_config.py"]
    for file in files:
        file.write_bytes(b"x" * 10)
    made = config(handlers, values(None, "import", "Theirs", base=EMBER, files=[str(file) for file in files]))
    assert isinstance(made, ConvertConfig)
    source, settings = Path(made.source), Path(str(made.settings))
    assert source.name == "iter_9.pth"
    assert settings.name == "my_config.py"
    assert source.is_relative_to(handlers.workspace.path)
    assert source.read_bytes() == b"x" * 10
    assert Path(made.out).name == "Theirs"
    assert made.base == EMBER


def test_several_files_of_weights_are_one_folder(handlers: Handlers, tmp_path: Path, prepared: None) -> None:
    names = ("adapter_config.json", "adapter_model.bin", "tokenizer.json")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    made = config(handlers, values(None, "import", files=[str(tmp_path / name) for name in names]))
    assert isinstance(made, ConvertConfig)
    assert {path.name for path in Path(made.source).iterdir()} == set(names)
    assert Path(made.out).name == "adapter-imported"
    assert made.settings is None


def test_a_path_of_this_machine_is_looked_up(handlers: Handlers, workspace: Workspace, prepared: None) -> None:
    (workspace.path / "got").mkdir()
    (workspace.path / "got" / "a.pth").write_bytes(b"x")
    made = config(handlers, values(None, "import", source="got/a.pth"))
    assert isinstance(made, ConvertConfig)
    assert Path(made.source) == (workspace.path / "got" / "a.pth").resolve()


# ---- afterwards ------------------------------------------------------------------------------------------------------


def test_a_waiting_export_is_taken_back_and_a_live_one_is_asked_to_stop(
    handlers: Handlers, workspace: Workspace, run: RunDir, engine: None
) -> None:
    first = workspace.run(handlers.start(*values(run.id, "safetensors"))["run"])
    second = workspace.run(handlers.start(*values(run.id, "gguf"))["run"])
    assert second.state() is RunState.QUEUED
    handlers.stop(event(run=second.id))
    assert second.id not in {one.id for one in workspace.list_runs()}
    handlers.stop(event(run=first.id))
    assert first.stop_requested()


def test_only_exports_are_stopped_or_done_again_here(handlers: Handlers, run: RunDir) -> None:
    for handler in (handlers.stop, partial(handlers.again, "")):
        with pytest.raises(Exception, match="no export"):
            handler(event(run=run.id))
        with pytest.raises(Exception, match="no longer in the workspace"):
            handler(event(run="../../x"))


def finished(workspace: Workspace, made: OutputConfig, report: dict[str, Any]) -> RunDir:
    run = workspace.create_run(made)
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here", started_at=0.0))
    run.write_status(Status(state=RunState.FINISHED))
    run.report_file.write_text(json.dumps(report), encoding="utf-8")
    return run


def merged(workspace: Workspace, run: RunDir, name: str = "m") -> RunDir:
    out = workspace.exports / name
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"model_type": "qwen3"}), encoding="utf-8")
    settings = {"name": name, "base": EMBER, "adapter": str(run.adapter), "dtype": "float32", "out": str(out)}
    report = {"out": str(out), "size_bytes": 5, "shards": 1, "proof": {"passed": True, "reason": ""}}
    return finished(workspace, build(MergeConfig, settings), report)


def test_the_same_settings_again(handlers: Handlers, workspace: Workspace, run: RunDir) -> None:
    done = merged(workspace, run)
    shown = dict(zip(("what", "state", "about", *CONTROLS[2:]), handlers.again("", event(run=done.id)), strict=True))
    assert (shown["what"]["value"], shown["state"]["value"]) == (run.id, run.id)
    assert (shown["goals"]["chosen"], shown["dtype"], shown["name"]) == ("safetensors", "float32", "")
    assert shown["merge_base"] == "original"
    other = handlers.again("", event(run=done.id, merge_base="dequantized"))
    assert dict(zip(("what", "state", "about", *CONTROLS[2:]), other, strict=True))["merge_base"] == "dequantized"


def test_the_result_goes_on_to_another_goal(handlers: Handlers, workspace: Workspace, run: RunDir) -> None:
    done = merged(workspace, run)
    shutil.copytree(BUILT_IN[EMBER], workspace.exports / "m", dirs_exist_ok=True)
    what, state, facts, cards, *_ = handlers.again("", event(run=done.id, next="gguf"))
    assert what["value"] == state["value"] == str(workspace.exports / "m")
    assert (facts["what"], cards["chosen"]) == ("model", "gguf")


def test_what_was_exported_from_is_gone(handlers: Handlers, workspace: Workspace, run: RunDir) -> None:
    done = merged(workspace, run)
    (run.adapter / "adapter_config.json").unlink()
    with pytest.raises(Exception, match="no longer there"):
        handlers.again("", event(run=done.id))


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    app = FastAPI()
    app.include_router(export_list.build(workspace))
    return TestClient(app)


def test_the_list_and_one_export(client: TestClient, workspace: Workspace, run: RunDir) -> None:
    done = merged(workspace, run)
    (line,) = client.get("/api/exports").json()
    assert (line["id"], line["goal"], line["of"], line["passed"], line["there"]) == (
        done.id,
        "safetensors",
        "nova",
        True,
        True,
    )
    shown = client.get("/api/export", params={"run": done.id}).json()
    assert shown["report"]["proof"]["passed"] is True
    assert {use["program"] for use in shown["uses"]} == {"Crucible", "transformers", "vLLM"}
    assert shown["chat"] is True
    assert client.get("/api/export", params={"run": run.id}).status_code == 404
    assert client.get("/api/export", params={"run": "nope"}).status_code == 404


def test_an_export_whose_folder_is_gone_says_so(client: TestClient, workspace: Workspace, run: RunDir) -> None:
    done = merged(workspace, run)
    (workspace.exports / "m" / "config.json").unlink()
    (workspace.exports / "m").rmdir()
    shown = client.get("/api/export", params={"run": done.id}).json()
    assert (shown["there"], shown["uses"], shown["chat"]) == (False, [], False)


def test_an_import_is_an_adapter_or_a_whole_model(client: TestClient, workspace: Workspace, tmp_path: Path) -> None:
    theirs = add_adapter(tmp_path / "theirs")
    for name, whole, program in (("small", False, "PEFT"), ("big", True, "transformers")):
        out = workspace.exports / name
        if whole:
            out.mkdir()
            (out / "config.json").write_text("{}", encoding="utf-8")
        else:
            add_adapter(out)
        made = build(ConvertConfig, {"name": name, "source": str(theirs), "out": str(out)})
        done = finished(workspace, made, {"out": str(out), "proof": {"passed": True}})
        shown = client.get("/api/export", params={"run": done.id}).json()
        assert (shown["goal"], shown["whole"]) == ("import", whole)
        assert program in {use["program"] for use in shown["uses"]}


def test_an_adapter_given_away_is_no_import(workspace: Workspace, run: RunDir, tmp_path: Path) -> None:
    own = build(ConvertConfig, {"source": str(run.checkpoints / "checkpoint-9"), "out": "x"})
    other = build(ConvertConfig, {"source": str(add_adapter(tmp_path / "other")), "out": "y"})
    assert (export_list.goal_of(own), export_list.goal_of(other)) == ("adapter", "import")
    assert export_list.subject_of(own) == "nova · checkpoint-9"


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_every_option_has_chinese_texts() -> None:
    chinese, english, han = table("zh-CN"), table("en"), re.compile(r"[\u4e00-\u9fff]")
    for model in OUTPUTS:
        for spec in walk(model):
            for path in (spec.path, *(f"{spec.path}.{inner.path}" for inner in (walk(spec.item) if spec.item else ()))):
                assert english[f"field.{path}"]
                assert han.search(chinese[f"field.{path}.help"]), path


@pytest.mark.parametrize("goal", [*MADE, "hub", "import"])
def test_everything_that_stands_in_the_way_is_said_in_chinese(
    handlers: Handlers, run: RunDir, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    token = LocalContext.request.set(SimpleNamespace(cookies={"studio_lang": "zh-CN"}))
    try:
        wrong = {"max_shard_size": "much", "source": "/etc/x", "weight": "x", "repo_id": "a b", "gguf_type": "q1"}
        told = [handlers.review(*values(what, goal, **wrong))[0]["issues"] for what in (run.id, EMBER)]
        told += [handlers.review(*values(run.id, goal, hub="modelscope"))[0]["issues"]]
    finally:
        LocalContext.request.reset(token)
    for issue in [issue for issues in told for issue in issues]:
        assert re.search(r"[\u4e00-\u9fff]", issue["message"]), issue
        assert not re.search(r"(?:[A-Za-z]+ ){3,}[a-z]+", issue["message"]), issue
