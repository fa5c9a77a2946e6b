"""Pillow and torchvision on threads: the reference that every other source must agree with, on every platform."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...export.preprocessing import Preprocessing
from .files import PictureFiles
from .source import Decoder, Pictures


class PillowSource(Decoder):
    """Decodes on `workers` threads, one list ahead."""

    name = "pillow"

    def __init__(self, files: PictureFiles, preprocessing: Preprocessing, workers: int) -> None:
        self.files = files
        self.preprocessing = preprocessing
        self.workers = workers
        self.how = f"{workers} threads"

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
        try:
            return decode(self.files.read(path), self.preprocessing)
        except OSError as error:
            return self.files.reason(error)


def decode(content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """The picture in an encoded file's bytes, uint8 [S, S, 3], or in Pillow's words why there is none."""
    try:
        return preprocessing.load_uint8(io.BytesIO(content))
    except Exception as error:  # noqa: BLE001 Pillow raises OSError, SyntaxError, ValueError, struct.error, … by file format
        return f"{type(error).__name__}: {error}".split(" <_io", 1)[0].splitlines()[0]
