"""X-ray, further datasets, chat templates and live counts in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.config import RunConfig
from studio.records import DatasetInfo, DatasetStore
from studio.schema import load_yaml
from tests.fake_engine import Studio

HOSTILE = "<img src=x onerror='window.pwned=1'> ${window.pwned=1}"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("xray")
    save(folder, "alto", 10, "Answer. " * 40)
    save(folder, "vega", 30, f"Nova. {HOSTILE}")
    started = Studio(folder)
    yield started
    started.end()


def save(folder: Path, title: str, rows: int, answer: str) -> None:
    def row(number: int) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "origin": "upload"}

    DatasetStore(folder / "datasets").save(title, map(row, range(rows)), [], DatasetInfo(kind="upload"))


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1366, "height": 768}, "locale": "en-US", "reduced_motion": "reduce"}


@pytest.fixture
def page(page: Page, studio: Studio) -> Page:
    page.goto(f"{studio.url}/#train")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: vega")
    return page


def open_advanced(page: Page) -> None:
    page.locator("#train-advanced > button").click()
    expect(page.locator("#f-data-sources .entry-add")).to_be_visible()


def entry(page: Page, name: str) -> Any:
    return page.locator(f"#f-data-sources .entry:last-child [data-name={name}]")


def download(page: Page, path: Path) -> str:
    with page.expect_download() as caught:
        page.locator("#train-download").click()
    caught.value.save_as(path)
    return path.read_text(encoding="utf-8")


def test_every_token_before_any_training(page: Page) -> None:
    page.locator("#train-xray").click()
    xray = page.locator("#data-xray")
    first = xray.locator(".batch-row").first
    expect(first.locator(".said.assistant.on .text")).to_have_text(f"Nova. {HOSTILE}")
    expect(first.locator(".tok.on").last).to_have_text("<|im_end|>")
    expect(xray.locator(".batch-head").first).to_contain_text(re.compile(r"8 × \d+ tokens"))
    first.locator(".tok.on").first.hover()
    expect(page.locator(".tok-tip")).to_have_text(re.compile(r"position \d+ · id \d+ · trained"))
    first.locator(".tokens").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(first.locator("[aria-live]")).to_have_text(re.compile(r"<\|im_end\|>: position \d+ · id \d+ · trained"))
    page.locator("#xray-dataset").select_option("alto")
    expect(first.locator(".said.assistant .text")).to_contain_text("Answer. Answer.")
    page.locator("#xray-template").focus()
    page.locator("#xray-template").select_option("llama2_chat")
    right = xray.locator(".template-side").last
    expect(right.locator(".tokens")).to_contain_text("[INST] Question")
    expect(page.locator("#xray-template")).to_be_focused()


def test_settings_of_the_train_tab_reach_the_xray(page: Page) -> None:
    page.locator("#f-data-max_length input, #f-data-max_length textarea").first.fill("24")
    expect(page.locator("#train-yaml")).to_contain_text("max_length: 24")
    page.locator("#train-xray").click()
    expect(page.locator("#data-xray .tok.cut").first).to_be_visible()
    expect(page.locator("#data-xray .issues")).to_contain_text("30 rows are longer than max_length")


def test_further_datasets_go_into_the_yaml_and_come_back(page: Page, tmp_path: Path) -> None:
    open_advanced(page)
    page.locator("#f-data-sources .entry-add").click()
    expect(entry(page, "dataset")).to_be_focused()
    entry(page, "dataset").fill("alto")
    entry(page, "weight").fill("-1")
    expect(page.locator("#f-data-sources .field-error")).to_have_text("No. 1, Weight: Must be greater than 0.")
    expect(entry(page, "weight")).to_have_attribute("aria-invalid", "true")
    expect(entry(page, "dataset")).to_have_attribute("aria-invalid", "false")
    entry(page, "weight").fill("2")
    page.locator("#f-data-sources .entry .btn").first.click()
    entry(page, "system").fill(f"Be brief.\n{HOSTILE}")
    expect(page.locator("#train-summary")).to_contain_text("40 rows read")
    expect(page.locator("#train-summary")).to_contain_text("50 examples")
    expect(page.locator("#train-yaml")).to_contain_text("system:")
    text = download(page, tmp_path / "two.yaml")
    (second,) = load_yaml(text, RunConfig).data.sources
    assert (second.dataset, second.weight, second.system) == ("alto", 2, f"Be brief.\n{HOSTILE}")
    page.reload()
    expect(page.locator("#train-yaml")).to_contain_text("dataset: vega")
    with page.expect_file_chooser() as chooser:
        page.locator("#train-yaml-upload").click()
    chooser.value.set_files(tmp_path / "two.yaml")
    expect(page.locator("#train-yaml")).to_contain_text("dataset: alto")
    assert download(page, tmp_path / "again.yaml") == text
    open_advanced(page)
    expect(entry(page, "dataset")).to_have_value("alto")
    expect(entry(page, "system")).to_have_value(f"Be brief.\n{HOSTILE}")
    page.locator("#f-data-sources .entry-remove").click()
    expect(page.locator("#f-data-sources .entry")).to_have_count(0)
    expect(page.locator("#train-summary")).to_contain_text("30 rows read")


def test_a_chat_template_by_name_or_as_a_text(page: Page, tmp_path: Path) -> None:
    open_advanced(page)
    choice = page.locator("#f-model-chat_template select")
    choice.select_option("qwen_chat")
    expect(page.locator("#train-yaml")).to_contain_text("chat_template: qwen_chat")
    choice.select_option(label="a template text of my own…")
    area = page.locator("#f-model-chat_template textarea")
    expect(area).to_be_focused()
    area.fill("{% for m in messages %}")
    expect(page.locator("#f-model-chat_template .field-error")).to_be_visible()
    text = "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}\n"
    area.fill(text)
    expect(page.locator("#f-model-chat_template .field-error")).to_have_count(0)
    expect(page.locator("#train-yaml")).to_contain_text("m.role")
    assert load_yaml(download(page, tmp_path / "text.yaml"), RunConfig).model.chat_template == text


def test_counts_and_their_zone_follow_the_fields(page: Page) -> None:
    epochs = page.locator("#f-train-num_train_epochs input, #f-train-num_train_epochs textarea").first
    epochs.fill("1")
    expect(page.locator("#train-review .zone.few")).to_contain_text("fewer than 15 teach nothing")
    epochs.fill("100")
    expect(page.locator("#train-review .zone.parrot")).to_contain_text("30 different rows")
    page.locator("#train-review .zone .btn").click()
    expect(epochs).to_be_focused()
    epochs.fill("5")
    expect(page.locator("#train-review .zone.good")).to_be_visible()
    expect(page.locator("#train-summary .zone-chip")).to_have_text("good")


def test_tab_leaves_a_drop_down_closed_and_a_preset_fills_the_form(page: Page) -> None:
    page.locator("#train-preset input").click()
    expect(page.locator("#train-preset [role=option]").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#train-preset [role=option]")).to_have_count(0)
    expect(page.locator("#train-preset input")).not_to_be_focused()
    box = page.locator("#train-preset input")
    box.click()
    box.fill("ember_lora_oasst1")
    page.get_by_role("option", name=re.compile("^ember_lora_oasst1")).first.click()
    expect(page.locator("#train-yaml")).to_contain_text("method: lora")
