"""Folders of finished runs, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...export.errors import InputError
from ..evaluation.summary import FIX, STORE, SUMMARY_FILE, Summary, read_summary


@dataclass(frozen=True)
class RunFolder:
    """Folder that a finished `gfo-eval` wrote, with its summary."""

    directory: Path
    summary: Summary

    def name(self, class_id: int) -> str:
        """Return the class's name as the run has it, else its id."""
        return self.summary.class_names.get(str(class_id), str(class_id))


def read_run(directory: Path) -> RunFolder:
    """Read and check one RUN folder.

    Raises
    ------
    InputError
        The folder is missing or not a RUN, or its `summary.json` is unreadable or incomplete.
    """
    file = directory / SUMMARY_FILE
    if not directory.is_dir():
        raise InputError(f"{directory}: RUN folder not found; give a folder that gfo-eval --out wrote")
    if not file.is_file() and (directory / STORE).is_dir():
        raise InputError(f"{directory}: summary.json is missing, the evaluation did not end; rerun the same gfo-eval")
    if not file.is_file() and any(directory.glob(f"*/{SUMMARY_FILE}")):
        raise InputError(f"{directory}: not a RUN, it holds several; give these, as {directory}/*")
    if not file.is_file():
        raise InputError(f"{directory}: not a RUN, it has no summary.json; give a folder that gfo-eval --out wrote")
    try:
        summary = read_summary(file)
    except OSError as error:
        raise InputError(f"{file}: unreadable ({error}); {FIX}") from error
    if not summary.complete:
        raise InputError(f"{file}: complete is False; rerun the same gfo-eval to finish it")
    return RunFolder(directory, summary)
