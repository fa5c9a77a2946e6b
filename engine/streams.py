"""The standard streams as they may be: closed, full, of few letters, or a pipe that nobody reads any more."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
from typing import Any, Final

from .names import escaped

_LOOKALIKES: Final = {
    "ε": "e",
    "–": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "²": "^2",
    "±": "+-",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
}
_ERRORS: Final = "gfo-lookalike"
_SIZES: Final = ("COLUMNS", "LINES", "TERMINAL_WIDTH")


def prepare() -> None:
    """Make every stream one that can be written and takes any text; call it before anything is printed.

    A character that an encoding lacks becomes one that looks like it, or an escape.
    """
    _open_closed()
    codecs.register_error(_ERRORS, _lookalike)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    for name in _SIZES:  # libraries take them as they are: 0, or a digit that is no decimal
        if not re.fullmatch("[1-9][0-9]{1,2}", os.environ.get(name, "80")):
            del os.environ[name]


def _open_closed() -> None:
    """Open the null device in place of closed streams: the next file would get their number, and what they print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _lookalike(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_LOOKALIKES.get(character) or escaped(character) for character in text), error.end


def lost() -> tuple[str, OSError] | None:
    """Return a stream that cannot be written, and why; what it was to show is dropped. None where all is written."""
    found = None
    for name, stream in (("standard output", sys.stdout), ("standard error", sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            _drop(stream)
            found = found or (name, error)
    return found


def _drop(stream: Any) -> None:
    """Lead a stream to the null device: the interpreter flushes it once more when it ends."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
