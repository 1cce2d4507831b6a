"""The proof of a GGUF file: llama.cpp reads the same tokens, renders the same conversations, answers the same.

transformers' logits are taken along the answer llama.cpp wrote, so that every token of it is compared, not only those
before the first difference. What may differ is rounding: of the weights in the file, and of llama.cpp's own arithmetic,
which computes with numbers as short as the weights. Measured on the built-in model and on random models of every
architecture (see TOLERANCE): a head rotated in the wrong order or a norm left out is a hundred times over it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedTokenizerBase

from studio.engine.converted import ready
from studio.engine.formats import llama_cpp
from studio.engine.formats.gguf_model import read_config
from studio.engine.formats.gguf_tokens import Words
from studio.engine.loading import Holding, count_parameters, load_base
from studio.engine.questions import BUILT_IN
from studio.engine.stopping import endings
from studio.gguf_support import context_length
from studio.presets import ModelRef

ANSWER_TOKENS = 16
CONTEXT = 512
# Of a log probability, by the number format of the file.
TOLERANCE = {"f32": 0.02, "f16": 0.1, "bf16": 0.5, "q8_0": 0.5}
LIKELY = -8.0  # only tokens the model may really say are compared
TEXTS = (
    "Hello world, this is a test.",
    "The year 2024 has 366 days; 3.14159 is pi, 1,000,000 a million.",
    "  two spaces,\ttabs\n\nand\r\nlines   \n",
    "def area(r):\n    return 3.14 * r**2  # круг",
    "你好，世界！人工智能是什么？",
    "Ünïcödé – naïve café, €5, 😀🚀",
    "I'm sure they've said it's O'Neill's, can't you SEE'S?",
    "こんにちは 안녕하세요 مرحبا",
)


@dataclass(frozen=True)
class Asked:
    """One question, and the token ids of what the template makes of it."""

    prompt: str
    ids: list[int]


def prove_in_llama_cpp(source: Path, file: Path, words: Words, kind: str) -> dict[str, Any]:
    """Ask llama.cpp and transformers the same. Returns the figures; `reason` is empty when they agree."""
    longest = min(CONTEXT, context_length(read_config(source).to_dict())) - ANSWER_TOKENS
    tokenizer = words.tokenizer
    asked = _questions(tokenizer, longest)
    texts = _texts(words)
    talks = _conversations() if words.template is not None else []
    try:
        said = llama_cpp.ask(
            {
                "file": str(file),
                "context": CONTEXT,
                "tokens": ANSWER_TOKENS,
                "texts": [[text, words.adds_bos] for text, _ in texts],
                "conversations": talks,
                "prompts": [one.ids for one in asked],
            }
        )
    except llama_cpp.Refused as error:
        return {"checked_with": "llama.cpp", "reason": f"llama.cpp does not read it ({error})"}
    report = _same_tokens(texts, said["ids"]) | _same_rendering(words, talks, said["rendered"])
    report |= {"checked_with": said["build"]} | _same_answers(source, file, asked, said["answers"], tokenizer)
    report["tolerance"] = TOLERANCE[kind]
    report["reason"] = _reason(report)
    return report


def _questions(tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Asked]:
    """Those of at most `longest` tokens."""
    found = []
    for prompt in BUILT_IN:
        text = _written(tokenizer, [{"role": "user", "content": prompt}])
        plain = text is None
        ids = tokenizer(prompt if text is None else text, add_special_tokens=plain)["input_ids"]
        if 0 < len(ids) <= longest:
            found.append(Asked(prompt, [int(number) for number in ids]))
    return found


def _written(tokenizer: PreTrainedTokenizerBase, talk: list[dict[str, str]]) -> str | None:
    """A conversation as the template writes it; None without a template, and where it refuses."""
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template may raise whatever it likes
        return None


def _conversations() -> list[list[dict[str, str]]]:
    first = [{"role": "user", "content": TEXTS[0]}]
    answer = {"role": "assistant", "content": "An answer."}
    return [first, [*first, answer, {"role": "user", "content": TEXTS[4]}]]


def _texts(words: Words) -> list[tuple[str, list[int]]]:
    """Texts to cut into tokens, and the ids wanted: within conversations if there is a template, else plain ones."""
    tokenizer = words.tokenizer
    bos = str(tokenizer.bos_token or "")
    found = []
    for text in TEXTS:
        written = _written(tokenizer, [{"role": "user", "content": text}])
        ids = tokenizer(text if written is None else written, add_special_tokens=written is None)["input_ids"]
        if written is not None and words.adds_bos:
            written = written.removeprefix(bos)  # it is put there when the text is cut
        found.append((text if written is None else written, [int(number) for number in ids]))
    return found


def _same_tokens(texts: list[tuple[str, list[int]]], found: list[list[int]]) -> dict[str, Any]:
    other = [text for (text, ids), read in zip(texts, found, strict=True) if ids != read]
    return {"texts": len(texts), "texts_equal": len(texts) - len(other), "other_tokens": other[:3]}


def _same_rendering(words: Words, talks: list[list[dict[str, str]]], found: list[str]) -> dict[str, Any]:
    """How many conversations llama.cpp's own template engine writes as the model was trained."""
    bos = str(words.tokenizer.bos_token or "")
    equal = count = 0
    for talk, read in zip(talks, found, strict=True):
        wanted = _written(words.tokenizer, talk)
        if wanted is not None:
            count += 1
            equal += read == wanted or (words.adds_bos and read == wanted.removeprefix(bos))
    return {"conversations": count, "conversations_equal": equal}


def _same_answers(
    source: Path, file: Path, asked: list[Asked], answers: list[list[dict[str, Any]]], tokenizer: Any
) -> dict[str, Any]:
    ref = ModelRef(str(source), str(source), local=True)
    place = file.with_name(f".{file.name}.proof")
    try:
        ref = ready(ref, place)
        dtype = _fitting(ref)
        if dtype is None:
            return {"prompts": 0, "answers_equal": 0, "rows": [], "skipped": "memory"}
        model = load_base(ref, Holding(16, dtype), "model", device="cpu")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    difference, slack, rows = 0.0, 0.0, []
    ends = endings(tokenizer, model).tokens
    for one, answer in zip(asked, answers, strict=True):
        if answer:
            gap, lead, own = _along(model, one, answer)
            difference, slack = max(difference, gap), max(slack, lead)
            told = [_told(ids, ends, tokenizer) for ids in (own, [int(token["id"]) for token in answer])]
            rows.append({"prompt": one.prompt, "model": told[0], "file": told[1]})
    return {
        "prompts": len(rows),
        "answers_equal": sum(row["model"] == row["file"] for row in rows),
        "max_logprob_difference": difference,
        "lead_of_other_tokens": slack,
        "rows": rows,
    }


def _fitting(ref: ModelRef) -> torch.dtype | None:
    """The most precise format the model fits into memory in."""
    count, free = count_parameters(ref), psutil.virtual_memory().available * 0.8
    return next((dtype for size, dtype in ((4, torch.float32), (2, torch.bfloat16)) if count * size < free), None)


@torch.inference_mode()
def _along(model: Any, one: Asked, answer: list[dict[str, Any]]) -> tuple[float, float, list[int]]:
    """(largest difference of a log probability, by how much another token was likelier here, the model's own answer).

    The latter goes as far as the first token in which it differs. All tokens count, also those behind an end.
    """
    ids = [int(token["id"]) for token in answer]
    output = model(input_ids=torch.tensor([one.ids + ids]), use_cache=False, logits_to_keep=len(ids) + 1)
    chances = output.logits[0, -len(ids) - 1 : -1].float().log_softmax(-1)
    best = chances.argmax(-1).tolist()
    gap = lead = 0.0
    for place, token in enumerate(answer):
        here = chances[place]
        gap = max([gap, *(_gap(float(here[int(number)]), chance) for number, chance in token["top"].items())])
        lead = max(lead, float(here[best[place]] - here[ids[place]]))
    agreed = next((place for place in range(len(ids)) if best[place] != ids[place]), len(ids))
    return gap, lead, ids if agreed == len(ids) else [*ids[:agreed], best[agreed]]


def _told(ids: list[int], ends: frozenset[int], tokenizer: Any) -> str:
    """An answer as a person is told it: up to its end, without special tokens."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True))


def _gap(here: float, there: float) -> float:
    if max(here, there) < LIKELY:
        return 0.0
    gap = abs(here - there)
    return gap if gap == gap else float("inf")  # NaN compares as nothing


def _reason(report: dict[str, Any]) -> str:
    """Why the proof fails, or nothing."""
    if report["texts_equal"] < report["texts"]:
        return f"llama.cpp cuts texts into other tokens (one of them: {report['other_tokens'][0][:60]!r})"
    if report["conversations_equal"] < report["conversations"]:
        return "llama.cpp writes conversations otherwise than the chat template it was trained with"
    if not report["prompts"] and not report.get("skipped"):
        return "none of the questions could be asked"
    if not report.get("max_logprob_difference", 0.0) <= report["tolerance"]:
        return (
            f"the chances of its next words differ by up to {report['max_logprob_difference']:.3g} from those of the "
            f"model, and {report['tolerance']:.3g} is allowed"
        )
    return ""
