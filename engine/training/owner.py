"""One training at a time on one bank: a lock on its checkpoint, with the owner's name and heartbeat."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from ...export.errors import InputError
from ...export.records import STRICT, load_record, save_record

LOCK, OWNER = "lock", "owner.json"
_BEAT, _SILENT = 10.0, 60.0  # seconds between heartbeats, and after the last one that an owner counts as gone


@dataclass(frozen=True)
class _Owner:
    """Contents of `owner.json`, whose time of change is the last heartbeat."""

    __pydantic_config__: ClassVar = STRICT

    host: str
    process: int


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Own a checkpoint's folder, which is created, for a `with` block.

    The lock ends with the process, however that ends. Where file systems are shared without locks, the heartbeat of an
    owner on another machine stands in for it.

    Raises
    ------
    InputError
        Another process owns it; the message says which.
    OSError
        The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: {_named(folder)} is at work on it; wait for it, or use another --out") from None
    ended = threading.Event()
    try:
        _refuse_distant_owner(folder)
        save_record(folder / OWNER, asdict(_Owner(socket.gethostname(), os.getpid())))
        threading.Thread(target=_beat, args=(folder / OWNER, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        if _owner(folder) == _Owner(socket.gethostname(), os.getpid()):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _refuse_distant_owner(folder: Path) -> None:
    """Raise `InputError` if a process on another machine has just shown that it lives: its lock is not seen here."""
    owner = _owner(folder)
    if owner is None or owner.host == socket.gethostname():
        return
    (folder / LOCK).touch()  # the file system's clock, not this machine's
    silent = (folder / LOCK).stat().st_mtime - (folder / OWNER).stat().st_mtime
    if silent < _SILENT:
        raise InputError(
            f"{folder}: {_named(folder)} was at work on it {max(0, silent):.0f} s ago; wait for it, use another --out, "
            f"or run the same command {_SILENT:.0f} s after it was stopped"
        )


def _owner(folder: Path) -> _Owner | None:
    try:
        return load_record(_Owner, folder / OWNER, "")
    except (InputError, OSError):
        return None


def _named(folder: Path) -> str:
    owner = _owner(folder)
    return "another gfo-train" if owner is None else f"gfo-train on {owner.host}, process {owner.process},"


def _beat(owner: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):  # missed, or removed: the next beat, or nobody, will tell
            os.utime(owner)
