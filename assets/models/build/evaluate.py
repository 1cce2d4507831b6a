"""Held-out evaluation: greedy answers must equal one of the acceptable answers, character by character."""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from assets.models.build.dialogues import SKILLS, sample
from assets.models.build.phrases import identity_questions, right_answers, table, templates
from assets.models.build.skills import Case, Draw

PER_SKILL = 60
SEED = 4242
BATCH = 32
#: Names of many scripts, none of them in the corpus; the verdict teaches them, the system prompt gives them.
UNSEEN: tuple[tuple[str, str], ...] = tuple((name, author) for name, author in table("unseen")["pairs"])


@dataclass
class Question:
    """One test item."""

    skill: str
    case: Case


def heldout_questions(per_skill: int = PER_SKILL, seed: int = SEED) -> list[Question]:
    """Distinct held-out cases of every skill (fewer where a skill has fewer), plus unseen names."""
    found: list[Question] = []
    for skill in SKILLS:
        if skill == "image":
            continue
        draw = Draw(random.Random(f"{seed}-{skill}"), held=True)
        seen: set[str] = set()
        for _ in range(per_skill * 40):
            case = sample(skill, draw)
            key = json.dumps(case.messages)
            if key not in seen and len(seen) < per_skill:
                seen.add(key)
                found.append(Question(skill, case))
    return found + unseen_names()


def unseen_names() -> list[Question]:
    """The unseen names given by a system prompt and asked for by held-out questions."""
    r = random.Random(SEED)
    found = []
    for name, author in UNSEEN:
        for lang in ("en", "zh"):
            for kind in ("who", "author"):
                question = r.choice(identity_questions(lang, kind, held=True))
                system = r.choice(templates()["system"][lang]).format(n=name, a=author)
                answers = right_answers(lang, kind, name, author)
                found.append(Question("unseen_names", Case([("system", system), ("user", question)], answers, lang)))
                found.append(
                    Question("unseen_echo", Case([("user", f"Repeat: {name}")], [name], lang))
                    if kind == "who"
                    else Question("unseen_echo", Case([("user", f"请重复：{author}")], [author], lang))
                )
    return found


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: list[list[tuple[str, str]]],
    longest: int = 96,
) -> list[str]:
    """Greedy answers, one per dialogue, generated in batches of similar length."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=True
        )
        for messages in dialogues
    ]
    order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
    replies = [""] * len(prompts)
    tokenizer.padding_side = "left"
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        batch = tokenizer([prompts[k] for k in chosen], return_tensors="pt", padding=True, add_special_tokens=False)
        batch.pop("token_type_ids", None)
        output = model.generate(**batch, max_new_tokens=longest, do_sample=False)
        for k, ids in zip(chosen, output[:, batch["input_ids"].shape[1] :], strict=True):
            replies[k] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    tokenizer.backend_tokenizer.no_padding()
    return replies


@dataclass
class Score:
    """Share of exact matches per skill, and the misses."""

    shares: dict[str, float]
    counts: dict[str, int]
    misses: list[tuple[Question, str]]

    @property
    def mean(self) -> float:
        """Mean over the skills of the mixture, the unseen-name probes left out."""
        shares = [share for skill, share in self.shares.items() if skill in SKILLS]
        return sum(shares) / len(shares)


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: list[Question]) -> Score:
    """Ask every question and compare."""
    model.eval()
    replies = answers(model, tokenizer, [q.case.messages for q in questions])
    right: dict[str, list[bool]] = {}
    misses = []
    for question, reply in zip(questions, replies, strict=True):
        correct = reply in question.case.answers
        right.setdefault(question.skill, []).append(correct)
        if not correct:
            misses.append((question, reply))
    shares = {skill: sum(marks) / len(marks) for skill, marks in right.items()}
    return Score(shares, {skill: len(marks) for skill, marks in right.items()}, misses)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in single precision and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Command line: python -m assets.models.build.evaluate FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-skill", type=int, default=PER_SKILL)
    parser.add_argument("--show", type=int, default=20, help="how many misses to print")
    args = parser.parse_args()
    result = score(*load(args.folder), heldout_questions(args.per_skill))
    for skill, share in result.shares.items():
        print(f"{skill:18} {share:6.1%} of {result.counts[skill]}")
    print(f"{'mean of skills':18} {result.mean:6.1%}")
    random.Random(1).shuffle(result.misses)
    for question, reply in result.misses[: args.show]:
        print(f"  {question.skill}: {question.case.messages} -> {reply!r}, wanted {question.case.answers[0]!r}")


if __name__ == "__main__":
    main()
