"""Configurations of other programs, read into ours: XTuner's Python files and LLaMA-Factory's YAML.

Nothing of them is executed. What has no counterpart here is listed with its line, never dropped in silence.
"""
