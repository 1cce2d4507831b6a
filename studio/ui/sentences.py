"""Sentences of the lower layers in the visitor's language. What has no translation stays as it is, in English."""

import re

from studio.ui.i18n import LANGUAGES, current_request, language_of, table
from studio.ui.wording import in_chinese

# What the English sentence contains -> key of the text in the visitor's language.
PATTERNS = (
    (r"is empty\. Type at least", "problem.empty"),
    (r"characters; at most (?P<limit>\d+) are allowed", "problem.long"),
    (r"contains a line break", "problem.line_break"),
    (r"unfilled placeholder (?P<found>.+?)\. Type", "problem.placeholder"),
    (r"contains (?P<found>.+?), which models read as a control token", "problem.control_token"),
    (r"contains a control character", "problem.control_character"),
    (r"another studio is starting a run", "problem.busy"),
)


def translated(sentence: str, language: str | None = None) -> str:
    """``sentence`` in a language, by default the visitor's of the running event, where it is one of the known ones."""
    language = language or language_of(current_request())
    if language not in LANGUAGES or language == "en":
        return sentence
    for pattern, key in PATTERNS:
        found = re.search(pattern, sentence)
        if found:
            return table(language)[key].format(**found.groupdict())
    return in_chinese(sentence) or sentence
