"""Formats a finished model is written in for other programs."""
