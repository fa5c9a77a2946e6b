"""Decoded pictures on disk: one file for a list of pictures, filled block by block.

A folder of the cache holds `pixels.u8`, raw uint8 [N, S, S, 3]; `sums.u32`, a checksum per picture, 0 until its pixels
are on disk; and `index.json`, which describes the list. The name of the folder is a hash of the files' paths, sizes and
times, of the preprocessing, of the decoder and of the kind of device that decodes, other than the CPU: a file that
changes leads to another folder.

Several writers may share a folder, and any of them may be killed: pixels are written before their checksum, and all
writers write the same pixels. Whatever else happens to the files, a picture whose checksum does not hold is decoded
again. They are read, not mapped into memory: a map of a file that another process shortens kills this one.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...export.cache import cache_dir, key
from ...export.errors import InputError
from ...export.files import atomic_folder, naming
from ...export.preprocessing import Preprocessing
from .files import PictureFiles
from .pillow import read_picture
from .source import Block, Decoder, PictureSource, as_ranges

_PIXELS, _SUMS, _INDEX = "pixels.u8", "sums.u32", "index.json"
_SUM = np.dtype("<u4")
T = TypeVar("T")


class DecodedCache(PictureSource):
    """A source that decodes the pictures of another source once and then reads them from the cache folder.

    Unreadable pictures are not kept; the next run tries them again.
    """

    def __init__(self, source: Decoder, files: PictureFiles, preprocessing: Preprocessing) -> None:
        self.source = source
        self.files = files
        self.preprocessing = preprocessing
        self.name = source.name
        self.how = f"{source.how}, decoded pictures kept in {cache_dir('pictures')}"

    def blocks(self, paths: Sequence[str], parts: int | Sequence[range]) -> Iterator[Block]:
        """See `PictureSource.blocks`.

        Raises
        ------
        InputError
            The disk has no room for them.
        OSError
            The folder cannot be written.
        """
        ranges = as_ranges(parts, len(paths))
        if not ranges:
            return
        with _Kept(self._folder(paths), len(paths), self.preprocessing.input_size) as kept:
            missing = {part.start: kept.missing(part) for part in ranges}
            wanted = ([paths[i] for i in missing[part.start]] for part in ranges if missing[part.start])
            with (
                closing(self.source.read(wanted)) as decoded,  # type: ignore[type-var]
                ThreadPoolExecutor(1, thread_name_prefix="gfo-decode") as reader,
            ):

                def read(part: range) -> tuple[Tensor, list[int]]:
                    images = kept.read(part)
                    return images, kept.damaged(part.start, images, missing[part.start])

                for part, reading in _one_ahead(reader, read, ranges):
                    start = part.start
                    (images, damaged), quarantined = reading.result(), dict[int, str]()
                    if missing[start]:
                        pictures = next(decoded)
                        images[[i - start for i in missing[start]]] = pictures.images.cpu()
                        quarantined = {missing[start][i] - start: why for i, why in pictures.quarantined.items()}
                    for i in damaged:
                        found = read_picture(self.files, paths[i], self.preprocessing)
                        if isinstance(found, str):
                            images[i - start], quarantined[i - start] = 0, found
                        else:
                            images[i - start] = torch.from_numpy(np.array(found))
                    kept.write(start, images, [i for i in [*missing[start], *damaged] if i - start not in quarantined])
                    yield Block(start, images, quarantined)

    def _folder(self, paths: Sequence[str]) -> Path:
        """Return the folder of this list of pictures; create it if it is new."""
        p = self.preprocessing
        facts = {
            "root": str(self.files.root.resolve()),
            "decoder": self.name,
            "geometry": [p.input_size, p.resize, p.interpolation],
            "pictures": [[path, *self.files.identity(path)] for path in paths],
        }
        if self.source.decodes_on != "cpu":  # a GPU's pixels may differ by some grey levels
            facts["device"] = self.source.decodes_on
        folder = cache_dir("pictures", key(facts))
        size = len(paths) * p.input_size**2 * 3
        with naming(folder):
            if not _whole(folder, size, len(paths)):
                _make(folder, size, facts)
        return folder


def _one_ahead(
    reader: Executor, read: Callable[[range], T], parts: Sequence[range]
) -> Iterator[tuple[range, Future[T]]]:
    """Yield each part with its `read`; the next one is read meanwhile."""
    ahead = reader.submit(read, parts[0])
    for part, after in zip_longest(parts, parts[1:]):
        now = ahead
        if after is not None:
            ahead = reader.submit(read, after)
        yield part, now


def _whole(folder: Path, size: int, count: int) -> bool:
    """Return whether the files are there, at their full size; a link in their place is not one of them."""
    try:
        at, pixels, sums = (place.lstat() for place in (folder, folder / _PIXELS, folder / _SUMS))
    except OSError:
        return False
    plain = stat.S_ISDIR(at.st_mode) and stat.S_ISREG(pixels.st_mode) and stat.S_ISREG(sums.st_mode)
    return plain and (pixels.st_size, sums.st_size) == (size, count * _SUM.itemsize)


def _make(folder: Path, size: int, facts: dict[str, Any]) -> None:
    """Create an empty folder: sparse files of their full size, moved into place at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        raise InputError(
            f"--decoded-cache: {len(facts['pictures'])} pictures take {size / 1e9:.1f} GB, {folder.parent} has "
            f"{free / 1e9:.1f} GB free; set GFO_CACHE to a folder on a larger disk, or drop the option"
        )
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)  # damaged
    else:
        folder.unlink(missing_ok=True)  # a file or a link in its place
    with atomic_folder(folder, accept=folder.is_dir) as partial:
        for name, length in ((_PIXELS, size), (_SUMS, len(facts["pictures"]) * _SUM.itemsize)):
            with (partial / name).open("wb") as file:
                file.truncate(length)
        (partial / _INDEX).write_text(json.dumps(facts))


class _Kept:
    """An open folder of the cache."""

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder = folder
        self._count = count
        self._shape = (size, size, 3)
        self._bytes = size * size * 3

    def __enter__(self) -> _Kept:
        self._pixels = (self.folder / _PIXELS).open("r+b", buffering=0)
        self._sum_file = (self.folder / _SUMS).open("r+b", buffering=0)
        self._read_pixels = (self.folder / _PIXELS).open("rb", buffering=0)  # its place is a thread's own
        size = self._count * _SUM.itemsize
        self._sums = np.frombuffer(self._sum_file.read(size).ljust(size, b"\0"), _SUM)
        return self

    def __exit__(self, *_: object) -> None:
        self._pixels.close()
        self._read_pixels.close()
        self._sum_file.close()

    def missing(self, part: range) -> list[int]:
        """Return the positions of the pictures that are not on disk."""
        return (np.flatnonzero(self._sums[part.start : part.stop] == 0) + part.start).tolist()

    def read(self, part: range) -> Tensor:
        """Return pictures, uint8 [n, S, S, 3], as they are on disk; what is missing there holds arbitrary values."""
        pictures = np.empty((len(part), *self._shape), np.uint8)
        left: Any = pictures.reshape(-1).data
        with naming(self.folder / _PIXELS):
            self._read_pixels.seek(part.start * self._bytes)
            while left and (count := self._read_pixels.readinto(left)):  # none at the end of a file that was shortened
                left = left[count:]
        left[:] = bytes(len(left))  # this memory may hold these very pictures, from before
        return torch.from_numpy(pictures)

    def damaged(self, start: int, images: Tensor, missing: Sequence[int]) -> list[int]:
        """Return the positions of the pictures of a block, other than `missing`, whose checksum does not hold."""
        there = sorted(set(range(start, start + len(images))) - set(missing))
        return [i for i in there if _sum(images[i - start]) != self._sums[i]]

    def write(self, start: int, images: Tensor, which: Sequence[int]) -> None:
        """Write the pictures `which` of a block; raises `OSError`, which names the file, on a full disk."""
        if not which:
            return
        with naming(self.folder / _PIXELS):
            for i in which:
                self._pixels.seek(i * self._bytes)
                _write_all(self._pixels, images[i - start].numpy().tobytes())
            os.fsync(self._pixels.fileno())
        with naming(self.folder / _SUMS):
            for i in which:
                self._sum_file.seek(i * _SUM.itemsize)
                _write_all(self._sum_file, np.array(_sum(images[i - start]), _SUM).tobytes())


def _sum(picture: Tensor) -> int:
    """Return the checksum of a picture, CRC-32; never 0."""
    pixels: Any = picture.numpy()
    return zlib.crc32(pixels) or 1


def _write_all(file: Any, content: bytes) -> None:
    """Write all bytes: an unbuffered file may accept only a part at a time."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
