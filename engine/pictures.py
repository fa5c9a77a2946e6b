"""Reading pictures: a source gives uint8 blocks in list order, each picture once; broken ones are quarantined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..export.errors import InputError
from ..export.preprocessing import Preprocessing

LOADERS = ("auto", "pillow")


@dataclass(frozen=True)
class Block:
    """Pictures `start` … `start` + n − 1 of the list: uint8 [n, S, S, 3]; a quarantined one is black.

    `quarantined` maps positions in the block to the reason, in Pillow's words.
    """

    start: int
    images: Tensor
    quarantined: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> Tensor:
        """Positions in the block that hold a picture, int64."""
        return torch.tensor([i for i in range(len(self.images)) if i not in self.quarantined], dtype=torch.int64)


class PictureSource(Protocol):
    """What training and evaluation need of a loader; DALI will be another one."""

    name: str

    def blocks(self, paths: Sequence[str], block_size: int, starts: Sequence[int] | None = None) -> Iterator[Block]:
        """Blocks of up to `block_size` pictures at the given starts (default: every block), in order.

        What is in memory is a few blocks, whatever the length of the list.
        """
        ...


class PillowSource:
    """Pillow and torchvision, decoding on threads; the next block is read while the last one is used."""

    name = "pillow"

    def __init__(self, root: Path, preprocessing: Preprocessing, workers: int) -> None:
        self.root = root
        self.preprocessing = preprocessing
        self.workers = workers

    def blocks(self, paths: Sequence[str], block_size: int, starts: Sequence[int] | None = None) -> Iterator[Block]:
        """See `PictureSource.blocks`."""
        starts = range(0, len(paths), block_size) if starts is None else starts
        with ThreadPoolExecutor(self.workers, thread_name_prefix="gfo-decode") as pool:

            def submit(start: int) -> list[Future[np.ndarray | str]]:
                return [pool.submit(self._read, path) for path in paths[start : start + block_size]]

            try:
                pending = submit(starts[0]) if starts else []
                for position, start in enumerate(starts):
                    results = [future.result() for future in pending]
                    pending = submit(starts[position + 1]) if position + 1 < len(starts) else []
                    yield self._block(start, results)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, path: str) -> np.ndarray | str:
        try:
            return self.preprocessing.load_uint8(self.root / path)
        except Exception as error:  # noqa: BLE001 Pillow raises OSError, SyntaxError, ValueError, struct.error, … by file format
            return f"{type(error).__name__}: {error}".replace(str(self.root), "").splitlines()[0]

    def _block(self, start: int, results: Sequence[np.ndarray | str]) -> Block:
        size = self.preprocessing.input_size
        images = torch.zeros(len(results), size, size, 3, dtype=torch.uint8)
        quarantined: dict[int, str] = {}
        for i, result in enumerate(results):
            if isinstance(result, str):
                quarantined[i] = result
            else:
                images[i] = torch.from_numpy(result.copy())
        return Block(start, images, quarantined)


def open_source(loader: str, root: Path, preprocessing: Preprocessing, workers: int) -> PictureSource:
    """The loader of that name; `auto` is Pillow.

    Raises
    ------
    InputError
        A loader that there is not.
    """
    if loader not in LOADERS:
        raise InputError(f"--loader {loader}: expected one of {', '.join(LOADERS)}")
    return PillowSource(root, preprocessing, workers)
