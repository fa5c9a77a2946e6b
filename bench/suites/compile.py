"""Every kernel compiled ahead of time, without a GPU: `gfo-bench compile`.

A spill, or a variant that does not compile, is a failure; see `kernels.compile` for what the columns are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from ...engine.names import terminal_cell
from ...engine.terminal import console, print_table
from ...export.errors import EngineUnavailable, InputError
from ...kernels.compile import COLUMNS, TARGETS, CompileRow, compile_all
from .base import ENGINE, Measured, Suite
from .options import names

_FAILED = 1
_FILE_WIDTH = 160
_TEXT = ("kernel", "variant", "target", "per")


@dataclass(frozen=True, kw_only=True)
class Compile(Suite[CompileRow]):
    """Compile every kernel in every variant, without a GPU; exit code 1 if one fails or spills.

    A table, then one line of JSON.
    """

    targets: Annotated[
        str,
        typer.Option(
            help=f"GPU architectures: some of {', '.join(TARGETS)}, separated by commas.", rich_help_panel=ENGINE
        ),
    ] = ",".join(TARGETS)

    def check(self) -> None:
        """See `Suite.check`."""
        names("--targets", self.targets, TARGETS)
        super().check()

    def measure(self) -> Measured[CompileRow]:
        """Compile."""
        from ...kernels._triton import HAVE_TRITON, INTERPRETED

        if not HAVE_TRITON:
            raise EngineUnavailable("Triton is not installed; pip install triton, on a system that it supports")
        if INTERPRETED:
            raise InputError("TRITON_INTERPRET is set, so nothing would be compiled; unset it")
        return Measured(_compile_with_bar(names("--targets", self.targets, TARGETS)))

    def show(self, measured: Measured[CompileRow], environment: Mapping[str, Any]) -> None:
        """Print the table and the failures."""
        from ...kernels._triton import triton

        print_compiled(measured.rows, f"Kernels, compiled by Triton {triton.__version__}")
        bad = [row for row in measured.rows if row.complaint]
        print(f"{len(measured.rows)} variants, {len(bad)} failed or spilled")
        for row in bad:
            print(f"{row.kernel}, {row.variant}, {row.target}: {row.complaint}", file=sys.stderr)

    def exit_code(self, rows: Sequence[CompileRow]) -> int:
        """See `Suite.exit_code`: 1 if a kernel does not compile, or spills."""
        return _FAILED if any(row.complaint for row in rows) else 0


def _compile_with_bar(targets: Sequence[str]) -> list[CompileRow]:
    """Compile with a bar that only a terminal shows, and that disappears."""
    from rich.progress import Progress

    shown = console(stderr=True)
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("compiling")
        return compile_all(targets, lambda done, total: bar.update(task, completed=done, total=total))


def print_compiled(rows: Sequence[CompileRow], title: str) -> None:
    """Print a row for each variant and target."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, overflow="fold", justify="left" if name in _TEXT else "right")
    for row in rows:
        cells = asdict(row)
        shown = ("FAILED" if name == "registers" and row.error else _cell(cells[name]) for name in COLUMNS)
        table.add_row(*map(terminal_cell, shown))
    print_table(console(width=_FILE_WIDTH), table)


def _cell(value: str | int | list[int] | None) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else value or ""
