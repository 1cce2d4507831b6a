"""convert: import an adapter that another tool made, or make one of our own ready to be given away."""

from __future__ import annotations

import argparse


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    del verbs
