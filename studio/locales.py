"""Names in any script in any locale: paths are UTF-8 whatever the environment says."""

from __future__ import annotations

import io
import os
import sys


def start_in_utf8() -> None:
    """Begin this command again in Python's UTF-8 mode, unless file names are UTF-8 here anyway.

    In a locale like C without coercion, or an 8-bit one, Python can neither open a Chinese path that a configuration
    names nor write one that it was given into a file. Only for the first lines of a program.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        argv = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, argv, os.environ | {"PYTHONUTF8": "1"})
    speak_utf8()


def speak_utf8() -> None:
    """Names in any script can be printed, whatever encoding the streams were told to have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
