"""The lifecycle that every suite shares: check, measure, print a table and one line of JSON, exit code."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

import typer

from ...engine import terminal
from ...engine.commands import options
from ...export.errors import InputError
from ..rows import BenchRow, Facts, document
from ..table import print_environment, print_rows

if TYPE_CHECKING:
    from rich.console import Console


MODEL, DATA, ENGINE, MEASUREMENT, OUTPUT = "Model", "Data", "Engine", "Measurement", "Output"
HEADINGS = (MODEL, DATA, ENGINE, MEASUREMENT, OUTPUT)
"""Headings of `--help`, in order."""

R = TypeVar("R")


@dataclass(frozen=True)
class Measured(Generic[R]):
    """What a suite found.

    Attributes
    ----------
    facts
        Facts that join the environment in the document, as plain JSON types.
    seed
        Seed of what was drawn; None where nothing is random.
    """

    rows: Sequence[R]
    facts: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Suite(ABC, Generic[R]):
    """A benchmark whose fields are the options of its command, and whose docstring is the command's help."""

    panel: ClassVar[str] = MEASUREMENT
    """Heading of the options that name none."""
    facts: ClassVar[Mapping[str, type[Facts]]] = {}
    """The class of its rows' facts by stage; a stage that is not listed has none of its own."""

    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the last line of the output.", rich_help_panel=OUTPUT)
    ] = None

    def check(self) -> None:
        """Raise `InputError` for whatever can be known before anything is opened."""
        refuse_folder("--json", self.json_file)

    @abstractmethod
    def measure(self) -> Measured[R]:
        """Measure, with progress on standard error."""

    @abstractmethod
    def show(self, measured: Measured[R], environment: Mapping[str, Any]) -> None:
        """Print a table; `environment` is the document's."""

    @abstractmethod
    def exit_code(self, rows: Sequence[R]) -> int:
        """Return the command's exit code."""

    def run(self) -> int:
        """Check, measure, print the table and the line of JSON, and return the exit code."""
        from ..environment import load_average

        self.check()
        with to_be_written(self.json_file) as partial:
            load = load_average()
            measured = self.measure()
            seed = {} if measured.seed is None else {"seed": measured.seed}
            known = document(measured.rows, **measured.facts, load_average=load, **seed)
            self.show(measured, known["environment"])
            line = json.dumps(known, allow_nan=False)
            print(line)
            if partial is not None:
                partial.write_text(f"{line}\n")
        return self.exit_code(measured.rows)


@dataclass(frozen=True, kw_only=True)
class TableSuite(Suite[BenchRow[Facts]]):
    """A suite whose rows are printed as a table; what is wrong ends its run, so that its exit code is 0."""

    title: ClassVar[str]

    def notes(self, measured: Measured[BenchRow[Facts]]) -> Iterable[str]:
        """Return lines to print above the table."""
        return ()

    def show(self, measured: Measured[BenchRow[Facts]], environment: Mapping[str, Any]) -> None:
        """Print the machine, the notes and the table."""
        shown = terminal.console()
        print_environment(environment, shown)
        print_lines(self.notes(measured), shown)
        print_rows(measured.rows, self.title, shown)

    def exit_code(self, rows: Sequence[BenchRow[Facts]]) -> int:
        """See `Suite.exit_code`."""
        return 0


@dataclass(frozen=True, kw_only=True)
class TimedSuite(TableSuite):
    """A suite of rates: exit code 4 if a result is wrong, 3 if nothing could run."""

    title: ClassVar[str] = "Median rates; ratios are of medians, with a 95% interval over rounds"

    seconds: Annotated[
        float,
        typer.Option(
            help="Time for each set that takes turns, as an engine at a precision; slow networks take longer.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = 20.0

    def check(self) -> None:
        """See `Suite.check`."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"--seconds {self.seconds}: expected a number above 0")
        super().check()

    def exit_code(self, rows: Sequence[BenchRow[Facts]]) -> int:
        """See `Suite.exit_code`."""
        if any(row.passed is False for row in rows):
            return terminal.FAILED
        return 0 if any(row.available for row in rows) else terminal.UNAVAILABLE


# ---- files


def refuse_folder(option: str, path: Path | None) -> None:
    """Raise `InputError` where a file to write is a folder."""
    if path is not None and path.is_dir():
        raise InputError(f"{option} {path}: is a folder; name a file")


@contextlib.contextmanager
def to_be_written(path: Path | None) -> Iterator[Path | None]:
    """Yield where to write a file that is moved to `path` at the end.

    It is created at once, so that a path that cannot be written is known before the work.
    """
    from ...export.files import atomic_path

    if path is None:
        yield None
        return
    with atomic_path(path) as partial:
        partial.touch()
        yield partial


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, markup=False)


# ---- the command


def parameters(suite: type[Suite[Any]]) -> list[inspect.Parameter]:
    """Return the options of a suite as a function's parameters, heading by heading."""
    return sorted(options.options_of(suite), key=_heading)


def _heading(parameter: inspect.Parameter) -> int:
    (option,) = parameter.annotation.__metadata__
    heading = option.rich_help_panel
    return HEADINGS.index(heading) if heading in HEADINGS else len(HEADINGS)


def command(suite: type[Suite[Any]]) -> Callable[..., None]:
    """Return the function from which typer reads a suite's options, and which runs it."""

    def call(**given: Any) -> None:
        raise typer.Exit(suite(**given).run())

    return options.with_signature(call, parameters(suite))
