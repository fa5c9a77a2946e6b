"""Progress of long calls: lines, and bars with a running figure.

The Python API is silent unless a `Progress` is passed; the commands use rich.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, Protocol, Self

from .names import visible

_TELL_SECONDS: Final = 30.0


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

    def event(self, name: str, **facts: object) -> None:
        """Note that something has happened, for programs that watch: `block`, `quarantine`, `worker lost`.

        Facts are what JSON can hold.
        """
        ...

    def task(self, title: str, total: float, done: float = 0) -> contextlib.AbstractContextManager[Bar]:
        """Open a bar for `total` units, of which `done` are already done."""
        ...


class Silent:
    """Progress that shows nothing. Subclasses override what they need."""

    def say(self, line: str) -> None:
        """See `Progress.say`."""

    def event(self, name: str, **facts: object) -> None:
        """See `Progress.event`."""

    def advance(self, amount: float, note: str = "") -> None:
        """See `Bar.advance`."""

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[Bar]:
        """See `Progress.task`."""
        yield self


no_progress = Silent()


class Paced:
    """A bar that tells how far it is every half minute, and at its end.

    Attributes
    ----------
    done, note
        What is done of `total`, and the last note.
    """

    def __init__(self, total: float, done: float, tell: Callable[[Paced], None], inner: Bar = no_progress) -> None:
        self.total, self.done, self.note = total, done, ""
        self._tell, self._inner, self._first = tell, inner, done
        self._started = self._told = time.monotonic()

    def advance(self, amount: float, note: str = "") -> None:
        """See `Bar.advance`."""
        self._inner.advance(amount, note)
        self.done += amount
        self.note = note or self.note
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            self._tell(self)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None where nothing is done yet."""
        own = self.done - self._first
        return (time.monotonic() - self._started) / own * (self.total - self.done) if own > 0 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._tell(self)


class TerminalProgress:
    """Lines and bars of rich on standard error; standard output holds results only.

    Where that is no terminal, a bar is a line every half minute.
    """

    def __init__(self) -> None:
        from .terminal import console

        self._console = console(stderr=True)

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._console.print(visible(line), soft_wrap=True, markup=False)

    def event(self, name: str, **facts: object) -> None:
        """See `Progress.event`; a terminal shows lines alone."""

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[Bar]:
        """See `Progress.task`."""
        if not self._console.is_terminal:
            with Paced(total, done, lambda bar: self.say(_described(title, bar))) as bar:
                yield bar
            return
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


def _described(title: str, bar: Paced) -> str:
    """Return a line such as `all pairs: 40%, 0:10:21 left, 77 pairs/s`."""
    parts = [f"{bar.done / bar.total:.0%}" if bar.total else "100%"]
    if bar.seconds_left:
        parts.append(f"{timedelta(seconds=round(bar.seconds_left))} left")
    return f"{title}: {', '.join([*parts, *filter(None, [bar.note])])}"
