"""Marks, comparison, fit, files of other programs, the base model and the search of the Train tab in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.config import RunConfig
from studio.records import DatasetInfo, DatasetStore
from studio.schema import build, load_yaml
from studio.workspace import Workspace
from tests.fake_engine import Studio

HOSTILE = "<img src=x onerror='window.pwned=1'> ${window.pwned=1}"
ROW = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nova."}], "origin": "upload"}
XTUNER = """pretrained_model_name_or_path = 'Qwen/Qwen2.5-7B-Instruct'
odd = open('passwords')
model = dict(type=SupervisedFinetune, llm=dict(
    type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=pretrained_model_name_or_path))
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("form")
    DatasetStore(folder / "datasets").save("nova", [ROW] * 40, [], DatasetInfo(kind="upload"))
    settings = {"name": f"earlier {HOSTILE}", "model_path": "crucible/ember", "dataset": "nova", "lr": 7e-4}
    Workspace(folder).create_run(build(RunConfig, settings))
    started = Studio(folder)
    yield started
    started.end()


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1366, "height": 768}, "locale": "en-US", "reduced_motion": "reduce"}


@pytest.fixture
def page(page: Page, studio: Studio) -> Page:
    page.goto(f"{studio.url}/#train")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: nova")
    return page


def box(page: Page, field: str) -> Any:
    return page.locator(f"#{field} :is(input, textarea)").first


def config(page: Page) -> RunConfig:
    return load_yaml(page.locator("#train-yaml").inner_text(), RunConfig)


def test_what_was_changed_is_marked_compared_and_set_back(page: Page) -> None:
    expect(page.locator("#train-changes")).to_have_count(0)
    before = config(page)
    box(page, "f-train-num_train_epochs").fill("9")
    page.locator("#f-method label", has_text="full").click()
    expect(page.locator("#train-changes h3")).to_contain_text("3 changed from the preset ember_qlora_identity_e3")
    mark = page.locator("#f-train-num_train_epochs .field-mark")
    expect(mark).to_have_attribute("title", "Epochs: the preset has 3. Set back.")
    page.locator("#changes-toggle").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#changes-toggle")).to_be_focused()
    expect(page.locator("table.changes tbody tr").first).to_contain_text("qlora")
    mark.click()
    expect(box(page, "f-train-num_train_epochs")).to_have_value("3")
    expect(mark).to_have_count(0)
    page.locator("#changes-reset-all").click()
    expect(page.locator("#train-changes")).to_have_count(0)
    assert config(page) == before


def test_another_programs_file_is_made_to_fit_on_a_card(page: Page, tmp_path: Path) -> None:
    (tmp_path / "sft.py").write_text(XTUNER, encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        page.locator("#train-yaml-upload").click()
    chooser.value.set_files(tmp_path / "sft.py")
    left = page.locator(".card.loaded")
    expect(left).to_contain_text("sft.py, an XTuner configuration")
    expect(left.locator("li", has_text="odd")).to_contain_text("line 2")
    page.locator("#fit-card").select_option("RTX 4090 24GB")
    expect(page.locator("#train-fit")).to_contain_text("23.5 GB free")
    expect(page.locator("#fit-verdict")).to_have_text("does not fit")
    page.locator("#fit-fix-0").click()
    expect(page.locator("#fit-verdict")).to_have_text("fits")
    assert config(page).method != "full" or config(page).train.gradient_checkpointing
    expect(page.locator("#train-model")).to_contain_text("the hubs are switched off")
    page.locator("#loaded-close").click()
    expect(left).to_have_count(0)


def test_an_earlier_run_fills_the_form_and_a_setting_is_found_in_either_language(page: Page, studio: Studio) -> None:
    page.locator("#train-recall input").click()
    page.get_by_role("option", name="earlier").first.click()
    expect(page.locator(".card.loaded")).to_contain_text(HOSTILE)
    expect(page.locator("#train-yaml")).to_contain_text("learning_rate: 0.0007")
    assert config(page) == Workspace(studio.workspace).list_runs()[0].config()
    for text, found in (("梯度裁剪", "max_grad_norm"), ("accumulative_counts", "gradient_accumulation_steps")):
        box(page, "train-search").fill(text)
        expect(page.locator(f"#f-train-{found}")).to_be_visible()
        expect(page.locator("#f-train-seed")).to_be_hidden()
    box(page, "train-search").fill("no such thing")
    expect(page.locator("#train-nothing")).to_be_visible()
    box(page, "train-search").fill("")
    expect(page.locator("#f-train-seed")).to_be_visible()
    attention = page.locator("#f-model-attn_implementation input")
    attention.click()
    expect(page.get_by_role("option", name="flash_attention_2")).to_be_visible()
