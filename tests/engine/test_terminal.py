"""How commands end, and tables in terminals of any width."""

from __future__ import annotations

import errno
import io
from importlib import import_module
from typing import Any

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gfo.engine import terminal
from gfo.export import cache
from gfo.export.errors import EngineUnavailable, InputError
from gfo.export.optional import optional


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the exit code of a command that raises this."""

    def app(**_: Any) -> None:
        raise error

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        terminal.run(app, "gfo-x", resumes=False)  # type: ignore[arg-type]
    assert isinstance(left.value.code, int)
    return left.value.code


NO_MEMORY = "[enforce fail at alloc_cpu.cpp:124]\n DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("cuDNN: CUDNN_STATUS_ALLOC_FAILED"), 5, "not enough memory (cuDNN: CUDNN_STATUS_ALLOC_FAILED)"),
        (RuntimeError(NO_MEMORY), 5, "not enough memory (DefaultCPUAllocator: can't allocate memory: you tried to al"),
        (RuntimeError("can't start new thread"), 5, "not enough memory (can't start new thread); nothing is kept;"),
        (MemoryError(), 5, "not enough memory (MemoryError); nothing is kept"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "not enough memory ([Errno 12] Cannot allocate memory)"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 5, "(libtorch_cpu.so: failed to m"),
        (RuntimeError("Could not determine home directory."), 2, "HOME: a library finds no home folder"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "standard output or a file: No space left on device;"),
        (InputError("a\x1b[2J\n\udcff: bad"), 2, r"gfo-x: a\x1b[2J \udcff: bad"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error, monkeypatch) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("gfo-x: ")
    assert err.count("\n") == 1


def test_a_closed_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    of_rich = SystemExit(1)
    of_rich.__context__ = BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert ended(of_rich, monkeypatch) == 141
    assert capsys.readouterr() == ("", "")


def test_other_ends_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(SystemExit(7), monkeypatch) == 7
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError("a defect"), monkeypatch)


@pytest.mark.parametrize("given", ["", "~nobody-here/cache"])
def test_without_a_home_the_cache_must_be_named(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFO_CACHE", given)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(InputError, match="has no home folder here; set GFO_CACHE to a folder"):
        cache.cache_dir()


def test_a_library_that_does_not_load_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr("gfo.export.optional.import_module", broken)
    with pytest.raises(EngineUnavailable, match=r"x is there but cannot be loaded \(ImportError: libx.so: cannot open"):
        optional("x", "--engine x", "x")


# Tables


def printed(table: Table, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    terminal.print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_narrow_terminal_shows_lines_in_place_of_columns() -> None:
    table = Table(title="Title", caption="Caption", box=SIMPLE_HEAD)
    for name in ("model", "clean\nval", "matched", "unmatched"):
        table.add_column(name)
    table.add_row(Text("python:a:[b]"), "0.2778\n[0.000, 0.833]", "–", "0.3")
    table.add_row(Text("m"), "1", "2", "3")
    assert any("matched" in line and "unmatched" in line for line in printed(table, 60))
    assert printed(table, 40) == [
        *("Title", ""),
        *("model: python:a:[b]", "  clean val: 0.2778 [0.000, 0.833]", "  matched: –", "  unmatched: 0.3", ""),
        *("model: m", "  clean val: 1", "  matched: 2", "  unmatched: 3", ""),
        "Caption",
    ]
    assert printed(table, 20)[2:5] == ["model: python:a:[b]", "  clean val: 0.2778", "  [0.000, 0.833]"]


def test_a_console_is_never_too_narrow_to_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    for columns, width in (("10", 20), ("40", 40)):
        monkeypatch.setenv("COLUMNS", columns)
        assert terminal.console().width == width


@pytest.mark.parametrize("floor", ["engine", "bench"])
def test_every_command_goes_through_run(floor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"engine": ("train", "evaluate", "export", "report"), "bench": ("bench", "demo", "doctor")}[floor]
    ran = list[str]()
    monkeypatch.setattr(terminal, "run", lambda app, name, **_: ran.append(name))
    for name in names:
        import_module(f"gfo.{floor}.commands.{name}").main()
    assert ran == [f"gfo-{name.replace('evaluate', 'eval')}" for name in names]
