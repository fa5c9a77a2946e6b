"""What every loader provides: uint8 blocks of pictures in list order, with unreadable pictures set aside."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.preprocessing import Preprocessing
from .files import PictureFiles


class Pictures(NamedTuple):
    """Pictures of one list, uint8 [n, S, S, 3]; those in `quarantined` {position: reason} are unreadable, and black."""

    images: Tensor
    quarantined: dict[int, str]

    @classmethod
    def of(cls, results: Sequence[NDArray[np.uint8] | Tensor | str], size: int, device: str = "cpu") -> Pictures:
        """Stack single results: pictures, uint8 [S, S, 3], or the reason why one is unreadable."""
        quarantined = {i: result for i, result in enumerate(results) if isinstance(result, str)}
        if device == "cpu":
            # NumPy copies on one core; PyTorch would wake its threads, which spin beside the decoding ones.
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

    `quarantined` maps positions in the block to the reason that the decoder gives.
    """

    start: int
    images: Tensor
    quarantined: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> Tensor:
        """Positions in the block that hold a picture, int64."""
        return torch.tensor([i for i in range(len(self.images)) if i not in self.quarantined], dtype=torch.int64)


class PictureSource(ABC):
    """A loader: `name` as in `--loader`, and `how` it reads, for the log."""

    name: str
    how: str

    @abstractmethod
    def blocks(self, paths: Sequence[str], parts: int | Sequence[range]) -> Iterator[Block]:
        """Yield pictures of `paths` by their places in it: all, `parts` at a time, or those of each range.

        Pictures that no decoder takes are set aside. A few blocks are in memory, whatever the length of the list, which
        a cache knows by all of its paths.

        Raises
        ------
        Unreachable
            A picture's file cannot be read, or there is not enough memory: nothing is known of the picture.
        """


class Decoder(PictureSource):
    """A source that decodes lists of files.

    Attributes
    ----------
    packages, modules
        Distributions that it needs, as pip names them (the doctor lists their versions), and the modules to import.
    rank
        Kinds of device for which `auto` considers it, each with its place among the loaders: the lowest comes first.
    decodes_on
        Kind of device that decodes, `cpu` or `cuda`: their pixels may differ, and the decoded cache keeps them apart.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[dict[str, int]] = {}
    decodes_on: str = "cpu"

    def __init__(self, files: PictureFiles, preprocessing: Preprocessing, workers: int, device: torch.device) -> None:
        self.files = files
        self.preprocessing = preprocessing
        self.workers = workers
        self.device = device
        self.how = f"{workers} threads"
        # Pillow warns of what it then decodes or refuses: once a picture, and with -W error it would refuse them all.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    @classmethod
    def installed(cls) -> bool:
        """Return whether its modules are installed, without importing them: DALI takes half a second."""
        # A parent package that is missing makes `find_spec` raise.
        parts = [".".join(name.split(".")[: i + 1]) for name in cls.modules for i in range(name.count(".") + 1)]
        return all(find_spec(part) is not None for part in parts)

    @abstractmethod
    def read(self, lists: Iterable[Sequence[str]]) -> Iterator[Pictures]:
        """Yield the pictures of each list, in order; the next list is read while the caller uses the last one."""

    def blocks(self, paths: Sequence[str], parts: int | Sequence[range]) -> Iterator[Block]:
        """See `PictureSource.blocks`."""
        ranges = as_ranges(parts, len(paths))
        with closing(self.read(paths[part.start : part.stop] for part in ranges)) as read:  # type: ignore[type-var]
            for part, pictures in zip(ranges, read, strict=True):
                yield Block(part.start, *pictures)


def as_ranges(parts: int | Sequence[range], count: int) -> Sequence[range]:
    """Return the ranges of places that `PictureSource.blocks` is to read from a list of `count` pictures."""
    if not isinstance(parts, int):
        return parts
    return [range(start, min(start + parts, count)) for start in range(0, count, parts)]
