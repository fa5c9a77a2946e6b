"""The pairs that are drawn between two looks, as the all-pairs loop takes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.errors import InputError
from ...kernels.score import Score
from ..data.decoded_cache import DecodedCache
from ..data.source import Block, PictureSource
from ..evaluation.store import READ_TOGETHER, RunStore
from ..evaluation.summary import Quarantined
from ..progress import Progress, Silent
from .order import Ints


class DrawnPairs:
    """Pairs of pictures and occluders, each picture with one occluder: an `Assignment`.

    Pictures come in the order of the store, those that are drawn twice one after the other.

    Parameters
    ----------
    store
        The pictures.
    images, rows
        Places in the store, and rows of the bank, int64 [n].
    """

    block: int = READ_TOGETHER

    def __init__(self, store: RunStore, images: Ints, rows: Ints) -> None:
        self._order = np.argsort(images, kind="stable")
        self.images = images[self._order]
        self.paths: Sequence[str] = [store.paths[i] for i in self.images]
        self.labels: NDArray[np.int32] = store.labels[self.images]
        self.pending: Mapping[int, int] = dict.fromkeys(range(0, len(images), self.block), 0)
        self._occluders = torch.from_numpy(rows[self._order] + 1)[:, None]  # 0 is no occluder
        self._found = Score(*(torch.full((len(images),), fill) for fill in (-1, -1, float("nan"))))

    def end(self, start: int) -> int:
        """See `Assignment.end`."""
        return min(start + self.block, len(self.images))

    def occluders(self, which: int) -> Tensor:
        """See `Assignment.occluders`."""
        return self._occluders

    def set_aside(self) -> Mapping[str, Quarantined]:
        """See `Assignment.set_aside`: none, as only readable pictures are drawn."""
        return {}

    def refuse(self, found: Collection[Quarantined]) -> None:
        """Raise `InputError` for any picture: it could be read when it was evaluated clean."""
        for picture in found:
            raise InputError(
                f"{picture.path}: cannot be read any more ({picture.reason}); repair it, or remove the RUN and "
                "evaluate again without it"
            )

    def file(self, start: int) -> object:
        """See `Assignment.file`: all are kept together."""
        return self if start in self.pending else None

    def write(self, start: int, scores: Score, quarantined: Mapping[int, str], stamps: Sequence[int] | None) -> None:
        """See `Assignment.write`: they are kept for `scores`."""
        for kept, values in zip(self._found, scores, strict=True):
            kept[start : start + len(values)] = values

    @property
    def scores(self) -> Score:
        """The verdicts, in the order in which the pairs were given."""
        back = torch.from_numpy(np.argsort(self._order))
        return Score(*(values[back] for values in self._found))


class OnlyLines(Silent):
    """Progress that says lines and drops events: blocks of drawn pairs are none of the run."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._progress.say(line)


class DrawnPictures(PictureSource):
    """The pictures of drawn pairs from a decoded cache, which knows pictures by their places in a whole list.

    Parameters
    ----------
    paths
        The list that the cache knows.
    images
        Places in it, ascending: those of the list that `blocks` is called with.
    """

    def __init__(self, source: DecodedCache, paths: Sequence[str], images: Ints) -> None:
        self._source, self._paths, self._images = source, paths, images
        self.name, self.how = source.name, source.how

    def blocks(self, paths: Sequence[str], parts: int | Sequence[range]) -> Iterator[Block]:
        """See `PictureSource.blocks`."""
        assert not isinstance(parts, int)
        wanted = [range(i, i + 1) for i in np.unique(self._images).tolist()]
        last: Block | None = None
        with closing(self._source.blocks(self._paths, wanted)) as singles:  # type: ignore[type-var]
            for part in parts:
                blocks: list[Block] = []
                for i in self._images[part.start : part.stop].tolist():
                    if last is None or last.start != i:
                        last = next(singles)
                    blocks.append(last)
                broken = {at: one.quarantined[0] for at, one in enumerate(blocks) if one.quarantined}
                yield Block(part.start, torch.cat([one.images for one in blocks]), broken)


def pictures_of(source: PictureSource, store: RunStore, pairs: DrawnPairs) -> PictureSource:
    """Return what reads the pictures of drawn pairs."""
    return DrawnPictures(source, store.paths, pairs.images) if isinstance(source, DecodedCache) else source
