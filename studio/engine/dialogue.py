"""The words between the chat protocol and the model behind it; loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from studio.presets import ROOT

BASE = "base"  # the model name under which all adapters are off

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Options:
    """What to serve, and where. `adapters` maps model names to folders; `workspace` keeps converted models.

    `idle_minutes` after the last answer the weights are let go until the next request (0: never). `with_system`:
    conversations without a system message get the one their model was trained with; `base_system` is that of a base
    which does not lie in the run that made it.
    """

    base: str
    adapters: dict[str, str]
    host: str
    port: int
    bits: int
    status: Path | None
    api_key: str | None
    workspace: Path = ROOT / "workspace"
    idle_minutes: float = 0.0
    with_system: bool = False
    base_system: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen; temperature 0 always takes the likeliest. `seed` None: a random one.

    `min_p` drops tokens less likely than this share of the likeliest. `logprobs`: how many alternatives are told beside
    each token (0: only its own probability; None: nothing).
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class ToolCall:
    """A tool the model wants used; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """One message of the conversation sent to the model. `images` are files' contents; they stand before the text.

    A turn of role "tool" is the result of the call `tool_call_id`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Request:
    """One thing asked of a model: a conversation, or with `prompt` a plain text to go on with.

    `tools` in OpenAI's form; `template` the name of a chat template to use in place of the model's own;
    `template_arguments` are variables it may read (enable_thinking, …); `truncate`: leave out the oldest messages of a
    conversation that is too long, instead of refusing it. `opening`: text the answer begins with, written for the model
    and not repeated in the pieces. `shown`: special tokens that are told as text, which others never are.
    """

    model: str
    turns: tuple[Turn, ...] = ()
    prompt: str | None = None
    sampling: Sampling = Sampling()
    tools: tuple[Mapping[str, Any], ...] = ()
    template: str | None = None
    truncate: bool = False
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    opening: str = ""
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenChance:
    """One token of an answer: its text, the logarithm of its probability, and the likeliest alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some text of an answer; the last piece of an answer has `finish` or `error` set, and the token counts."""

    text: str = ""
    finish: FinishReason | None = None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    chances: tuple[TokenChance, ...] = ()

    @property
    def last(self) -> bool:
        """True for the piece that ends an answer."""
        return self.finish is not None or self.error is not None


class PromptError(ValueError):
    """A request the model cannot answer: too long, or not what its chat template accepts.

    `field` is the key of the request that is wrong; empty: what was asked (messages or prompt).
    """

    def __init__(self, sentence: str, field: str = "") -> None:
        super().__init__(sentence)
        self.field = field


class UnknownModel(LookupError):
    """No model of that name is served."""


class Busy(RuntimeError):
    """Too many answers are under way."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of one served model.

    `template` is the Jinja source of its chat template (None: it holds no conversations), `system` the system prompt it
    was trained with, `context_length` in tokens, `images`: whether it sees pictures.
    """

    template: str | None = None
    system: str | None = None
    context_length: int = 0
    images: bool = False


class Unavailable(RuntimeError):
    """What was let go while nobody asked could not be loaded again; the message is a sentence."""


class Running(Protocol):
    """An answer under way. `dropped`: how many of the oldest messages did not fit and were left out."""

    dropped: int

    def cancel(self) -> None:
        """Stop it before its next token."""


class Speaker(Protocol):
    """What answers while it is loaded."""

    @property
    def models(self) -> Sequence[str]:
        """The names that can be asked."""

    def describe(self) -> dict[str, object]:
        """Facts for /health: device, dtype, sizes."""

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Running:
        """Start an answer; `emit` is called from another thread with every piece.

        Raises PromptError, UnknownModel, Busy or Unavailable.
        """

    def close(self) -> None:
        """End the answers under way and let go of the weights; nothing can be asked any more."""


class Backend(Speaker, Protocol):
    """What the server asks, loaded or not."""

    def facts(self, model: str) -> ModelFacts:
        """What is known of one model. Raises UnknownModel."""
