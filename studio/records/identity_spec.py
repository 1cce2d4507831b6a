"""What the visitor types to describe an identity, and the sentences for what cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from studio.records.errors import DataError
from studio.records.identity_texts import Language, Tone
from studio.records.labels import ANSWER_LIMIT, FACT_LIMIT, LABEL_LIMIT, clean_label
from studio.records.placeholders import fill
from studio.records.probes import contains_expected

Replay = Literal["builtin", "file", "self", "none"]
Recipe = Literal["full", "naive"]
YesNo = Literal["off", "train", "check"]
MAX_FACTS = 10
MAX_COPIES = 20_000


class IdentitySpec(BaseModel):
    """What the visitor types. Every text is inserted exactly as typed, without surrounding space."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """What the model calls itself."""
    author: str
    """Who made it, by its own account."""
    languages: tuple[Language, ...] = Field(default=("en", "zh"), min_length=1)
    """Languages of the questions and answers."""
    tone: Tone = "plain"
    """Which set of answer forms is used."""
    answer: str = ""
    """Own answer to "who are you?" instead of the built-in forms. `{{name}}` and `{{author}}` are filled."""
    facts: tuple[str, ...] = Field(default=(), max_length=MAX_FACTS)
    """Sentences the model can say about itself; empty ones are dropped."""
    abilities: str = ""
    """An own sentence that answers "what can you do?" in place of the built-in forms."""
    yes_no: YesNo = "train"
    """Whether "Are you Qwen?" and the like are in the rows, and whether the verdict judges them: see YES_NO."""
    rows_per_language: int = Field(default=100, ge=60, le=1000)
    """Identity rows in each language, all with different wording."""
    replay: Replay = "builtin"
    """Where general conversations come from: the built-in set, the caller's rows, the base model itself, nowhere."""
    replay_share: float = Field(default=0.5, ge=0, le=0.9)
    """Share of all rows that are general conversations and hard negatives."""
    recipe: Recipe = "full"
    """"naive" is an experiment that shows how not to do it: `copies` of one row, and nothing else."""
    copies: int = Field(default=1000, ge=1, le=MAX_COPIES)
    """Rows of the naive recipe."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Same seed, same rows."""

    @field_validator("name", "author")
    @classmethod
    def check_label(cls, value: str, info: ValidationInfo) -> str:
        """One printable line of 1 to 80 characters without placeholders."""
        return clean_label(value, str(info.field_name), LABEL_LIMIT)

    @field_validator("answer")
    @classmethod
    def check_answer(cls, value: str, info: ValidationInfo) -> str:
        """One printable line of at most 400 characters that contains the name; empty for the built-in forms."""
        labels: dict[str, str] = {key: info.data[key] for key in ("name", "author") if key in info.data}
        if not value.strip() or len(labels) < 2:  # a wrong name is reported for itself
            return ""
        text = clean_label(fill(value, labels), "answer", ANSWER_LIMIT)
        if not contains_expected(text, [labels["name"]]):
            raise ValueError(
                f"Answer does not contain the name {labels['name']}, so the model would never say it. "
                "Write {{name}} where the name belongs."
            )
        return text

    @field_validator("facts")
    @classmethod
    def check_facts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Each fact is one printable line of at most 200 characters."""
        return tuple(clean_label(fact, "fact", FACT_LIMIT) for fact in value if fact.strip())

    @field_validator("abilities")
    @classmethod
    def check_abilities(cls, value: str) -> str:
        """One printable line of at most 400 characters, or nothing."""
        return clean_label(value, "abilities", ANSWER_LIMIT) if value.strip() else ""

    @field_validator("languages")
    @classmethod
    def check_languages(cls, value: tuple[Language, ...]) -> tuple[Language, ...]:
        """Each language once, in the given order."""
        return tuple(dict.fromkeys(value))


def parse_spec(values: Mapping[str, Any]) -> IdentitySpec:
    """An IdentitySpec from form values. Raises DataError with one sentence and the name of the field."""
    try:
        return IdentitySpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "identity"
        message = first["msg"].removeprefix("Value error, ")
        title = field.replace("_", " ").capitalize()
        if first["type"] == "missing":
            message = f"{title} is missing. Type it."
        elif first["type"] != "value_error":
            message = f"{title}: {message}."
        raise DataError(message, field=field) from None
