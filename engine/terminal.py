"""The terminal: exit codes, errors in one line, and the width of what is printed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..export.errors import EngineUnavailable, InputError, Unreachable

if TYPE_CHECKING:
    import typer
    from rich.console import Console

BAD_INPUT: Final = 2
UNAVAILABLE: Final = 3
FAILED: Final = 4
"""A check failed: parity, the self-test, or a benchmark's comparison."""
UNREACHABLE: Final = 5
"""Storage failed on the way; what is finished is kept."""
INTERRUPTED: Final = 130

_FILE_WIDTH = 200


def console(*, stderr: bool = False, width: int = _FILE_WIDTH) -> Console:
    """Return a console as wide as the terminal; `width` columns for a file or a pipe, which has no width of its own."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=width)


def run(app: typer.Typer, name: str, *, resumes: bool = True) -> None:
    """Run a command and exit with a code of `docs/reference/exit-codes.md`, or with the command's own.

    Bad input is one line on standard error, without a traceback. A defect keeps its traceback and exits with 1.

    Parameters
    ----------
    resumes
        Whether the same command continues where it was interrupted, for the message.
    """
    import typer

    try:
        code = app(prog_name=name, standalone_mode=False)
    except (InputError, EngineUnavailable) as error:
        leave(name, str(error), UNAVAILABLE if isinstance(error, EngineUnavailable) else BAD_INPUT)
    except Unreachable as error:
        kept = "what is finished is kept, and the same command resumes; " if resumes else ""
        leave(name, f"{error}; {kept}check that the pictures can be read", UNREACHABLE)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        where = error.filename or "input or output"
        leave(
            name, f"{where}: {error.strerror or error}; check the path, its permissions and the free space", BAD_INPUT
        )
    except Exception as error:
        # typer's usage errors: they carry a message, and their class is not public.
        if not hasattr(error, "format_message"):
            raise
        leave(name, f"{_usage(error)} (see {name} --help)", BAD_INPUT)
    if code == INTERRUPTED:  # typer itself turns Ctrl-C into this code, without a message
        kept = "what is finished is kept, and the same command resumes" if resumes else "nothing is kept"
        leave(name, f"interrupted; {kept}", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def leave(name: str, message: str, code: int) -> NoReturn:
    """Print one line to standard error and exit."""
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    if code == INTERRUPTED:
        os._exit(code)  # a normal exit would wait for decoding threads
    sys.exit(code)


def _usage(error: Any) -> str:
    """Return typer's message, with the value that it leaves out where pydantic has checked it."""
    checked = getattr(error.__cause__, "errors", None)
    return str(error.format_message()) + (f", got {checked()[0]['input']!r}" if checked else "")
