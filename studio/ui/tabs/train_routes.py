"""Read-only JSON for the Train tab: downloads of models, and the words by which a field is found."""

from functools import cache
from typing import Any

from fastapi import APIRouter, Request

from studio.config import RunConfig
from studio.schema import walk
from studio.ui.fieldtexts import field_texts, help_key, label_key
from studio.ui.i18n import COOKIE, LANGUAGES
from studio.ui.tabs.train_model import downloads
from studio.workspace import Workspace


@cache
def field_words() -> dict[str, str]:
    """{path: label, names and help of the field in every language, in small letters}."""
    return {spec.path: " ".join(_words(spec.path, spec)).lower() for spec in walk(RunConfig)}


def _words(path: str, spec: Any) -> list[str]:
    found = [path, spec.name, *spec.ui.aliases]
    for language in LANGUAGES:
        texts = field_texts(language)
        found += [texts[label_key(path)], texts[help_key(path)]]
    for inner in walk(spec.item) if spec.item else ():
        found += _words(f"{path}.{inner.path}", inner)
    return found


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace."""
    router = APIRouter(prefix="/api")

    @router.get("/downloads")
    def read_downloads(request: Request) -> list[dict[str, Any]]:
        language = request.cookies.get(COOKIE, "en")
        return downloads(workspace, language)

    @router.get("/fields")
    def read_fields() -> dict[str, str]:
        return field_words()

    return router
