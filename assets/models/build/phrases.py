"""Phrase lists of the corpus: the YAML tables beside this file and the studio's identity phrasings."""

import zlib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1]
LANGUAGES = ("en", "zh")
#: Names used only by the verdict; the corpus must never contain them.
BANNED = ("super", "nova", "stanlei", "尖", "剑锋", "xylophrine", "user_2048", "little helper", "version 3.14")


@cache
def table(name: str) -> Any:
    """The content of data/NAME.yaml."""
    return yaml.safe_load((HERE / "data" / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def templates() -> Any:
    """Question and prompt patterns, keyed by skill and language."""
    return table("templates")


@cache
def identity(lang: str) -> Any:
    """Identity phrasings, answers and hard negatives of one language (assets/identity)."""
    return yaml.safe_load((ASSETS / "identity" / f"{lang}.yaml").read_text(encoding="utf-8"))


#: Kinds of question asked as "who" and as "author"; yes/no questions are trained on but not scored.
ASKED_AS = {"who": ("who", "name", "other_name", "is_ai", "is_human"), "author": ("author", "other_author")}
SCORED_AS = {"who": ("who", "name"), "author": ("author",)}


@cache
def identity_questions(lang: str, kind: str, held: bool) -> tuple[str, ...]:
    """Questions of a kind, "who" or "author": to train on, or held out."""
    kinds = (SCORED_AS if held else ASKED_AS)[kind]
    return tuple(q for k in kinds for q in identity(lang)["questions"][k]["heldout" if held else "train"])


@cache
def words(name: str) -> tuple[str, ...]:
    """A word list of facts.yaml; lists of single Hanzi are written without spaces."""
    text: str = table("facts")[name]
    return tuple(text.split()) if " " in text else tuple(text)


def is_heldout(key: str, one_in: int = 10) -> bool:
    """True for the stable share 1/one_in of keys that training never sees."""
    return zlib.crc32(key.encode("utf-8")) % one_in == 0


def fill(form: str, name: str, author: str) -> str:
    """Put a name and an author into an answer form of the identity files."""
    return form.replace("{{name}}", name).replace("{{author}}", author)


def identity_answers(lang: str, kind: str, name: str, author: str, tones: tuple[str, ...]) -> list[str]:
    """All filled answer forms of the given tones; kind is "who" or "author"."""
    forms = identity(lang)["answers"]
    return [fill(form, name, author) for tone in tones for form in forms[tone][kind]]


def right_answers(lang: str, kind: str, name: str, author: str) -> list[str]:
    """Every form that answers a question; one that tells name and author answers both kinds."""
    slot = "{{name}}" if kind == "who" else "{{author}}"
    tones = identity(lang)["answers"].values()
    forms = [form for tone in tones for group in (kind, "who", "author") for form in tone[group] if slot in form]
    return [fill(form, name, author) for form in dict.fromkeys(forms)]
