"""What a client may ask: the part of OpenAI's requests that is honoured, and our extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from studio.engine.chat_api_messages import LONGEST_TEXT, Message, Messages, check_order
from studio.engine.dialogue import Request, Sampling

MOST_TOOLS = 128
TOP_LOGPROBS = 20
StopWord = Annotated[str, Field(max_length=1000)]


def _only(*harmless: Any, advice: str) -> AfterValidator:
    """Refuses a key that is not honoured: anything but its harmless values would be answered wrongly."""

    def check(value: Any) -> Any:
        if value is not None and value not in harmless:
            raise ValueError(f"it is not supported here; {advice}")
        return value

    return AfterValidator(check)


class StreamOptions(BaseModel):
    """What else a stream should tell."""

    include_usage: bool = False


class Wishes(BaseModel):
    """What both kinds of request have; keys nobody here knows are ignored, as clients send many."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopWord], Field(max_length=16)] | None = None
    frequency_penalty: Annotated[Any, _only(0, advice="use repetition_penalty")] = None
    presence_penalty: Annotated[Any, _only(0, advice="use repetition_penalty")] = None
    logit_bias: Annotated[Any, _only({}, advice="leave it out")] = None

    @field_validator("stop", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        """One word may stand alone."""
        return [value] if isinstance(value, str) else value

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _sampling(self, longest: int | None, logprobs: int | None) -> Sampling:
        """The wishes of the request; what it leaves open takes our defaults."""
        wishes: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": longest,
            "seed": self.seed,
            "stop": tuple(self.stop or ()),
            "logprobs": logprobs,
        }
        return Sampling(**{key: value for key, value in wishes.items() if value is not None})


class ToolFunction(BaseModel):
    """What a tool is called, does and wants; `parameters` is a JSON schema."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    description: Annotated[str, Field(max_length=20_000)] | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool the model may call."""

    type: Literal["function"]
    function: ToolFunction

    def schema_for_template(self) -> dict[str, Any]:
        """In OpenAI's form, as chat templates expect it."""
        function = self.function.model_dump(exclude_none=True)
        return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}} | function}


class ChatRequest(Wishes):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template: Annotated[str, Field(max_length=200)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    response_format: Annotated[Any, _only({"type": "text"}, advice="answers are plain text")] = None
    functions: Annotated[Any, _only([], advice="use tools")] = None
    function_call: Annotated[Any, _only("none", advice="use tool_choice")] = None
    audio: Annotated[Any, _only(advice="answers are plain text")] = None
    modalities: Annotated[Any, _only([], ["text"], advice="answers are plain text")] = None

    @field_validator("messages")
    @classmethod
    def check_messages(cls, value: list[Message]) -> list[Message]:
        """Results of tools stand behind their calls, and the last word is not the model's."""
        check_order(value)
        return value

    @field_validator("tool_choice")
    @classmethod
    def check_tool_choice(cls, value: Any) -> Any:
        """A certain tool is named as {"type": "function", "function": {"name": …}}."""
        if isinstance(value, dict) and not isinstance(_chosen(value), str):
            raise ValueError('a certain tool is named as {"type": "function", "function": {"name": "…"}}')
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def check_template_arguments(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the server itself gives to a template is not for a client to change."""
        ours = {"messages", "tools", "add_generation_prompt", "tokenize", "chat_template", "continue_final_message"}
        taken = sorted(ours & set(value or {}))
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be set this way")
        return value

    @property
    def tool_name(self) -> str | None:
        """The tool that has to be called, if it is a certain one."""
        return _chosen(self.tool_choice) if isinstance(self.tool_choice, Mapping) else None

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, Mapping)

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools the model is told of."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool.schema_for_template() for tool in self.tools or ())

    def asked(self) -> Request:
        """The request in the words of the model's side."""
        likeliest = (self.top_logprobs or 0) if self.logprobs else None
        return Request(
            self.model,
            tuple(message.turn() for message in self.messages),
            sampling=self._sampling(self.max_completion_tokens or self.max_tokens, likeliest),
            tools=self.offered(),
            template=self.chat_template or None,
            truncate=self.truncation == "auto",
            template_arguments=self.chat_template_kwargs or {},
        )


def _chosen(choice: Mapping[str, Any]) -> Any:
    function = choice.get("function")
    return function.get("name") if isinstance(function, Mapping) else None


class CompletionRequest(Wishes):
    """POST /v1/completions: a text to go on with, without any chat template."""

    prompt: Annotated[str, Field(max_length=LONGEST_TEXT)]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None
    echo: Annotated[Any, _only(False, advice="put the prompt before the answer yourself")] = None
    suffix: Annotated[Any, _only("", advice="leave it out")] = None
    best_of: Annotated[Any, _only(1, advice="leave it out")] = None

    @field_validator("prompt", mode="before")
    @classmethod
    def one_text(cls, value: Any) -> Any:
        """A list of one text is that text."""
        if isinstance(value, list):
            if len(value) != 1 or not isinstance(value[0], str):
                raise ValueError("one text at a time is understood, no list of texts or of token numbers")
            return value[0]
        return value

    def asked(self) -> Request:
        """The request in the words of the model's side."""
        return Request(self.model, prompt=self.prompt, sampling=self._sampling(self.max_tokens, self.logprobs))
