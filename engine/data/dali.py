"""NVIDIA DALI: it decodes JPEGs on its threads or on the GPU; Pillow reads whatever is not a plain, complete JPEG.

One corrupt picture ends a DALI pipeline, so headers are checked first. Should a batch fail all the same, Pillow reads
its pictures and finds the broken one, and the pipeline is built anew.

DALI only decodes: its resize differs from torchvision's (see `resize`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...export.optional import optional
from ...export.preprocessing import Preprocessing
from .files import PictureFiles, TooLarge
from .pillow import decode, reason
from .resize import resize_and_crop
from .source import Decoder, Pictures

# Pictures and pixels in a DALI batch: large pictures make smaller batches, which bounds the memory.
_BATCH, _BATCH_PIXELS = 32, 16_000_000

Picture: TypeAlias = NDArray[np.uint8] | Tensor | str


class Encoded(NamedTuple):
    """The path and bytes of a JPEG, and its number of pixels."""

    path: str
    content: bytes
    pixels: int


class DaliSource(Decoder):
    """Read bytes and headers on `workers` threads, decode in DALI, resize; one list ahead.

    On a CUDA device (DALI's `mixed`) the pictures stay on the device and are resized there.

    Raises
    ------
    EngineUnavailable
        DALI is not installed.
    """

    name = "dali"
    packages: ClassVar = ("nvidia-dali-cuda130",)
    modules: ClassVar = ("nvidia.dali",)
    rank: ClassVar = {"cuda": 1}

    def __init__(self, files: PictureFiles, preprocessing: Preprocessing, workers: int, device: torch.device) -> None:
        optional("nvidia.dali", "--loader dali", "dali")
        super().__init__(files, preprocessing, workers, device)
        self.decodes_on = device.type
        self._stream: torch.cuda.Stream | None = None
        if device.type != "cpu":
            self.how = f"decoding on {device}, {workers} threads"
        self._pipeline: Any = None

    def read(self, lists: Iterable[Sequence[str]]) -> Iterator[Pictures]:
        """See `Decoder.read`. Pictures are on the source's device."""
        with (
            ThreadPoolExecutor(self.workers, thread_name_prefix="gfo-decode") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="gfo-dali") as conductor,  # a pipeline belongs to one thread
        ):
            try:
                with closing(self._read_ahead(lists, pool)) as read:  # type: ignore[type-var]
                    ahead: Future[Pictures] | None = None
                    for checked in read:
                        now, ahead = ahead, conductor.submit(self._decode_on_stream, checked, pool)
                        if now is not None:
                            yield now.result()
                    if ahead is not None:
                        yield ahead.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # first: the conductor waits for what it reads
                conductor.shutdown(wait=True, cancel_futures=True)
                pool.shutdown(wait=True, cancel_futures=True)
                self._pipeline = None

    def _read_ahead(
        self, lists: Iterable[Sequence[str]], pool: ThreadPoolExecutor
    ) -> Iterator[list[Future[Encoded | Picture]]]:
        """Yield the checked files of every list, one list ahead of the caller."""
        before: list[Future[Encoded | Picture]] | None = None
        for paths in lists:
            now = [pool.submit(self._check, path) for path in paths]
            if before is not None:
                yield before
            before = now
        if before is not None:
            yield before

    def _check(self, path: str) -> Encoded | Picture:
        """Return a JPEG for DALI, or what Pillow makes of any other file."""
        try:
            content = self.files.fetch(path)
        except TooLarge as error:
            return reason(error)
        pixels = plain_jpeg(content)
        return Encoded(path, content, pixels) if pixels else decode(self.files, path, content, self.preprocessing)

    def _decode_on_stream(self, checked: Sequence[Future[Encoded | Picture]], pool: ThreadPoolExecutor) -> Pictures:
        if self.device.type == "cuda" and self._stream is None:
            # Not the default stream, on which decoding would wait for the engine's passes.
            self._stream = torch.cuda.Stream(self.device)
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            pictures = self._decode(checked, pool)
            if self._stream is not None:
                self._stream.synchronize()  # an engine reads them on a stream of its own
        return pictures

    def _decode(self, checked: Sequence[Future[Encoded | Picture]], pool: ThreadPoolExecutor) -> Pictures:
        results: list[Picture | Future[Picture]] = [""] * len(checked)
        batch: list[tuple[int, Encoded]] = []
        for i, future in enumerate(checked):
            found = future.result()
            if not isinstance(found, Encoded):
                results[i] = found
                continue
            if len(batch) == _BATCH or (batch and sum(e.pixels for _, e in batch) + found.pixels > _BATCH_PIXELS):
                self._decode_batch(batch, results, pool)
                batch = []
            batch.append((i, found))
        if batch:
            self._decode_batch(batch, results, pool)
        done = [result.result() if isinstance(result, Future) else result for result in results]
        return Pictures.of(done, self.preprocessing.input_size, str(self.device))

    def _decode_batch(
        self,
        batch: Sequence[tuple[int, Encoded]],
        results: list[Picture | Future[Picture]],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Put the pictures of a batch, or their futures, into their places in `results`."""
        try:
            decoded = self._run([encoded.content for _, encoded in batch])
        except RuntimeError as error:
            self._pipeline = None
            what = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            warnings.warn(f"DALI failed on {len(batch)} pictures, Pillow reads them ({what.strip()})", stacklevel=2)
            for i, encoded in batch:
                results[i] = pool.submit(decode, self.files, encoded.path, encoded.content, self.preprocessing)
            return
        for (i, encoded), picture in zip(batch, decoded, strict=True):
            if self.device.type == "cuda":
                results[i] = self._finish_on_device(picture)
            else:
                results[i] = pool.submit(self._finish, encoded.path, np.asarray(picture))
        if self._stream is not None:
            self._stream.synchronize()  # the next batch may take the memory of this one, which is still being resized

    def _run(self, contents: Sequence[bytes]) -> Any:
        if self._pipeline is None:
            self._pipeline = decoding_pipeline(self.device, self.workers)
        self._pipeline.feed_input("encoded", [np.frombuffer(content, np.uint8) for content in contents])
        (decoded,) = self._pipeline.run()
        return decoded

    def _finish(self, path: str, picture: NDArray[np.uint8]) -> Picture:
        try:
            return self.preprocessing.apply(Image.fromarray(picture))
        except ValueError as error:
            return reason(error)
        except MemoryError as error:
            raise self.files.unreachable(path, error) from error

    def _finish_on_device(self, picture: Any) -> Picture:
        try:
            return resize_and_crop(torch.from_dlpack(picture), self.preprocessing)
        except ValueError as error:
            return reason(error)


def decoding_pipeline(device: torch.device, threads: int) -> Any:
    """Build the pipeline from encoded bytes (`encoded`, uint8 [n] each) to uint8 [H, W, 3] RGB.

    On the CPU the pixels are Pillow's, bit for bit.
    """
    dali = optional("nvidia.dali", "--loader dali", "dali")
    fn: Any = optional("nvidia.dali.fn", "--loader dali", "dali")
    mixed = device.type == "cuda"
    pipeline = dali.Pipeline(
        batch_size=_BATCH,
        num_threads=threads,
        device_id=(device.index or 0) if mixed else None,
        prefetch_queue_depth=1,  # the source itself reads ahead
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        # As torchvision: no turning by EXIF. As libjpeg-turbo does it: smooth chroma, and no hardware decoder.
        options = {"jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0} if mixed else {}
        pipeline.set_outputs(
            fn.decoders.image(encoded, device="mixed" if mixed else "cpu", adjust_orientation=False, **options)
        )
    pipeline.build()
    return pipeline


# Markers that may follow 0xFF in the compressed data of a JPEG: a stuffed zero, padding, restarts, the next scan's
# tables and header, comments and application data, the end.
_IN_SCANS = np.zeros(256, bool)
_IN_SCANS[[0x00, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE, 0xFF, *range(0xD0, 0xD8), *range(0xE0, 0xF0)]] = True


def plain_jpeg(content: bytes) -> int:
    """Return the number of pixels of a complete 8-bit grey or colour JPEG without foreign markers, 0 for anything else.

    Everything else is left to Pillow: other formats, CMYK, truncated files, markers that libjpeg refuses, pictures that
    are more than a batch (there must be memory for them, see `memory`) or over Pillow's limit, and pictures more than
    twice as high as wide, which Pillow resizes in another order.
    """
    if not content.startswith(b"\xff\xd8") or not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return 0
    try:
        with Image.open(io.BytesIO(content)) as picture:
            (width, height), plain = picture.size, picture.format == "JPEG" and picture.mode in ("RGB", "L")
    except Exception:  # noqa: BLE001 (as in `decode`, which reports the reason)
        return 0
    if not plain or height > 2 * width or width * height > _BATCH_PIXELS:
        return 0
    data = np.frombuffer(content, np.uint8)[content.find(b"\xff\xda") :]
    followers = data[1:][data[:-1] == 0xFF]
    return width * height if _IN_SCANS[followers].all() else 0
