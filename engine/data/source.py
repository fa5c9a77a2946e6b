"""What training and evaluation need of a loader: uint8 blocks in list order, broken pictures set aside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Pictures(NamedTuple):
    """Some pictures, uint8 [n, S, S, 3]; `quarantined` {position: reason} could not be read, and are black."""

    images: Tensor
    quarantined: dict[int, str]

    @classmethod
    def of(cls, results: Sequence[NDArray[np.uint8] | Tensor | str], size: int, device: str = "cpu") -> Pictures:
        """Put single results together: pictures uint8 [S, S, 3], or the reason why there is none."""
        quarantined = {i: result for i, result in enumerate(results) if isinstance(result, str)}
        if device == "cpu":
            # numpy copies on one core: PyTorch would wake its threads, which spin beside those that decode
            pixels = np.zeros((len(results), size, size, 3), np.uint8)
            for i in range(len(results)):
                if i not in quarantined:
                    pixels[i] = results[i]
            return cls(torch.from_numpy(pixels), quarantined)
        images = torch.zeros(len(results), size, size, 3, dtype=torch.uint8, device=device)
        for i, result in enumerate(results):
            if i not in quarantined:
                images[i] = result if isinstance(result, Tensor) else torch.from_numpy(np.array(result))
        return cls(images, quarantined)


@dataclass(frozen=True)
class Block:
    """Pictures `start` … `start` + n − 1 of the list: uint8 [n, S, S, 3]; a quarantined one is black.

    `quarantined` maps positions in the block to the reason, in the decoder's words.
    """

    start: int
    images: Tensor
    quarantined: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> Tensor:
        """Positions in the block that hold a picture, int64."""
        return torch.tensor([i for i in range(len(self.images)) if i not in self.quarantined], dtype=torch.int64)


class PictureSource(ABC):
    """A loader. `name` is what `--loader` calls it, `how` says in words how it reads."""

    name: str
    how: str

    @abstractmethod
    def blocks(self, paths: Sequence[str], block_size: int, starts: Sequence[int] | None = None) -> Iterator[Block]:
        """Blocks of up to `block_size` pictures of `paths` at the given starts (default: every block), in order.

        A picture that cannot be read is set aside. What is in memory is a few blocks, whatever the length of the list.
        """


class Decoder(PictureSource):
    """A source that decodes lists of files."""

    @abstractmethod
    def read(self, lists: Iterable[Sequence[str]]) -> Iterator[Pictures]:
        """The pictures of each list, in order; the next list is read while the last one is used."""

    def blocks(self, paths: Sequence[str], block_size: int, starts: Sequence[int] | None = None) -> Iterator[Block]:
        """See `PictureSource.blocks`."""
        starts = range(0, len(paths), block_size) if starts is None else starts
        with closing(self.read(paths[start : start + block_size] for start in starts)) as read:  # type: ignore[type-var]
            for start, pictures in zip(starts, read, strict=True):
                yield Block(start, *pictures)


def shard_starts(count: int, block_size: int, index: int, shards: int) -> range:
    """Starts of the blocks that worker `index` of `shards` reads: every `shards`-th, so that each block has one reader.

    Every worker counts from the same list, whatever others have done; with fewer blocks than workers some have none.
    """
    return range(index * block_size, count, shards * block_size)
