"""answers: a file of prompts in, the answers of base and tuned model out."""

from __future__ import annotations

import argparse


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    del verbs
