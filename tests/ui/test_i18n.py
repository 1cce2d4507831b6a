"""The texts: both languages complete, every key that is used exists, server texts follow the visitor's cookie."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext

from studio.ui import i18n
from studio.ui.i18n import T, page_texts, table, tr, translations
from studio.ui.sentences import PATTERNS, translated

ROOT = Path(__file__).resolve().parents[2]
FIELD = re.compile(r"\{(\w+)\}")


def _visitor(language: str) -> SimpleNamespace:
    return SimpleNamespace(cookies={"studio_lang": language})


@pytest.fixture
def chinese() -> Iterator[None]:
    """The running event belongs to a visitor who reads Chinese."""
    token = LocalContext.request.set(_visitor("zh-CN"))
    yield
    LocalContext.request.reset(token)


def test_both_languages_have_the_same_keys_in_the_same_files() -> None:
    names = {path.name.split(".", 1)[1] for path in i18n.FOLDER.glob("en*.json")}
    assert names
    for name in names:
        english = json.loads((i18n.FOLDER / f"en.{name}").read_text(encoding="utf-8"))
        chinese = json.loads((i18n.FOLDER / f"zh.{name}").read_text(encoding="utf-8"))
        assert english.keys() == chinese.keys()


def test_both_languages_fill_in_the_same_things() -> None:
    english, chinese = table("en"), table("zh-CN")
    assert {key: set(FIELD.findall(text)) for key, text in english.items()} == {
        key: set(FIELD.findall(text)) for key, text in chinese.items()
    }


def test_chinese_texts_are_chinese() -> None:
    han = re.compile(r"[\u4e00-\u9fff]")
    same = {key for key, text in table("zh-CN").items() if text == table("en")[key] and len(text) > 30}
    assert not {key for key in same if not han.search(table("zh-CN")[key])}


def test_every_key_in_the_code_exists() -> None:
    used: set[str] = set()
    for path in (ROOT / "studio" / "ui").rglob("*.py"):
        used |= set(re.findall(r'\b(?:T|tr|refuse|ctx\.T|ctx\.tr)\(\s*"([\w.]+)"', path.read_text(encoding="utf-8")))
    assert len(used) > 20
    assert not used - table("en").keys()


def test_every_key_in_the_scripts_exists() -> None:
    used: set[str] = set()
    for path in (ROOT / "assets" / "ui").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'\bt\(\s*"([\w.]+)"', text))
    known = page_texts()["en"].keys()
    assert len(used) > 60
    # A key that ends in a dot is the beginning of one that is put together.
    assert not {key for key in used - known if not (key.endswith(".") and any(word.startswith(key) for word in known))}


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("state", "queued starting running stopping finished stopped failed lost"),
        ("phase", "load tokenise train save verdict merge proof convert export upload answer"),
        ("kind", "train merge convert export answer unreadable"),
        ("error", "config model data memory disk internal"),
        ("tile", "step loss learning_rate grad_norm tokens_per_second memory_bytes eta took"),
        ("verdict", "learned leaked forgot"),
    ],
)
def test_every_word_of_the_contract_has_a_text(prefix: str, words: str) -> None:
    known = page_texts()["zh-CN"].keys()
    assert not {f"{prefix}.{word}" for word in words.split()} - known


def test_a_key_without_text_stops_the_build() -> None:
    with pytest.raises(KeyError, match="no.such.key"):
        T("no.such.key")


def test_server_texts_follow_the_cookie() -> None:
    key = "common.error.file"
    assert "r1" in tr(key, _visitor("zh-CN"), reason="r1")
    assert tr(key, _visitor("zh-CN"), reason="r1") != tr(key, _visitor("en"), reason="r1")
    assert tr(key, _visitor("klingon"), reason="r1") == tr(key, None, reason="r1")


def test_braces_in_a_value_are_left_alone() -> None:
    assert "{evil}" in tr("common.error.file", None, reason="{evil}")


def test_gradio_gets_both_languages() -> None:
    assert set(translations().translations_dict) == {"en", "zh-CN"}


def test_two_files_must_not_define_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("en.json", "en.more.json"):
        (tmp_path / name).write_text('{"a": "b"}', encoding="utf-8")
    monkeypatch.setattr(i18n, "FOLDER", tmp_path)
    table.cache_clear()
    try:
        with pytest.raises(ValueError, match="already defined"):
            table("en")
    finally:
        monkeypatch.undo()
        table.cache_clear()


def test_known_sentences_are_translated(chinese: None) -> None:
    assert "80" in translated("Name has 99 characters; at most 80 are allowed. Shorten it.")
    assert "{{name}}" in translated("Name contains the unfilled placeholder {{name}}. Type the real text instead.")
    assert translated("something nobody foresaw") == "something nobody foresaw"


def test_known_sentences_stay_english_for_english() -> None:
    assert translated("Name is empty. Type at least one visible character.").startswith("Name is empty")


def test_every_translated_sentence_has_its_text() -> None:
    assert not {key for _, key in PATTERNS} - table("zh-CN").keys()
