"""Adapters that other programs wrote, read without running anything of theirs."""
