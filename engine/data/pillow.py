"""Pillow and torchvision on threads: the reference for every other loader, on every platform."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...export.preprocessing import Preprocessing
from .files import PictureFiles, TooLarge
from .memory import available, memory_of, room_for
from .source import Decoder, Pictures

_LONGEST = 200  # characters of a reason


class PillowSource(Decoder):
    """Decode on `workers` threads, one list ahead."""

    name = "pillow"
    modules: ClassVar = ("PIL",)
    rank: ClassVar = {"cpu": 1, "cuda": 2}

    def read(self, lists: Iterable[Sequence[str]]) -> Iterator[Pictures]:
        """See `Decoder.read`."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="gfo-decode") as pool:
            ahead: deque[list[Future[NDArray[np.uint8] | str]]] = deque()
            try:
                for paths in lists:
                    ahead.append([pool.submit(self._read, path) for path in paths])
                    if len(ahead) > 1:
                        yield self._gather(ahead)
                while ahead:
                    yield self._gather(ahead)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, ahead: deque[list[Future[NDArray[np.uint8] | str]]]) -> Pictures:
        return Pictures.of([future.result() for future in ahead.popleft()], self.preprocessing.input_size)

    def _read(self, path: str) -> NDArray[np.uint8] | str:
        return read_picture(self.files, path, self.preprocessing)


def read_picture(files: PictureFiles, path: str, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Read and decode a picture of `files`; see `decode`.

    Raises
    ------
    Unreachable
        It cannot be read, or there is not enough memory.
    """
    try:
        content = files.fetch(path)
    except TooLarge as error:
        return reason(error)
    return decode(files, path, content, preprocessing)


def decode(files: PictureFiles, path: str, content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Decode the bytes of a picture of `files` to uint8 [S, S, 3]; return the reason where they are no picture.

    Raises
    ------
    Unreachable
        There is not enough memory.
    """
    try:
        return _decoded(content, preprocessing)
    except MemoryError as error:
        raise files.unreachable(path, error) from error


def _decoded(content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    try:
        picture = Image.open(io.BytesIO(content))  # reads the header
        need = memory_of(picture, preprocessing)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (by file format: OSError, SyntaxError, ValueError, struct.error, …)
        return reason(error)
    if picture.format == "EPS":
        return "ValueError: EPS is a program, and it is not run; save the picture as PNG"
    what = f"{picture.width} x {picture.height} pixels of {picture.format}"
    with room_for(need, what):
        rgb = _in_memory(picture, preprocessing)
        del picture  # and what its decoder holds
        if not isinstance(rgb, str):
            return preprocessing.apply(rgb)
        if available() < need:  # some codecs call a lack of memory a broken picture
            raise MemoryError(f"{what} may be broken, or too large for the memory that is free")
        return rgb


def _in_memory(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image | str:
    """Return the first frame of a picture, RGB, or the reason why Pillow fails; a lack of memory is raised."""
    try:
        picture.load()
        preprocessing.geometry(*picture.size)  # an icon tells its size only now
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (as above)
        return reason(error)


def reason(error: Exception) -> str:
    """Return in one line of printable characters why a picture is set aside; Pillow quotes what it finds in a file."""
    text = " ".join(f"{type(error).__name__}: {error}".split(" <_io", 1)[0].split())[:_LONGEST]
    return "".join(character if character.isprintable() else "?" for character in text)
