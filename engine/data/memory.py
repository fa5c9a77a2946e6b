"""Whether there is memory for a picture, before it is decoded.

A decoder that takes more than there is cannot be stopped: the system ends the process. So a large picture waits until
those before it have given their memory back, and one that does not fit alone is not decoded. It is not set aside,
either: which pictures count would depend on the machine, and on what else runs there. The limits that are the same
everywhere, Pillow's on pixels and `PictureFiles`' on bytes, do set a picture aside.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...export.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# Most bytes a pixel, of address space, that it takes to load a picture in Pillow and to turn it into RGB: measured with
# Pillow 13 over modes, depths, alpha, subsampling and compressions, and rounded up. Baseline JPEGs take 5, progressive
# ones in CMYK 12, what is not named here up to 9. WebP decodes a canvas of its own, JPEG 2000 to 4 bytes a sample. AVIF
# has 16 at a depth of 8 bits, and may have 12.
_BYTES, _BYTES_OF = 12, {"WEBP": 24, "JPEG2000": 26, "AVIF": 24, "PPM": 18}
_RGB = 4  # bytes a pixel of a decoded picture in Pillow

_SMALL = 32 << 20  # bytes; pictures that take less are not counted, and what is left is never filled beyond this

_FILE_PAGES = ("active_file", "inactive_file")
_NO_LIMIT = 1 << 60  # the first version of control groups has a number for it
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_changed = threading.Condition()
_taken = 0


def memory_of(picture: Image.Image, preprocessing: Preprocessing) -> int:
    """Return how many bytes it takes to decode, resize and crop a picture, at most."""
    width, height = picture.size
    resized = preprocessing.geometry(width, height)
    decoding = width * height * _BYTES_OF.get(picture.format or "", _BYTES)
    # Pillow resizes rows, then columns, and keeps both results beside the picture.
    resizing = _RGB * (width * height + resized.width * height + resized.width * resized.height)
    return max(decoding, resizing)


@contextlib.contextmanager
def room_for(need: int, what: str) -> Iterator[None]:
    """Wait until `need` bytes are free beside what others have been given, and keep them for the block.

    Raises
    ------
    MemoryError
        They are not free, though nobody else has any; the message begins with `what`.
    """
    global _taken  # noqa: PLW0603 (memory is the process's)
    if need <= _SMALL:
        yield
        return
    with _changed:
        while _taken + need > (free := available()):
            if not _taken:
                raise MemoryError(
                    f"{what} take {need / 1e9:.1f} GB to decode, {max(free, 0) / 1e9:.1f} GB are free; give it more "
                    "memory, or move the picture away"
                )
            _changed.wait()
        _taken += need
    try:
        yield
    finally:
        with _changed:
            _taken -= need
            _changed.notify_all()


def available() -> float:
    """Return how many bytes this process may still take: of the machine, its control groups and its own limit.

    It is infinite where the system does not say.
    """
    return min(_of_machine(), _of_groups(), _of_limit()) - _SMALL


def _of_machine() -> float:
    return _numbers(_PROC / "meminfo").get("MemAvailable:", math.inf) * 1024


def _of_limit() -> float:
    """Return what the limit on the address space (`ulimit -v`) leaves."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int((_PROC / "self" / "statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    except (ImportError, OSError):  # Windows, macOS
        return math.inf
    return math.inf if most == resource.RLIM_INFINITY else most - used


def _of_groups() -> float:
    """Return what the control groups of this process leave, as a container's or a batch system's.

    Of each it is the limit less the use, but for pages of files, which are given back.
    """
    left = math.inf
    for limit, folder, use in _limits():
        stat = _numbers(folder / "memory.stat")
        with contextlib.suppress(OSError, ValueError):
            left = min(left, limit - int((folder / use).read_text()) + sum(stat.get(name, 0) for name in _FILE_PAGES))
    return left


@cache
def _limits() -> list[tuple[int, Path, str]]:
    """Return limit, folder and name of the file with the use of the groups around this process that have a limit."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _CGROUPS / controllers
        group = top / path.lstrip("/")
        # In a container the path is often that of outside; its own group is then at the top.
        for folder in (group, *group.parents):
            for name, use in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
                with contextlib.suppress(OSError, ValueError):  # not there, or `max`
                    if folder.is_relative_to(top) and (limit := int((folder / name).read_text())) < _NO_LIMIT:
                        found.append((limit, folder, use))
    return found


def _numbers(path: Path) -> dict[str, int]:
    """Return the first number of each line by the line's first word; nothing where the file cannot be read."""
    try:
        lines = (line.split() for line in path.read_text().splitlines())
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
