"""The terminal: exit codes, errors in one line, and the width of what is printed."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..export.errors import NO_GPU_MEMORY, EngineUnavailable, InputError, Unreachable
from . import streams
from .names import visible

if TYPE_CHECKING:
    import typer
    from rich.console import Console
    from rich.table import Column, Table

BAD_INPUT: Final = 2
UNAVAILABLE: Final = 3
FAILED: Final = 4
"""A check failed: parity, the self-test, or a benchmark's comparison."""
UNREACHABLE: Final = 5
"""Storage failed on the way; what is finished is kept."""
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
"""What a shell calls the end by SIGPIPE: nobody reads the output any more."""

_FILE_WIDTH: Final = 200
_NARROWEST: Final = 20  # columns
_READABLE: Final = 14  # characters of a word that may be cut into pieces no shorter
# What libraries say, in errors of their own, for a lack of memory; a thread needs memory for its stack.
_MEMORY: Final = re.compile(
    "(not enough|out of|cannot allocate|can't allocate) memory|bad.?alloc|can't start new thread|failed to map segment"
    f"|{NO_GPU_MEMORY}",
    re.IGNORECASE,
)
# What PyTorch, SciPy and ONNX Runtime map while they are imported, MiB: with less of it they hang or abort (measured on
# 2 cores, 4,200 fail and 4,400 serve; threads of more cores take more).
_ADDRESS_SPACE: Final = 4400
_HOME: Final = re.compile("determine home|uid not found")  # of pathlib and of pwd


def console(*, stderr: bool = False, width: int = _FILE_WIDTH) -> Console:
    """Return a console as wide as the terminal; `width` columns for a file or a pipe, which has no width of its own."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    if found.is_terminal and found.width >= _NARROWEST:
        return found
    return Console(stderr=stderr, highlight=False, width=_NARROWEST if found.is_terminal else width)


def print_table(shown: Console, table: Table) -> None:
    """Print a table; in a terminal too narrow for its columns, a line for each cell."""
    from rich.padding import Padding
    from rich.text import Text

    _, right, _, left = table.padding
    between = 1 + (max(left, right) if table.collapse_padding else left + right)
    if sum(between + _longest_word(column) for column in table.columns) <= shown.width:
        shown.print(table)
        return
    shown.print(table.title, markup=False)
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        shown.print()
        for i, (head, cell) in enumerate(zip(heads, cells, strict=True)):
            shown.print(Padding(Text.assemble(f"{head}: ", str(cell).replace("\n", " ")), (0, 0, 0, 2 * bool(i))))
    shown.print("", *filter(None, [table.caption]), sep="\n", markup=False)


def _longest_word(column: Column) -> int:
    """Return the width below which a column's words are cut, very long ones into pieces too short to read."""
    from rich.text import Text

    words = (word for cell in (column.header, *column.cells) for word in str(cell).split())
    return max((min(Text(word).cell_len, _READABLE) for word in words), default=0)


def run(app: typer.Typer, name: str, *, resumes: bool = True) -> None:
    """Run a command and exit with a code of `docs/reference/exit-codes.md`, or with the command's own.

    Bad input is one line on standard error, without a traceback. A defect keeps its traceback and exits with 1.

    Parameters
    ----------
    resumes
        Whether the same command continues where it was interrupted, for the message.
    """
    import typer

    kept = "what is finished is kept, and the same command resumes" if resumes else "nothing is kept"
    streams.prepare()
    if "--help" not in sys.argv:
        _refuse_small_limit(name)
    try:
        code = app(prog_name=name, standalone_mode=False)
    except (InputError, EngineUnavailable) as error:
        leave(name, str(error), UNAVAILABLE if isinstance(error, EngineUnavailable) else BAD_INPUT)
    except Unreachable as error:
        leave(
            name, f"{error}; {kept + '; ' if resumes else ''}check the pictures' storage, and the memory", UNREACHABLE
        )
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = PIPE_CLOSED  # rich and typer end like this; theirs is the code of a defect
    except Exception as error:  # noqa: BLE001 (raised again, unless a line can say what is wrong)
        code = _failed(name, error, kept)
    if code == INTERRUPTED:  # typer itself turns Ctrl-C into this code, without a message
        leave(name, f"interrupted; {kept}", INTERRUPTED, at_once=True)
    if found := streams.lost():
        _leave_unwritten(name, *found)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_small_limit(name: str) -> None:
    """Exit with a line where the limit on the address space (`ulimit -v`) is too low to import the libraries."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < _ADDRESS_SPACE << 20:
        why = f"not enough memory: the limit on the address space (ulimit -v) is {most >> 10} KiB"
        leave(name, f"{why}, the libraries need {_ADDRESS_SPACE << 10}; raise it", UNREACHABLE)


def _failed(name: str, error: Exception, kept: str) -> NoReturn:
    """Exit with a line about a stream, the memory, a file or the usage; raise another error again."""
    said = next((line.strip() for line in str(error).splitlines() if _MEMORY.search(line)), None)
    if said is not None or isinstance(error, MemoryError):
        why = f"not enough memory ({said or type(error).__name__})"
        leave(name, f"{why}; {kept}; free some, or raise its limit", UNREACHABLE, at_once=True)
    if _HOME.search(str(error)):
        leave(name, f"HOME: a library finds no home folder ({error}); set HOME to a folder", BAD_INPUT)
    if isinstance(error, OSError):
        where = error.filename or "standard output or a file"
        said = f"{where}: {error.strerror or error}; check the path, its permissions and the free space"
        leave(name, said, BAD_INPUT)
    if hasattr(error, "format_message"):  # typer's usage errors; their class is not public
        leave(name, f"{_usage(error)} (see {name} --help)", BAD_INPUT)
    raise error


def _leave_unwritten(name: str, stream: str, error: OSError) -> NoReturn:
    """Exit where a stream cannot be written: quietly where the other end of a pipe has had enough."""
    if isinstance(error, BrokenPipeError):
        sys.exit(PIPE_CLOSED)
    leave(name, f"{stream}: cannot be written ({error.strerror}); send it elsewhere", BAD_INPUT)


def leave(name: str, message: str, code: int, *, at_once: bool = False) -> NoReturn:
    """Print one line to standard error and exit; `at_once` waits for no thread, and gives libraries no last word."""
    with contextlib.suppress(OSError):
        print(f"{name}: {visible(' '.join(message.split()))}", file=sys.stderr)
    streams.lost()
    if at_once:
        os._exit(code)
    sys.exit(code)


def _usage(error: Any) -> str:
    """Return typer's message, with the value that it leaves out where pydantic has checked it."""
    checked = getattr(error.__cause__, "errors", None)
    return str(error.format_message()) + (f", got {checked()[0]['input']!r}" if checked else "")
