"""How a model is spoken to: conversations and plain texts become token ids, as its chat template writes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from studio.engine.dialogue import PromptError, Request, ToolCall, Turn
from studio.engine.generation_pictures import Eyes, pictures_of
from studio.engine.stopping import Endings, endings
from studio.records.errors import shown
from studio.records.template import choose_template, named_templates
from studio.records.template_names import template_names

ANSWER_SHARE = 4  # a shortened conversation leaves at least a quarter of the context to the answer, if it is wanted


@dataclass(frozen=True)
class Prompt:
    """What a model is given to read. `dropped`: how many of the oldest messages were left out because of the length.

    `pictures` are further inputs of the forward pass that reads it.
    """

    ids: list[int]
    dropped: int = 0
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Voice:
    """How one model name reads and writes: tokenizer, chat template, and the tokens and texts that end an answer.

    `saved` are the endings an adapter brings beside those of its base model; `eyes` is how pictures are read.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        saved: Endings | None = None,
        eyes: Eyes | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.eyes = eyes.of(tokenizer) if eyes else None
        found = endings(tokenizer, model) | (saved or Endings())
        self.ends, self.stops = found.tokens, found.texts
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        # A model's settings without its weights, which must not be kept alive from here.
        self._settings = SimpleNamespace(config=model.config, generation_config=model.generation_config)
        self._others: dict[str, Voice] = {}

    def speaking(self, template: str | None) -> Voice:
        """This voice with the chat template of that name; itself for None. Raises PromptError for an unknown one."""
        if not template:
            return self
        if template not in self._others:
            self._others[template] = self._with(template)
        return self._others[template]

    def _with(self, template: str) -> Voice:
        own = named_templates(self.tokenizer.chat_template)
        known = sorted({*template_names(), *own})
        if template not in known:
            sentence = f"there is no chat template {shown(template)!r}; there are: {', '.join(known)}"
            raise PromptError(sentence, "chat_template")
        chosen = choose_template(own, template, "")
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = chosen.source
        settings: Any = self._settings
        other = Voice(tokenizer, settings, endings(tokenizer, settings, chosen.stop_words), self.eyes)
        other.context = self.context
        return other

    def read(self, request: Request) -> Prompt:
        """What the model is given for a request of this voice. Raises PromptError."""
        if request.prompt is not None:
            return Prompt(self._checked(self._plain(request.prompt), "prompt"))
        room = min(request.sampling.max_tokens, self.context // ANSWER_SHARE) if request.truncate else 0
        whole = self._of(request, request.turns)
        if not request.truncate or len(whole.ids) + room <= self.context:
            self._checked(whole.ids, "conversation")
            return whole
        return self._shortened(request, whole, room)

    def _of(self, request: Request, turns: Sequence[Turn]) -> Prompt:
        """The conversation up to where the answer begins, and behind that the words it is to begin with."""
        text = self._written(turns, request.tools, request.template_arguments) + request.opening
        pictures = pictures_of(turns)
        if not pictures:
            return Prompt(self._tokens(text))
        if self.eyes is None:
            raise PromptError("this model sees no pictures; send text only")
        ids, inputs = self.eyes.read(text, pictures)
        return Prompt(ids, pictures=inputs)

    def render(self, turns: Sequence[Turn], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Token ids of a conversation without pictures, up to where the answer begins. Raises PromptError."""
        return self._tokens(self._written(turns, tools, {}))

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _written(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> str:
        template = self.tokenizer.chat_template
        if not template:
            raise PromptError("this model has no chat template, so it cannot hold a conversation")
        if tools and "tools" not in str(template):
            raise PromptError("this model's chat template cannot write tools; choose one that can, for example chatml")
        try:
            text = str(
                self.tokenizer.apply_chat_template(
                    _messages(turns, self._content),
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=True,
                    **arguments,
                )
            )
            text.encode()
            return text
        except UnicodeEncodeError:
            raise PromptError("the text holds half a character, so it is no valid Unicode") from None
        except TemplateSyntaxError as error:
            fault = f"the model's chat template is no valid template (line {error.lineno}: {str(error)[:160]})"
            raise PromptError(f"{fault}; choose another one by name", "chat_template") from error
        except Exception as error:  # whatever a template raises about roles and their order
            raise PromptError(f"the model's chat template refuses this conversation ({str(error)[:160]})") from error

    def _content(self, turn: Turn) -> Any:
        """Text as it is; what a model that sees is told comes in the form its template knows."""
        return turn.content if self.eyes is None else self.eyes.shown(turn, str(self.tokenizer.chat_template))

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        if not ids and self.tokenizer.bos_token_id is not None:
            return [int(self.tokenizer.bos_token_id)]
        return ids

    def _checked(self, ids: list[int], what: str) -> list[int]:
        if not ids:
            raise PromptError(f"the {what} is empty; write something")
        if len(ids) >= self.context:
            raise PromptError(
                f"the {what} is {len(ids)} tokens long and this model reads at most {self.context}; "
                + ("clear the chat or shorten the message" if what == "conversation" else "shorten it")
            )
        return ids

    def _shortened(self, request: Request, whole: Prompt, room: int) -> Prompt:
        """The conversation from the first question on with which it fits, behind its system prompt."""
        turns = request.turns
        first = next((n for n, turn in enumerate(turns) if turn.role != "system"), len(turns))
        starts = [n for n, turn in enumerate(turns) if turn.role == "user" and n >= first]

        def begun_at(start: int) -> Prompt:
            return self._of(request, (*turns[:first], *turns[start:]))

        low, high = 0, len(starts) - 1  # the later the start the shorter the text
        while low < high:
            middle = (low + high) // 2
            if len(begun_at(starts[middle]).ids) + room <= self.context:
                high = middle
            else:
                low = middle + 1
        cut = starts[low] - first if starts else 0
        found = replace(begun_at(starts[low]), dropped=cut) if cut else whole
        self._checked(found.ids, "conversation")
        return found


def _messages(turns: Sequence[Turn], content: Callable[[Turn], Any]) -> list[dict[str, Any]]:
    """The turns as chat templates want them; the result of a tool names the tool, as some templates write that."""
    names = {call.id: call.name for turn in turns for call in turn.tool_calls}
    found = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": content(turn)}
        if turn.tool_calls:
            message["tool_calls"] = [_call(call) for call in turn.tool_calls]
        if turn.role == "tool":
            message |= {"tool_call_id": turn.tool_call_id, "name": names.get(turn.tool_call_id, "")}
        found.append(message)
    return found


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves, so they want them as an object."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    function = {"name": call.name, "arguments": arguments if isinstance(arguments, dict) else call.arguments}
    return {"id": call.id, "type": "function", "function": function}
