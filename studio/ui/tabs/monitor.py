"""The first page."""

from studio.ui.context import Context


def build(ctx: Context) -> None:
    """Build the tab."""
