"""What a model that sees is shown: pictures become numbers beside the tokens that stand for them."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from studio.engine.dialogue import PromptError, Turn


class Eyes:
    """A model's processor; `accepted` are the inputs its forward pass knows."""

    def __init__(self, processor: Any, accepted: frozenset[str]) -> None:
        self._processor, self._accepted = processor, accepted

    def of(self, tokenizer: PreTrainedTokenizerBase) -> Eyes:
        """The same for another tokenizer of the model."""
        processor = copy.copy(self._processor)
        processor.tokenizer = tokenizer
        return Eyes(processor, self._accepted)

    def shown(self, turn: Turn, template: str) -> Any:
        """The content of a message for a chat template: in parts if it knows pictures, else with their token in it."""
        if "image" in template and turn.role != "tool":
            return [*({"type": "image"} for _ in turn.images), {"type": "text", "text": turn.content}]
        token = getattr(self._processor, "image_token", "<image>")
        return "".join(f"{token}\n" for _ in turn.images) + turn.content

    def read(self, text: str, pictures: Sequence[bytes]) -> tuple[list[int], dict[str, torch.Tensor]]:
        """Token ids, and the other inputs of the forward pass. Raises PromptError when they do not fit together."""
        tokenizer = self._processor.tokenizer
        opened = [Image.open(io.BytesIO(content)).convert("RGB") for content in pictures]
        begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        try:
            found: Mapping[str, Any] = self._processor(
                text=[text], images=opened, return_tensors="pt", add_special_tokens=not begun
            )
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            sentence = f"the pictures cannot be put into this conversation ({' '.join(str(error).split())[:160]})"
            raise PromptError(sentence) from error
        others = {key: value for key, value in found.items() if key in self._accepted}
        return found["input_ids"][0].tolist(), others


def pictures_of(turns: Sequence[Turn]) -> list[bytes]:
    """All pictures of a conversation, in their order."""
    return [image for turn in turns for image in turn.images]


def placed(inputs: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The inputs where the model is, pictures in its number format."""
    return {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in inputs.items()
    }
