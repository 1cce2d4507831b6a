"""Crucible 丹炉: a point-and-click studio for fine-tuning language models."""

__version__ = "0.1.0"
