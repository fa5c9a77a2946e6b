"""Faults on purpose: commands that die or are refused at their k-th file operation, and files that are damaged.

    with Commands(folder) as commands:
        whole = commands.run(Job(["gfo-eval", ...], out))  # counts file operations below `out`
        for k in range(1, whole.operations + 1):
            commands.run(Job(["gfo-eval", ...], out, Fault("kill", k)))
            ...                                             # run it again; compare

Each command runs in a fork of one process that has imported everything, so that it takes a fraction of a second. File
operations are those of the C library (`faults.c`): Python's, zarr's and those of libraries in Rust alike.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
LONG = os.environ.get("GFO_FAULTS") == "long"
"""Whether everything is tried, thousands of times; otherwise a few tries, for every change."""
SECONDS = 120.0


@dataclass(frozen=True)
class Fault:
    """What happens at an operation, counted from 1.

    Attributes
    ----------
    kind
        `count` nothing; `kill` the process dies before it; `tear` half of a write is done, then it dies; `fail` it is
        refused; `fail on` it and all later ones are.
    at
        Which operation.
    error
        With `fail`: the error's number.
    reading
        Whether operations that read are meant, instead of those that change something.
    """

    kind: str = "count"
    at: int = 0
    error: int = errno.EIO
    reading: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative for a signal), what it wrote, and its file operations."""

    code: int
    out: str
    err: str
    operations: int

    @property
    def line(self) -> str:
        """The last line on standard error."""
        return (self.err.splitlines() or [""])[-1]


def compiler() -> str | None:
    """Return a C compiler; None where there is none, or no LD_PRELOAD."""
    return shutil.which("cc") if sys.platform == "linux" else None


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes
    ----------
    words
        The command's.
    below
        The folder whose file operations count.
    fault
        What happens at one of them.
    first
        Python code to run before.
    process
        The number that the process believes to have; 0 for its own.
    environment
        Variables to add.
    """

    words: Sequence[object]
    below: Path
    fault: Fault = field(default_factory=Fault)
    first: str = ""
    process: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


class Commands:
    """A process that runs commands in forks.

    Parameters
    ----------
    folder
        Takes its files.
    modules
        What it imports beside what training and evaluation need.
    """

    def __init__(self, folder: Path, modules: Sequence[str] = ()) -> None:
        self.folder = folder
        self._modules = modules
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Commands:
        library = self.folder / "faults.so"
        cc = compiler()
        assert cc is not None
        command = [cc, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
        subprocess.run(command, check=True)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(library), *self._modules],
            env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._pipes()[1].readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._pipes()[0].close()
        self._process.wait()
        self._pipes()[1].close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process is not None
        given, answered = self._process.stdin, self._process.stdout
        assert given is not None
        assert answered is not None
        return given, answered

    def run(self, job: Job) -> Outcome:
        """Run a command; one that takes longer than two minutes is killed, with code −999."""
        return self.run_together([job])[0]

    def run_together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run commands side by side."""
        numbers = range(len(jobs))
        files = [{name: self.folder / f"{name}-{number}" for name in ("out", "err", "count")} for number in numbers]
        for each in files:
            each["count"].unlink(missing_ok=True)
        given, answered = self._pipes()
        told = [_told(job, each) for job, each in zip(jobs, files, strict=True)]
        print(json.dumps(told), file=given, flush=True)
        codes = json.loads(answered.readline())
        return [_outcome(code, each) for code, each in zip(codes, files, strict=True)]


def _told(job: Job, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return a job for the server."""
    fault = job.fault
    return {
        **{name: str(path) for name, path in files.items()},
        "words": [str(word) for word in job.words],
        "below": str(job.below),
        "first": job.first,
        "process": job.process,
        "environment": dict(job.environment),
        "kind": fault.kind,
        "at": fault.at,
        "error": fault.error,
        "reading": int(fault.reading),
        "seconds": SECONDS,
    }


def _outcome(code: int, files: Mapping[str, Path]) -> Outcome:
    count = int(files["count"].read_text()) if files["count"].exists() else 0
    out, err = (files[name].read_text(errors="replace") for name in ("out", "err"))
    return Outcome(code, out, err, count)


# Damage: each takes the content of a file and gives another one; None removes the file.


def damaged(content: bytes, kind: str, draw: random.Random) -> bytes | None:
    """Return what damage of a kind in `DAMAGES` leaves of a file's content; None removes the file."""
    if kind == "remove":
        return None
    if kind == "empty" or not content:
        return b""
    place = draw.randrange(len(content))
    length = min(draw.choice((1, 8, 64, 512)), len(content) - place)
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if kind == "byte":
        return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "zero":
        return content[:place] + bytes(length) + content[place + length :]
    assert kind == "insert"
    return content[:place] + draw.randbytes(length) + content[place:]


DAMAGES = ("flip", "byte", "cut", "zero", "insert", "empty", "remove")


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def leftovers(folder: Path) -> list[Path]:
    """Return what a command should not leave: temporary files and folders, and checkpoints."""
    return sorted(path for path in folder.rglob("*") if path.name[0] == "." or path.suffix in (".partial", ".parts"))


def age(folder: Path) -> None:
    """Make what libraries have left look as if it had been there for a day: young files may be of a live process."""
    for path in folder.rglob("*.partial"):
        os.utime(path, (0, 0))


def sample(count: int, most: int) -> Iterator[int]:
    """Yield at most `most` of 1 … count, evenly spread, both ends among them."""
    if count <= most:
        yield from range(1, count + 1)
        return
    yield from sorted({1 + round(i * (count - 1) / (most - 1)) for i in range(most)})
