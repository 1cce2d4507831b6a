"""data: build, look into, bring, change and write datasets; one module per kind of action."""

from __future__ import annotations

import argparse

from studio.cli import data_edit, data_identity, data_import, data_inspect, data_preview


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its own verbs."""
    parser = verbs.add_parser("data", help="build, inspect, import, convert and edit datasets")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    data_inspect.add_actions(actions)
    preview = actions.add_parser("preview", help="tokens, loss mask and counts of a configuration")
    data_preview.add_preview(preview)
    data_identity.add_actions(actions)
    data_import.add_actions(actions)
    data_edit.add_actions(actions)
