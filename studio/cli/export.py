"""export: write a model as bitsandbytes, GGUF or for Ollama, or upload it to a hub."""

from __future__ import annotations

import argparse


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    del verbs
