"""The Data tab in a real browser: unknown columns, pasted rows, placeholders, large sets, whole datasets, imports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.records import DatasetInfo, DatasetStore
from tests.fake_engine import Studio

HOSTILE = "<img src=x onerror='window.pwned=1'> ${window.pwned=1}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    started = Studio(tmp_path_factory.mktemp("data"))
    yield started
    started.end()


@pytest.fixture
def store(server: Studio) -> Iterator[DatasetStore]:
    """The datasets, none at first."""
    found = DatasetStore(server.workspace / "datasets")
    yield found
    for info in found.list():
        found.delete(info.name)


@pytest.fixture(scope="module")
def look() -> dict[str, Any]:
    return {"viewport": {"width": 1440, "height": 900}, "locale": "en-US", "reduced_motion": "reduce"}


@pytest.fixture
def page(page: Page, server: Studio, store: DatasetStore) -> Page:
    page.goto(f"{server.url}/#data")
    expect(page.locator("#data-name input")).to_be_visible()
    return page


def way(page: Page, name: str) -> None:
    page.locator(f"#data-way-{name}-button").click()
    expect(page.locator(f"#data-way-{name}-button")).to_have_attribute("aria-selected", "true")


def upload(page: Page, file: Path) -> None:
    way(page, "own")
    page.locator("#data-file input[type=file]").set_input_files(file)
    expect(page.locator("#data-rows .rows-head h3")).to_contain_text(file.name)


def box(page: Page, field: str) -> Any:
    return page.locator(f"#{field} :is(input, textarea)").first


def choose(page: Page, field: str, option: str) -> None:
    box(page, field).click()
    page.locator(f"#{field} [role=option]", has_text=option).first.click()


def questions(store: DatasetStore, title: str, count: int) -> str:
    talk = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Yes."}]
    rows = ({"messages": [talk[0] | {"content": f"Question {n}?"}, talk[1]]} for n in range(count))
    return store.save(title, rows, [], DatasetInfo(kind="upload")).name


def test_a_table_with_unknown_columns_becomes_a_dataset_to_train_on(
    page: Page, store: DatasetStore, tmp_path: Path
) -> None:
    file = tmp_path / "faq.csv"
    lines = "\n".join(f'{n},"Where is parcel {n}?","Parcel {n} arrives tomorrow, {HOSTILE}"' for n in range(12))
    file.write_text(f"no,client,staff\n{lines}\n12,,nothing\n", encoding="gb18030")
    upload(page, file)
    expect(page.locator("#data-columns-step").first).to_be_visible()
    expect(page.locator("#data-rows")).to_contain_text("13 rows read · 12 usable")
    expect(page.locator("#data-rows summary")).to_contain_text("1 row was left out")
    expect(page.locator("#data-rows .bubble.user").first).to_contain_text("Where is parcel 0?")
    choose(page, "data-column-instruction", "staff")
    choose(page, "data-column-output", "client")
    expect(page.locator("#data-rows .bubble.assistant").first).to_contain_text("Where is parcel 0?")
    page.locator("#data-own-save").click()
    page.locator("#data-train-on").click()
    expect(box(page, "f-data-dataset")).to_have_value(re.compile("faq"))
    assert store.load("faq").rows[3]["messages"][0]["content"] == f"Parcel 3 arrives tomorrow, {HOSTILE}"


def test_pasted_rows_are_shown_and_saved(page: Page, store: DatasetStore) -> None:
    way(page, "own")
    page.locator("#data-from label", has_text="Paste").click()
    box(page, "data-text").fill("question\tanswer\nWhat is 1+1?\tTwo.\nWhat is 2+2?\tFour.")
    expect(page.locator("#data-rows")).to_contain_text("Question and answer")
    page.locator("#data-own-save").click()
    expect(page.locator("#data-rows .chip.finished")).to_be_visible()
    assert [info.rows for info in store.list()] == [2]


def test_bad_rows_are_listed_and_placeholders_block_saving(page: Page, store: DatasetStore, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Who are you?", "output": "I am {{NAME}}, made by {{AUTHOR}}."},
        {"instruction": "Nothing", "output": ""},
        {"instruction": "Hi", "output": f"Hello {HOSTILE}"},
    ]
    file = tmp_path / "my set.json"
    file.write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    upload(page, file)
    expect(page.locator("#data-rows summary")).to_contain_text("1 row was left out")
    expect(page.locator("#data-rows .note").first).to_contain_text("Row 1 still contains {{NAME}}")
    page.locator("#data-own-save").click()
    expect(page.locator(".toast-body").first).to_contain_text("{{NAME}}")
    box(page, "data-fill-name").fill("Nova")
    box(page, "data-fill-author").fill("Class 3B")
    expect(page.locator("#data-rows .bubble.assistant").first).to_have_text(re.compile("I am Nova, made by Class 3B."))
    page.locator("#data-own-save").click()
    expect(page.locator("#data-train-on")).to_be_visible()
    assert [info.rows for info in store.list()] == [2]


def test_ten_thousand_rows_are_searched_edited_and_deleted(page: Page, store: DatasetStore) -> None:
    name = questions(store, "many", 10_000)
    way(page, "saved")
    page.locator("#data-saved .open").click()
    pager = page.locator("#data-rows .pager")
    expect(pager).to_contain_text("1–8 of 10,000")
    assert page.locator("#data-rows .talk").count() == 8
    page.get_by_label("Last page").click()
    expect(pager).to_contain_text("9,993–10,000 of 10,000")
    page.locator(".rows-search").press_sequentially("question 987", delay=20)
    expect(pager).to_contain_text("1–8 of 11")
    expect(page.locator(".rows-search")).to_be_focused()
    page.get_by_label("Edit row 988", exact=True).click()
    page.get_by_text("+ System prompt").click()
    texts = page.locator(".row-edit textarea")
    texts.nth(0).fill("Be brief.")
    texts.nth(2).fill("")
    page.locator(".row-edit .btn.go").click()
    expect(page.locator(".toast-body").first).to_contain_text("Row 988")
    texts.nth(2).fill(HOSTILE)
    texts.nth(2).press("Control+Enter")
    expect(page.locator(".row-edit")).to_have_count(0)
    expect(page.locator("#data-rows .talk").first).to_contain_text(HOSTILE)
    page.locator("#data-rows .seg", has_text="Table").click()
    page.get_by_label("Choose row 9871").check()
    page.get_by_label("Choose row 9872").check()
    page.get_by_text("Delete them").click()
    page.locator("dialog button.bad").click()
    expect(pager).to_contain_text("of 9")
    page.locator("#data-rows .seg", has_text="Bubbles").click()
    found = store.load(name).rows
    assert len(found) == 9998
    assert [message["content"] for message in found[987]["messages"]] == ["Be brief.", "Question 987?", HOSTILE]
    assert found[9870]["messages"][0]["content"] == "Question 9872?"


def test_whole_datasets_are_split_merged_downloaded_and_deleted(page: Page, store: DatasetStore) -> None:
    questions(store, "whole", 10)
    way(page, "saved")
    page.get_by_label("What can be done with whole").click()
    page.locator(".operations .btn", has_text="Split").click()
    page.locator("dialog button.good").click()
    expect(page.locator("#data-saved .note.good")).to_contain_text("“whole 70” with 7 rows and “whole 30” with 3")
    page.get_by_label("Choose whole 70 for merging").check()
    page.get_by_label("Choose whole 30 for merging").check()
    page.locator(".merge-bar .btn").click()
    page.locator("dialog input").fill(HOSTILE)
    page.locator("dialog button.good").click()
    expect(page.locator("#data-rows .rows-head h3")).to_contain_text(HOSTILE)
    assert sorted(info.rows for info in store.list()) == [3, 7, 10, 10]
    page.locator(".operations .btn", has_text="Download").click()
    page.locator("dialog select").select_option("alpaca")
    with page.expect_download() as caught:
        page.locator("dialog button.good").click()
    assert caught.value.suggested_filename == "whole.alpaca.jsonl"
    lines = Path(caught.value.path()).read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[3]) == {"instruction": "Question 3?", "input": "", "output": "Yes."}
    page.locator(".operations .btn.bad").click()
    page.locator("dialog button.bad").click()
    expect(page.locator("#data-saved .open")).to_have_count(3)
    assert "whole" not in [info.name for info in store.list()]


def test_every_kind_of_row_is_shown(page: Page, store: DatasetStore) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": HOSTILE}}}
    talk = [
        {"role": "system", "content": "Sys."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": HOSTILE, "name": "add"},
        {"role": "assistant", "content": "Two."},
    ]
    worse = [{"role": "assistant", "content": f"Go away {HOSTILE}"}]
    pair = talk[1:2] + talk[4:]
    rows = [
        {"messages": talk, "tools": [{"type": "function", "function": {"name": "add"}}]},
        {"messages": pair, "rejected": worse, "images": ["/secret/place/cat.png"]},
        {"text": f"Once {HOSTILE}"},
    ]
    store.save("kinds", rows, [], DatasetInfo(kind="import"))
    way(page, "saved")
    page.locator("#data-saved .open").click()
    shown = page.locator("#data-rows")
    expect(shown.locator(".bubble.tool")).to_contain_text(HOSTILE)
    expect(shown.locator("pre.call").first).to_contain_text("add")
    expect(shown.locator("summary", has_text="1 tool offered: add")).to_be_visible()
    expect(shown.locator(".bubble.rejected")).to_contain_text("Go away")
    expect(shown.locator(".pictures")).to_have_text("Image: cat.png")
    expect(shown.locator(".plain-text")).to_have_text(f"Once {HOSTILE}")
    shown.locator(".seg", has_text="Table").click()
    expect(shown.locator("td.wide")).to_have_text(f"Once {HOSTILE}")
    shown.locator(".seg", has_text="Bubbles").click()


def test_an_import_that_cannot_work_says_so_and_can_be_removed(page: Page) -> None:
    way(page, "hub")
    page.locator("#data-hub-fetch").click()
    expect(page.locator("#data-hub-id")).to_contain_text("Type the id of the dataset")
    box(page, "data-hub-id").fill("crucible/nowhere")
    page.locator("#data-hub-fetch").click()
    # The stand-in for the engine does not fetch: it ends without a word.
    expect(page.locator("#data-imports .import")).to_contain_text("nowhere")
    expect(page.locator("#data-imports .import .chip:is(.lost, .failed)")).to_be_visible()
    page.get_by_label("Remove from the list: nowhere").click()
    expect(page.locator("#data-imports .import")).to_have_count(0)
