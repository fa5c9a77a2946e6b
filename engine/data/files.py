"""The bytes of pictures: files below a root folder, or members of WebDataset tar files below it.

A picture that is bad and one that cannot be reached are two things: bytes that no decoder takes are the picture's fault
and set it aside; a file that cannot be read (EIO, ESTALE, gone since it was listed) is the storage's, and ends the run.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...export.errors import InputError, Unreachable

# Bytes of a picture's file: the largest that Pillow takes, 179 million pixels of 64 bits without compression, has less.
_LARGEST = 2 << 30
_WAITS = (0.1, 1.0)  # seconds before the second and the third attempt
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class TooLarge(Exception):
    """A file that is too large to be a picture; it is not read."""


class Member(NamedTuple):
    """Place of a member's bytes in its tar file."""

    offset: int
    size: int


class PictureFiles:
    """Files below `root` by their relative path; `a.tar/name` is the member `name` of the tar file `a.tar`.

    The headers of a tar file are parsed once; then a member costs one positioned read, from any thread.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tars: dict[str, dict[str, Member]] = {}
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes:
        """Return the bytes of a picture.

        Raises
        ------
        TooLarge
            It is too large to be a picture's.
        OSError
            The file cannot be read, or its tar file is shorter than it was.
        """
        tar, name = _parts(path)
        if tar is None:
            return contents(self.root / path, _LARGEST)
        member = self._member(tar, name)
        _check_size(member.size, _LARGEST)
        with (self.root / tar).open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) < member.size:
            raise OSError(f"{path}: the tar file ends after {len(content)} of its {member.size} bytes")
        return content

    def fetch(self, path: str) -> bytes:
        """Return the bytes of a picture; storage that fails for a moment is asked again.

        Raises
        ------
        TooLarge
            It is too large to be a picture's.
        Unreachable
            It cannot be read at the third attempt either.
        """
        for wait in _WAITS:
            try:
                return self.read(path)
            except (OSError, MemoryError):
                time.sleep(wait)
        try:
            return self.read(path)
        except (OSError, MemoryError) as error:
            raise self.unreachable(path, error) from error

    def unreachable(self, path: str, error: BaseException) -> Unreachable:
        """Return what to raise for a picture that cannot be read for this reason."""
        return Unreachable(f"{self.root / path}: cannot be read now ({self._reason(error)})")

    def identity(self, path: str) -> tuple[int, int, int]:
        """Return what differs once a picture has changed: size, time of change in nanoseconds, place in its tar file.

        All three are −1 for a picture that is not found.
        """
        tar, name = _parts(path)
        try:
            status = (self.root / (tar or path)).stat()
            member = self._member(tar, name) if tar is not None else Member(0, status.st_size)
        except OSError:
            return -1, -1, -1
        return member.size, status.st_mtime_ns, member.offset

    def _reason(self, error: BaseException) -> str:
        """Return an error in one line, without the path of the root."""
        text = f"{type(error).__name__}: {error}".replace(f"{self.root}/", "").replace(str(self.root), "")
        return text.splitlines()[0]

    def stamp(self, path: str) -> int:
        """Return `identity` as one number, int64; 0 for a picture that is not found."""
        identity = self.identity(path)
        if identity[0] < 0:
            return 0
        digest = hashlib.sha256(repr(identity).encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True) or 1

    def members(self, tar: str) -> Mapping[str, Member]:
        """Return the members of a tar file by name, in its order; raises as `tar_members`."""
        with self._lock:
            if tar not in self._tars:
                self._tars[tar] = tar_members(self.root / tar)
            return self._tars[tar]

    def _member(self, tar: str, name: str) -> Member:
        try:
            return self.members(tar)[name]
        except InputError as error:
            raise OSError(str(error)) from error
        except KeyError:
            raise FileNotFoundError(f"{tar}: has no member {name}") from None


def contents(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file; a pipe would wait for a writer for ever.

    Raises
    ------
    TooLarge
        They are more than `most`, and are not read.
    OSError
        It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        _check_size(status.st_size, most)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise TooLarge(f"{size / 1e6:,.1f} MB, over the limit of {most / 1e6:,.1f} MB")


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8; other bytes in names are surrogates in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _parts(path: str) -> tuple[str | None, str]:
    """Split `a/b.tar/c/d.jpg` into the tar file `a/b.tar` and its member `c/d.jpg`."""
    head, separator, name = path.partition(".tar/")
    return (f"{head}.tar", name) if separator else (None, path)


def tar_members(path: Path) -> dict[str, Member]:
    """Return the regular files of a tar file by name, in its order.

    Raises
    ------
    InputError
        The tar file is truncated, damaged or compressed, or holds a name twice, a name that is not UTF-8, or a link or
        another thing that is neither a plain file nor a folder.
    OSError
        It cannot be read.
    """
    members: dict[str, Member] = {}
    size = path.stat().st_size
    last = "its beginning"
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.size < 0 or info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"{info.name} goes on beyond the end of the file")
                if not info.isdir():
                    _check_member(path, info, members)
                    members[info.name] = Member(info.offset_data, info.size)
                last = info.name
            end = tar.offset
    except (InputError, OSError):
        raise
    except Exception as error:  # tarfile's own kinds, and whatever its parsing of headers meets
        raise InputError(_broken(path, last, len(members), str(error))) from error
    with path.open("rb") as file:
        # tarfile takes the end of the file for the end of the archive; the format ends with a block of zeros.
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(_broken(path, last, len(members), "it has no end mark"))
    return members


def _check_member(path: Path, info: tarfile.TarInfo, members: Mapping[str, Member]) -> None:
    """Refuse what is no picture's whole file, or has a name that is not one picture's."""
    name = info.name
    if not is_text(name):
        raise InputError(f"{path}: member {name!r} is not named in UTF-8; write the tar file again")
    if info.issparse() or not info.isreg():
        raise InputError(
            f"{path}: member {name} is a link, sparse or no plain file; write the tar file again with the files "
            "themselves (tar --dereference --hard-dereference)"
        )
    if name in members:
        raise InputError(f"{path}: holds {name} twice; write the tar file again with one name per picture")


def _broken(path: Path, last: str, whole: int, why: str) -> str:
    return (
        f"{path}: not an uncompressed tar file, or truncated after {last} ({whole} members are complete; {why}); fetch "
        "it again, or move it away to continue without it"
    )
