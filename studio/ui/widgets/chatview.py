"""The conversation the chat room shows: questions, the answers of one or two models, and what each was really sent.

The page holds it as JSON and hands it back with every action, so it is read here like anything from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LEFT, RIGHT = "left", "right"
SIDES = (LEFT, RIGHT)
LONGEST = 200_000
LONGEST_ERROR = 4000
MOST_TURNS = 500
State = Literal["waiting", "streaming", "done", "stopped", "failed"]
Message = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Step(_Part):
    """A tool a model used: its name, the arguments as JSON text, what came back, and what was `said` before it."""

    name: str = Field(max_length=200)
    arguments: str = Field(default="", max_length=LONGEST)
    result: str = Field(default="", max_length=LONGEST)
    failed: bool = False
    done: bool = False
    said: str = Field(default="", max_length=LONGEST)


class Answer(_Part):
    """One model's answer. `seconds` from the request to its end, `wait` to its first piece; `tokens` of the answer,
    `prompt_tokens` of what was read, `speed` in tokens a second; `dropped` messages did not fit; `corrected`: a person
    has changed the text; `messages` are those of an answer that used tools, in OpenAI's form."""

    text: str = Field(default="", max_length=LONGEST)
    state: State = "waiting"
    error: str = Field(default="", max_length=LONGEST_ERROR)
    finish: str = Field(default="", max_length=40)
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    wait: float = 0.0
    dropped: int = 0
    speed: float = 0.0
    corrected: bool = False
    messages: list[dict[str, Any]] = Field(default=[], max_length=100)
    steps: list[Step] = Field(default=[], max_length=100)

    @property
    def said(self) -> bool:
        """Whether there is something to go on from or to keep."""
        return bool(self.text.strip())


class Turn(_Part):
    """A question and its answers by side. `fresh`: a new conversation begins here, after the messages of `before`.

    `seed` is the one both were sent; `swap`: the sides change places on the page; `vote` is the side that won a blind
    vote, "both", "neither", or "".
    """

    question: str = Field(max_length=LONGEST)
    before: list[Message] = Field(default=[], max_length=200)
    fresh: bool = False
    seed: int | None = None
    blind: bool = False
    swap: bool = False
    vote: Literal["", "left", "right", "both", "neither"] = ""
    answers: dict[Literal["left", "right"], Answer] = {}


class Named(_Part):
    """Who answers on a side, as the page names it; `key` as `studio.model_choices` takes it."""

    key: str = Field(max_length=4096)
    name: str = Field(default="", max_length=400)
    what: str = Field(default="", max_length=400)


class Thread(_Part):
    """All of it. `earlier` are the questions asked of another pair before, to be asked again; `chosen_for` is the run
    that was selected when the pair was chosen; `blind`: the page hides who says what until a vote; `stream`
    names the stream of answers, so that the page knows what a Stop was meant for."""

    sides: dict[Literal["left", "right"], Named] = {}
    turns: list[Turn] = Field(default=[], max_length=MOST_TURNS)
    earlier: list[str] = Field(default=[], max_length=MOST_TURNS)
    chosen_for: str = Field(default="", max_length=400)
    busy: bool = False
    stream: str = Field(default="", max_length=40)
    blind: bool = False

    @property
    def questions(self) -> list[str]:
        """What was asked, each once."""
        return list(dict.fromkeys(turn.question for turn in self.turns if turn.question.strip()))

    def start(self, number: int) -> int:
        """The first turn of the conversation that turn `number` belongs to."""
        return next((n for n in range(number, 0, -1) if self.turns[n].fresh), 0)

    def end(self, number: int) -> int:
        """The turn after the last one of that conversation."""
        return next((n for n in range(number + 1, len(self.turns)) if self.turns[n].fresh), len(self.turns))

    def messages(self, number: int, side: str, system: str) -> list[Message]:
        """What a side is sent for turn `number`: its own conversation so far, without questions it never answered."""
        first = self.start(number)
        sent = [dict(message) for message in self.turns[first].before]
        has_system = bool(sent) and sent[0].get("role") == "system"
        head = [{"role": "system", "content": system.strip()}] if system.strip() and not has_system else []
        for turn in self.turns[first:number]:
            sent += answered(turn, side)
        return [*head, *sent, {"role": "user", "content": self.turns[number].question}]

    def rows(self, side: str, system: str) -> list[dict[str, Any]]:
        """The conversations of one side as rows of a dataset; turns without an answer are left out."""
        found: list[dict[str, Any]] = []
        begins = [n for n, turn in enumerate(self.turns) if n == 0 or turn.fresh]
        for first, after in zip(begins, [*begins[1:], len(self.turns)], strict=True):
            said = [message for turn in self.turns[first:after] for message in answered(turn, side)]
            if said:
                before = [dict(message) for message in self.turns[first].before]
                has_system = bool(before) and before[0].get("role") == "system"
                head = [{"role": "system", "content": system.strip()}] if system.strip() and not has_system else []
                found.append({"messages": [*head, *before, *said]})
        return found

    def growing(self, number: int) -> dict[str, Any]:
        """One turn for the page, which has the others: a long conversation is not sent with every word."""
        return {"stream": self.stream, "number": number, "turn": self.turns[number].model_dump(mode="json")}

    def as_json(self) -> dict[str, Any]:
        """The value of the page."""
        return self.model_dump(mode="json")


def answered(turn: Turn, side: str) -> list[Message]:
    """A question and the side's answer to it; nothing without an answer, which a template would refuse."""
    answer = turn.answers.get(side)  # type: ignore[call-overload]
    if answer is None or not answer.said or answer.state == "failed":
        return []
    asked = {"role": "user", "content": turn.question}
    used = [dict(message) for message in answer.messages] if answer.steps and not answer.corrected else []
    return [asked, *(used or [{"role": "assistant", "content": answer.text}])]


def read_thread(value: Any) -> Thread:
    """The conversation the page handed over; an empty one for anything that is none."""
    try:
        return Thread.model_validate(value if isinstance(value, Mapping) else {})
    except ValidationError:
        return Thread()


def new_turn(messages: Sequence[Mapping[str, str]], **options: Any) -> Turn:
    """A turn that asks the last of the messages, after the others."""
    *before, last = [dict(message) for message in messages]
    return Turn(question=last["content"], before=before, **options)
