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
from .files import PictureFiles
from .source import Decoder, Pictures

# Bytes a pixel that a decoder may take: WebP's and progressive JPEG's take the most.
_DECODING = 16


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
        return decode(self.files, path, self.files.fetch(path), self.preprocessing)


def decode(files: PictureFiles, path: str, content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Decode the bytes of a picture of `files` to uint8 [S, S, 3]; return Pillow's message where they are no picture.

    Raises
    ------
    Unreachable
        There is not enough memory.
    """
    try:
        picture = opened(content, preprocessing)
        return picture if isinstance(picture, str) else preprocessing.apply(picture)
    except MemoryError as error:
        raise files.unreachable(path, error) from error


def opened(content: bytes, preprocessing: Preprocessing) -> Image.Image | str:
    """Return the picture in memory, RGB, or Pillow's message where Pillow fails; other errors are raised."""
    size = (0, 0)
    try:
        picture = Image.open(io.BytesIO(content))
        preprocessing.geometry(*picture.size)  # before its pixels take memory
        size = picture.size
        return picture.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (by file format: OSError, SyntaxError, ValueError, struct.error, …)
        bytearray(size[0] * size[1] * _DECODING)  # some codecs call a lack of memory a broken picture
        return f"{type(error).__name__}: {error}".split(" <_io", 1)[0].splitlines()[0]
