"""Progress of long calls: lines, and bars with a running figure.

The Python API is silent unless a `Progress` is passed; the commands use rich.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from .names import visible


class Bar(Protocol):
    """One running task."""

    def advance(self, amount: float, note: str = "") -> None:
        """Add `amount` to what is done; show `note` beside the bar."""
        ...


class Progress(Protocol):
    """Where progress goes."""

    def say(self, line: str) -> None:
        """Show one line."""
        ...

    def task(self, title: str, total: float, done: float = 0) -> contextlib.AbstractContextManager[Bar]:
        """Open a bar for `total` units, of which `done` are already done."""
        ...


class _Silent:
    def say(self, line: str) -> None:
        pass

    def advance(self, amount: float, note: str = "") -> None:
        pass

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[Bar]:
        yield self


no_progress: Progress = _Silent()


class TerminalProgress:
    """Lines and bars of rich on standard error; standard output holds results only."""

    def __init__(self) -> None:
        from .terminal import console

        self._console = console(stderr=True)

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._console.print(visible(line), soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[Bar]:
        """See `Progress.task`."""
        from rich import progress as rich_progress

        columns = [
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[note]}", markup=False),
        ]
        with rich_progress.Progress(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=total, note="")
            bars.update(task, completed=done)

            class _Bar:
                def advance(self, amount: float, note: str = "") -> None:
                    bars.update(task, advance=amount)
                    if note:
                        bars.update(task, note=note)

            yield _Bar()
