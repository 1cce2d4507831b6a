"""Rebuilds the built-in model from nothing: tokenizer, pre-training, evaluation, card and general rows.

    python -m assets.models.build.build WORKING_FOLDER

takes about 75 minutes on one CPU core and can be interrupted and started again.
"""

import argparse
import json
import shutil
from pathlib import Path
from string import Template
from typing import Any

from assets.models.build import datasets
from assets.models.build.evaluate import Score, heldout_questions, load, score
from assets.models.build.phrases import ASSETS, HERE
from assets.models.build.pretrain import train

TARGET = ASSETS / "models" / "ember"
LABELS = {
    "system_identity": "identity given by a system prompt",
    "default_identity": "its own identity",
    "rename": "a new name given in the chat",
    "small_talk": "greetings and small talk, unseen wording",
    "arithmetic": "sums, differences, products, unseen pairs",
    "facts": "capitals, colours, animals, opposites, words",
    "echo": "repeating any text",
    "spell": "spelling of listed words",
    "count": "counting up and down",
    "order": "sorting, largest, smallest, reversing",
    "unknown": "saying that it does not know",
    "negatives": "questions that only look like identity questions",
    "multi_turn": "memory within a conversation",
    "unseen_names": "unseen names of many scripts by system prompt",
    "unseen_echo": "repeating unseen names of many scripts",
}


def finish(work: Path, target: Path = TARGET) -> Score:
    """Copy the trained model to `target`, evaluate it, write its card and the general rows."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted((work / "model").iterdir()):
        shutil.copyfile(file, target / file.name)
    model, tokenizer = load(target)
    result = score(model, tokenizer, heldout_questions())
    progress = json.loads((work / "model" / "training.json").read_text(encoding="utf-8"))
    (target / "training.json").unlink()
    (target / "README.md").write_text(card(result, progress), encoding="utf-8")
    datasets.write(model, tokenizer)
    return result


def card(result: Score, progress: dict[str, Any]) -> str:
    """The model card with the measured figures filled in."""
    rows = [f"| {LABELS[skill]} | {result.counts[skill]} | {share:.0%} |" for skill, share in result.shares.items()]
    rows.append(f"| **mean of the skills, without the two probes of unseen names** | | **{result.mean:.1%}** |")
    text = (HERE / "data" / "card.md").read_text(encoding="utf-8")
    return Template(text).substitute(
        table="\n".join(rows),
        tokens=f"{progress['tokens'] / 1e6:.1f}",
        steps=f"{progress['step']:.0f}",
        start=progress.get("start", "random weights"),
        minutes=f"{progress['seconds'] / 60:.0f}",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="working folder for checkpoints, outside the repository")
    parser.add_argument("--seconds", type=float, default=4300.0)
    parser.add_argument("--batch", type=int, default=8, help="rows of 256 tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spare-core", type=int, help="core whose idle time may add gradients")
    parser.add_argument("--no-training", action="store_true", help="only evaluate and write what is in the folder")
    args = parser.parse_args()
    if not args.no_training:
        train(args.work, args.seconds, args.batch, args.seed, args.spare_core)
    result = finish(args.work)
    print(f"mean {result.mean:.1%}", {skill: round(share, 3) for skill, share in result.shares.items()})


if __name__ == "__main__":
    main()
