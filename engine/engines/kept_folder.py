"""A folder of the cache that a library fills by itself, shared by processes that know nothing of each other.

Every process works in a copy of its own, checks that copy, and puts a whole folder in place of the kept one: nobody
writes into a folder that another reads. A process that loses the race loses what it kept, never its work.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...export.files import atomic_folder
from .graphs import drop_damaged, note_files


@contextlib.contextmanager
def private_copy(kept: Path, private: Path) -> Iterator[Path]:
    """Yield the folder `private` with the files of `kept`, if those are whole; at the end keep what has changed.

    Nothing is kept where the block raises.

    Raises
    ------
    OSError
        A folder cannot be written; the error names it.
    """
    with contextlib.suppress(OSError):  # not there, or just being replaced: then the copy is not whole
        shutil.copytree(kept, private)
    drop_damaged(private)
    private.mkdir(exist_ok=True)
    before = _contents(private)
    yield private
    if _contents(private) == before:
        return
    note_files(private)
    shutil.rmtree(kept, ignore_errors=True)
    with atomic_folder(kept, accept=kept.is_dir) as partial:
        shutil.copytree(private, partial, dirs_exist_ok=True)


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}
