"""Commands of this project as sections of `gfo-bench device`, each in a process of its own.

A GPU that has failed once fails in whatever the same process does with it afterwards, and a library may crash or hang.
So no section takes the results of another with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..engine.progress import Progress
from ..engine.terminal import BAD_INPUT, FAILED, UNAVAILABLE
from ..export.errors import last_line
from ..export.files import ScratchFolder
from .rows import NO_ENGINE, BenchRow, Facts, KernelFacts, PairsFacts, SelfTestFacts, read_document

Row: TypeAlias = BenchRow[Facts]

CHECKS: Final = ("kernel-check", "memory-check", "self-test")
"""Stages whose rows say whether something is right, not how fast it is."""
CHECKER: Final = "compute-sanitizer"
# What the checker ends with where it has found something, unless the checked command then fails by itself. Calls that
# a library tries and that may fail are no errors.
_FOUND: Final = 99
_CHECK_OPTIONS: Final = (f"--error-exitcode={_FOUND}", "--report-api-errors=no")
# PyTorch keeps freed memory and takes large pieces, in which an access beside a small tensor is no error.
_UNCACHED: Final = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_INVALID: Final = re.compile(r"Invalid .*|ERROR SUMMARY: [1-9].*")
# Building a TensorRT plan takes minutes.
_LIMIT_SECONDS: Final = 1200.0


@dataclass(frozen=True)
class Section:
    """A command of this project and what it is for.

    Attributes
    ----------
    name
        Stage of the row that stands for it where it leaves none.
    command
        `gfo-bench` or `gfo-doctor`.
    words
        Its options.
    checked
        Whether it runs under `compute-sanitizer`.
    """

    name: str
    command: str
    words: Sequence[str]
    checked: bool = False


@dataclass(frozen=True)
class Found:
    """What sections left: rows, and facts for the environment."""

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def run_sections(sections: Sequence[Section], device: str, progress: Progress) -> Found:
    """Run sections one after another.

    Parameters
    ----------
    device
        `cpu` or `cuda`, for the rows.
    """
    found = Found()
    for section in sections:
        progress.say(f"{section.name}: {section.command} {' '.join(section.words)}")
        rows, facts = _run(section, device)
        found.rows.extend(rows)
        found.facts.update(facts)
        for row in rows:
            if row.passed is False:
                progress.say(f"{section.name}: WRONG, {row.reason}")
    return found


def _run(section: Section, device: str) -> tuple[list[Row], dict[str, Any]]:
    blank: Row = BenchRow(stage=section.name, engine=NO_ENGINE, unit="", device=device, available=False, facts=Facts())
    if section.checked:
        return [_memory_checked(section, replace(blank, engine=CHECKER))], {}
    with ScratchFolder() as folder:
        file = Path(folder) / "rows.json"
        words = ["--json"] if section.command == "gfo-doctor" else ["--json", str(file)]
        ended = _ended(section, words)
        if isinstance(ended, str):
            return [replace(blank, passed=False, reason=ended)], {}
        if ended.returncode in (0, FAILED, UNAVAILABLE):
            if section.command == "gfo-doctor" and (checks := _checks(ended.stdout)):
                return _self_tests(checks), {}
            if file.is_file():
                return _of_file(file)
    return [_without_rows(section, blank, ended)], {}


def _without_rows(section: Section, blank: Row, ended: subprocess.CompletedProcess[str]) -> Row:
    """Return the row of a section that ended without any."""
    said = last_line(ended.stderr).removeprefix(f"{section.command}: ") or "nothing was said"
    if ended.returncode in (BAD_INPUT, UNAVAILABLE):  # as a precision or a device that the engine lacks
        return replace(blank, reason=said)
    code = ended.returncode
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return replace(blank, passed=False, reason=f"{how}, {said}")


def _of_file(file: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a document, and its environment without what is of one command alone."""
    known = read_document(file)
    return known.rows, {key: value for key, value in known.environment.items() if key not in ("load_average", "seed")}


def _checks(out: str) -> list[dict[str, Any]]:
    """Return what `gfo-doctor --selftest --json` has found; nothing where it did not get there."""
    try:
        return json.loads(last_line(out))["selftest"]
    except (ValueError, KeyError):
        return []


def _self_tests(checks: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each check."""
    return [
        BenchRow(
            stage="self-test",
            engine=check["engine"],
            precision=check["precision"],
            unit="pairs/s",
            device=check["kind"],
            available=bool(check["passed"]),
            passed=check["passed"],
            reason=check["reason"],
            facts=SelfTestFacts(**{key: _finite(check[key]) for key in ("max_error", "allowed_error", "agreement")}),
        )
        for check in checks
    ]


def _finite(value: float | None) -> float | None:
    """Return None for what JSON has no number for: a NaN in the logits, which `passed` and `reason` tell."""
    return value if value is not None and math.isfinite(value) else None


def _memory_checked(section: Section, blank: Row) -> Row:
    tool = shutil.which(CHECKER)
    if tool is None:
        return replace(blank, reason=f"not run here: {CHECKER} is not on the PATH")
    ended = _ended(section, [], [tool, *_CHECK_OPTIONS], _UNCACHED)
    if isinstance(ended, str):
        return replace(blank, reason=f"{CHECKER}: {ended}")
    lines = [
        found[0].strip() for line in (ended.stdout + ended.stderr).splitlines() if (found := _INVALID.search(line))
    ]
    if lines or ended.returncode == _FOUND:
        return replace(blank, passed=False, reason=next(iter(lines), f"{CHECKER} found an error"))
    if ended.returncode == 0:
        return replace(blank, available=True, passed=True)
    return replace(blank, reason=f"{CHECKER}: exit code {ended.returncode}, {last_line(ended.stderr)}")


def _ended(
    section: Section, words: Sequence[str], tool: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | str:
    """Run a section's command to its end; return why it has none."""
    module = section.command.replace("gfo-", "gfo.bench.commands.")
    code = f"from {module} import main; main()"
    line = [*tool, sys.executable, "-c", code, *section.words, *words]
    with subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
        start_new_session=True,  # so that what it starts can be ended with it
    ) as process:
        try:
            out, err = process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"took more than {_LIMIT_SECONDS:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it has started may go on without it
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


# ---- what it comes to


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """Yield how many checks passed, what is wrong, and how near each engine's evaluation comes to its network."""
    judged = [row for row in rows if row.stage in CHECKS and row.passed is not None]
    wrong = [row for row in rows if row.passed is False]
    absent = sum(row.stage in CHECKS and row.passed is None for row in rows)
    right = sum(bool(row.passed) for row in judged)
    yield f"right: {right} of {len(judged)} checks; not run: {absent}; wrong: {len(wrong)} rows"
    for row in wrong:
        kernel = row.facts.kernel if isinstance(row.facts, KernelFacts) else None
        yield f"WRONG: {' '.join(filter(None, (row.stage, kernel, row.engine, row.precision)))}: {row.reason}"
    for row in rows:
        if row.stage == "end-to-end" and row.ratio and isinstance(row.facts, PairsFacts):
            plain = row.facts.to_plain
            beside = f", {plain.median:.2f} times the plain loop" if plain else ""
            how = f"{row.engine} {row.precision}"
            yield f"{how}: end-to-end is {row.ratio.median:.2f} of {row.ratio.to}{beside}"
