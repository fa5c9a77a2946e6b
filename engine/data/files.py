"""Where the bytes of a picture are: a file below ROOT, or a member of a tar shard below it (WebDataset)."""

from __future__ import annotations

import tarfile
import threading
from pathlib import Path
from typing import NamedTuple

from ...export.errors import InputError


class Member(NamedTuple):
    """Where a member's bytes are in its shard."""

    offset: int
    size: int


class PictureFiles:
    """Reads files below `root` by their relative path; `shard.tar/name` is the member `name` of that shard.

    A shard's headers are read once; then a member costs one positioned read, from any thread.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shards: dict[str, dict[str, Member]] = {}
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes:
        """The bytes of a picture.

        Raises
        ------
        OSError
            It cannot be read, or its shard is shorter than it was.
        """
        shard, name = _split(path)
        if shard is None:
            return (self.root / path).read_bytes()
        member = self._member(shard, name)
        with (self.root / shard).open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) < member.size:
            raise OSError(f"{path}: the shard ends after {len(content)} of its {member.size} bytes")
        return content

    def identity(self, path: str) -> tuple[int, int, int]:
        """Size, time of change in nanoseconds and place in its shard: what is another where a picture has changed.

        −1 where it cannot be found.
        """
        shard, name = _split(path)
        try:
            status = (self.root / (shard or path)).stat()
            member = self._member(shard, name) if shard is not None else Member(0, status.st_size)
        except OSError:
            return -1, -1, -1
        return member.size, status.st_mtime_ns, member.offset

    def reason(self, error: OSError) -> str:
        """An error of `read` in one line, without the root's path."""
        text = f"{type(error).__name__}: {error}".replace(f"{self.root}/", "").replace(str(self.root), "")
        return text.splitlines()[0]

    def _member(self, shard: str, name: str) -> Member:
        with self._lock:
            if shard not in self._shards:
                try:
                    self._shards[shard] = shard_members(self.root / shard)
                except InputError as error:
                    raise OSError(str(error)) from error
        try:
            return self._shards[shard][name]
        except KeyError:
            raise FileNotFoundError(f"{shard}: has no member {name}") from None


def _split(path: str) -> tuple[str | None, str]:
    """`a/b.tar/c/d.jpg` is member `c/d.jpg` of `a/b.tar`."""
    head, separator, name = path.partition(".tar/")
    return (f"{head}.tar", name) if separator else (None, path)


def shard_members(path: Path) -> dict[str, Member]:
    """The regular files in a tar shard, in its order.

    Raises
    ------
    InputError
        The shard is cut off, damaged, compressed, or holds a name twice.
    OSError
        It cannot be read.
    """
    members: dict[str, Member] = {}
    size = path.stat().st_size
    last = "its beginning"
    try:
        with tarfile.open(path, "r:") as shard:
            for info in shard:
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"{info.name} goes on beyond the end of the file")
                if not info.isreg():
                    continue
                if info.name in members:
                    raise InputError(
                        f"{path}: holds {info.name} twice; write the shard again with a name for each picture"
                    )
                members[info.name] = Member(info.offset_data, info.size)
                last = info.name
            end = shard.offset
    except (tarfile.TarError, EOFError) as error:
        raise InputError(_broken(path, last, len(members), str(error))) from error
    with path.open("rb") as file:
        # tarfile takes the end of the file for the end of the archive; the format has a block of zeros there.
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(_broken(path, last, len(members), "it has no end mark"))
    return members


def _broken(path: Path, last: str, whole: int, why: str) -> str:
    return (
        f"{path}: not an uncompressed tar shard, or cut off after {last} ({whole} members are whole; {why}); fetch it "
        "again, or move it away to go on without it"
    )
