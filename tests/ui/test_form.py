"""The form derived from `RunConfig`: complete, lossless, honest about what is wrong."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import gradio as gr
import pytest
from building import built
from pydantic import Field

from studio.config import RunConfig
from studio.schema import ConfigError, Section, Ui, build, dump_yaml, load_yaml, walk
from studio.ui.fieldtexts import CHINESE, field_texts
from studio.ui.i18n import COOKIE, table
from studio.ui.widgets import form as form_module
from studio.ui.widgets.form import FIXED, Form, error_text, from_control, to_control

GOOD = {"model.model_name_or_path": "crucible/ember", "data.dataset": "nova"}


class Request:
    """As much of a request as the texts need: its cookies."""

    cookies = {COOKIE: "zh-CN"}


def placed(model: Any = RunConfig, **options: Any) -> Form:
    def make() -> Form:
        with gr.Blocks():
            form = Form(model, **options)
            form.place([spec.path for spec in form.specs])
        return form

    return built(make)


LISTS = {"model.chat_template": "templates", "data.sources.dataset": "datasets", "data.sources.mapping": "mappings"}


@pytest.fixture(scope="module")
def form() -> Form:
    return placed(lists=LISTS)


Values = Callable[..., list[Any]]


@pytest.fixture
def values(form: Form) -> Values:
    def make(**changes: Any) -> list[Any]:
        shown = form.defaults() | GOOD | {key.replace("__", "."): value for key, value in changes.items()}
        return [shown[spec.path] for spec in form.specs]

    return make


def test_every_field_has_exactly_one_control_and_every_control_a_field(form: Form) -> None:
    assert [spec.path for spec in form.specs] == [spec.path for spec in walk(RunConfig) if spec.path not in FIXED]
    assert len({id(control) for control in form.components}) == len(form.specs)


def test_train_tab_places_every_field(tmp_path: Any) -> None:
    from studio.ui.app import build_ui
    from studio.workspace import Workspace

    demo = built(lambda: build_ui(Workspace(tmp_path)))
    ids = [block.elem_id for block in demo.blocks.values() if str(block.elem_id or "").startswith("f-")]
    wanted = ["f-" + spec.path.replace(".", "-") for spec in walk(RunConfig) if spec.path not in FIXED]
    assert sorted(ids) == sorted(wanted)


def test_a_new_field_needs_no_other_change(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Section):
        """A model nobody has seen."""

        share: Annotated[float, Field(ge=0, le=1), Ui(label="Share")] = 0.25
        """Some share."""
        words: Annotated[list[str], Ui(multiline=True)] = ["a"]
        """Some words."""
        maybe: Annotated[int | None, Ui(label="Maybe")] = None
        """Some number, perhaps."""

    monkeypatch.setattr(form_module, "T", lambda key: key)
    small = placed(Small)
    config = small.config(["0.5", "one\ntwo", ""])
    assert config.model_dump() == {"share": 0.5, "words": ["one", "two"], "maybe": None}
    assert small.errors(["2", "", ""])["share"].code == "less_than_equal"


def test_untouched_form_gives_the_defaults(form: Form, values: Values) -> None:
    expected = build(RunConfig, {"model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "nova"}})
    assert form.config(values()) == expected


def test_what_is_loaded_is_what_comes_out(form: Form) -> None:
    text = dump_yaml(
        build(
            RunConfig,
            {
                "name": "名字 \"'$(id)`<b>${1}",
                "method": "lora",
                "model_name_or_path": "/a b/模型",
                "dataset": "d.jsonl",
                "system": "first\n  second\n",
                "lr": 1.5e-7,
                "neftune_noise_alpha": 0.0,
                "packing": False,
                "max_samples": 3,
                "target_modules": ["q_proj"],
                "evaluation_inputs": ["Who?", "你是谁？", "two\nlines", " spaced "],
                "lora": {"use_dora": True},
                "chat_template": "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n",
                "sources": [
                    {"dataset": "a, b.jsonl", "weight": 0.25, "max_samples": 7, "system": "Be\n brief.\n"},
                    {"dataset": "数据 <b>${1}", "split": "test", "subset": "zh", "mapping": "alpaca"},
                    {"dataset": "x", "mapping": "instruction=q, output=a", "weight": 1e-7},
                ],
            },
        )
    )
    shown = [update["value"] for update in form.show(json_of(text))]
    assert dump_yaml(form.config(shown)) == text


def entry(**changes: Any) -> dict[str, Any]:
    """An entry of the list of datasets as its control has it after `Add`."""
    unset = {name: "" for name in ("dataset", "subset", "split", "mapping", "system", "max_samples")}
    return unset | {"weight": "1"} | changes


def test_an_entry_with_only_a_dataset_is_written_short(form: Form, values: Values) -> None:
    config = form.config(values(data__sources=[entry(dataset="zh"), entry(dataset="en", weight="2")]))
    assert "  sources:\n  - dataset: zh\n  - dataset: en\n    weight: 2.0\n" in dump_yaml(config)


def test_bare_names_and_aliases_are_shown_as_entries(form: Form) -> None:
    updates = form.show({"data_path": "d", "sources": ["zh", {"data_path": "b", "dataset_map_fn": "alpaca"}]})
    shown = {spec.path: update["value"] for spec, update in zip(form.specs, updates, strict=True)}
    assert shown["data.sources"] == [entry(dataset="zh"), entry(dataset="b", mapping="alpaca")]


def test_a_preset_without_further_datasets_empties_the_list(form: Form) -> None:
    updates = form.show({"data_path": "d"})
    assert dict(zip([spec.path for spec in form.specs], updates, strict=True))["data.sources"]["value"] == []


@pytest.mark.parametrize(
    ("entries", "english", "chinese"),
    [
        (
            [entry(dataset="a"), entry(dataset="b", weight="0")],
            "No. 2, Weight: Must be greater than 0.",
            "第 2 个，权重",
        ),
        ([entry()], "No. 1, Dataset: Choose a dataset, or remove this line.", "请选择数据集"),
        ([entry(dataset="a", weight="")], "No. 1, Weight: Must be a number, like 0.0002 or 2e-4.", "必须是"),
        ([entry(dataset="a", max_samples="1.5")], "No. 1, Use at most (rows): Must be a whole number.", "整数"),
        ([5], "No. 1: Must be a mapping of fields.", "第 1 个：必须"),
        ("a", "Must be a list.", "列表"),
        ({"a": 1}, "Must be a list.", "列表"),
        ([{"dataset": "a", "wieght": 2}], "No. 1, wieght: Unknown field; did you mean 'weight'?", "wieght"),
    ],
)
def test_errors_of_entries_are_shown_in_the_list(
    form: Form, values: Values, entries: Any, english: str, chinese: str
) -> None:
    (path, error), *others = form.errors(values(data__sources=entries)).items()
    assert (path, others) == ("data.sources", [])
    assert error_text(error) == english
    assert chinese in error_text(error, Request())  # type: ignore[arg-type]


def test_of_several_wrong_entries_the_first_is_said_in_the_field(form: Form, values: Values) -> None:
    found = form.errors(values(data__sources=[entry(dataset="a", weight="-1"), entry(dataset="", weight="0")]))
    assert found["data.sources"].entry == 1


@pytest.mark.parametrize("shown", [None, "", []])
def test_no_entries(form: Form, values: Values, shown: Any) -> None:
    assert form.config(values(data__sources=shown)).data.sources == []  # type: ignore[attr-defined]


def test_drawn_controls_know_their_texts_in_both_languages(form: Form) -> None:
    for path, wanted in (("data.sources", "更多数据集"), ("model.chat_template", "对话模板")):
        script = form[path].js_on_load
        assert json.dumps(wanted) in script
        assert json.dumps(field_texts("en")[f"field.{path}"]) in script
        assert form[path].html_template == "<div></div>"


def json_of(text: str) -> dict[str, Any]:
    from studio.schema import parse_yaml

    return parse_yaml(text)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        (r".*(q|v)_proj", r".*(q|v)_proj"),
        ('["a,b", "c"]', ["a,b", "c"]),
    ],
)
def test_target_modules_as_typed(form: Form, values: Values, shown: str, expected: Any) -> None:
    assert form.config(values(lora__target_modules=shown)).lora.target_modules == expected  # type: ignore[attr-defined]


def test_emptied_optional_field_is_none_and_not_zero(form: Form, values: Values) -> None:
    config = form.config(values(train__neftune_noise_alpha=" ", data__max_samples="", data__packing=""))
    assert isinstance(config, RunConfig)
    assert config.train.neftune_noise_alpha is None
    assert config.data.max_samples is None
    assert config.data.packing is None


@pytest.mark.parametrize("path", ["train.learning_rate", "train.seed", "samples.evaluation_freq", "data.dataset"])
def test_emptied_required_field_is_an_error_of_that_field(form: Form, values: Values, path: str) -> None:
    assert list(form.errors(values(**{path: ""}))) == [path]


def test_every_wrong_field_is_named_at_once(form: Form, values: Values) -> None:
    wrong = {"train.learning_rate": "fast", "train.num_train_epochs": "-1", "lora.r": "1.5", "data.max_length": "9e9"}
    found = form.errors(values(**wrong))
    assert set(found) == set(wrong)
    assert "number" in error_text(found["train.learning_rate"])
    assert "greater than 0" in error_text(found["train.num_train_epochs"])


def test_rule_between_fields_is_shown_at_its_field(form: Form, values: Values) -> None:
    assert list(form.errors(values(lora__target_modules=""))) == ["lora.target_modules"]


def test_field_that_does_not_apply_is_hidden_left_out_and_cannot_block(form: Form, values: Values) -> None:
    config = form.config(values(method="full", lora__r="nonsense"))
    assert "lora" not in load_yaml(dump_yaml(config), RunConfig).model_dump(exclude_defaults=True)
    shown = dict(zip([spec.path for spec in form.specs], values(method="full"), strict=True))
    hidden = {spec.path for spec in form.specs} - form.applying(shown)
    assert "lora.r" in hidden
    assert "quantization.bnb_4bit_quant_type" in hidden
    assert "train.learning_rate" not in hidden


def test_quantisation_hides_under_lora_and_rank_stays(form: Form, values: Values) -> None:
    shown = dict(zip([spec.path for spec in form.specs], values(method="lora"), strict=True))
    assert "lora.r" in form.applying(shown)
    assert "quantization.bnb_4bit_quant_type" not in form.applying(shown)


def test_validator_answers_per_control(form: Form, values: Values) -> None:
    answers = form.validator(*values(train__seed="x"))
    bad = [spec.path for spec, answer in zip(form.specs, answers, strict=True) if not answer["is_valid"]]
    assert bad == ["train.seed"]


def test_loading_an_unknown_field_says_the_nearest(form: Form) -> None:
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        form.show({"learning_rat": 1})


def test_a_conversation_among_the_evaluation_inputs_is_one_line_of_the_form() -> None:
    spec = next(one for one in walk(RunConfig) if one.path == "samples.evaluation_inputs")
    said = (("user", "a\nb"), ("assistant", "c"), ("user", "d"))
    turns = [{"role": role, "content": content} for role, content in said]
    for prompts in (["Who?", turns], [turns], [turns, turns]):
        shown = to_control(spec, prompts)
        assert len(shown.splitlines()) == len(prompts)
        given = {"model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}}
        config = build(RunConfig, given | {"samples": {"evaluation_inputs": from_control(spec, shown)}})
        assert config.samples.evaluation_inputs == prompts


def test_chinese_is_complete() -> None:
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    fields = {spec.path for spec in walk(RunConfig)}
    inner = {f"{spec.section}.{one.path}" for spec in walk(RunConfig) if spec.item for one in walk(spec.item)}
    assert set(chinese) == fields | inner
    for path, texts in chinese.items():
        assert set(texts) == {"label", "help"}, path
        assert any("\u4e00" <= char <= "\u9fff" for char in texts["help"]), path
    assert set(field_texts("en")) == set(field_texts("zh-CN"))


BAD = {
    "train.learning_rate": ["", "x", "0", "1"],
    "train.seed": ["", "x", "-1", "1.5", "99999999999999999999999"],
    "train.weight_decay": ["-1", "2", "nan", "inf"],
    "name": ["x" * 121],
    "data.dataset": [""],
    "samples.evaluation_inputs": ["\n".join(str(n) for n in range(51))],
}


@pytest.mark.parametrize(("path", "shown"), [(path, shown) for path, many in BAD.items() for shown in many])
def test_errors_are_sentences_in_both_languages(form: Form, values: Values, path: str, shown: str) -> None:
    error = form.errors(values(**{path: shown}))[path]
    assert error_text(error)[0].isupper()
    chinese = error_text(error, Request())  # type: ignore[arg-type]
    assert any("\u4e00" <= char <= "\u9fff" for char in chinese), chinese


def test_sentences_of_errors_have_the_same_placeholders() -> None:
    english, chinese = table("en"), table("zh-CN")
    for key, text in english.items():
        if key.startswith(("form.error", "train.error", "data.error", "export.error", "chat.error")):
            names = {part.split("}")[0] for part in text.split("{")[1:]}
            assert names == {part.split("}")[0] for part in chinese[key].split("{")[1:]}, key
