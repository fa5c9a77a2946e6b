"""What happens in a long call, for programs that watch it: `--log-json`, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from .progress import Bar, Paced, Progress


@contextlib.contextmanager
def logged(shown: Progress, path: Path, command: str) -> Iterator[Progress]:
    """Yield a progress that is shown as before, and appends events to a file.

    Events are `start` and `end`, `line` (what is said), `progress` every half minute, and those of `Progress.event`.
    Each has `time`, in UTC; `end` has `error`, null where there is none. A process that is killed writes no `end`.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    with path.open("a", encoding="utf-8", buffering=1) as stream:
        log = EventLog(shown, stream)
        facts = {"version": version("gfo"), "host": socket.gethostname(), "process": os.getpid()}
        log.event("start", command=command, arguments=sys.argv[1:], **facts)
        try:
            yield log
        except BaseException as error:
            log.event("end", error=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            raise
        log.event("end", error=None)


class EventLog:
    """See `logged`."""

    def __init__(self, shown: Progress, stream: TextIO) -> None:
        self._shown, self._stream = shown, stream

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._shown.say(line)
        self._write("line", text=line)

    def event(self, name: str, **facts: object) -> None:
        """See `Progress.event`."""
        self._shown.event(name, **facts)
        self._write(name, **facts)

    def _write(self, name: str, **facts: object) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._stream.write(json.dumps({"time": time, "event": name, **facts}) + "\n")

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[Bar]:
        """See `Progress.task`."""

        def note(bar: Paced) -> None:
            self._write("progress", task=title, done=round(bar.done, 3), total=total, note=bar.note)

        with self._shown.task(title, total, done) as shown, Paced(total, done, note, shown) as bar:
            yield bar
