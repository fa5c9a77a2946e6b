"""What a benchmark of pairs runs: a network, occluders, and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..export.classifier import FrozenClassifier
from .measure import flops


@dataclass(frozen=True)
class Work:
    """What is run.

    Attributes
    ----------
    occluders
        float32 [K, S, S, 3], pixel units.
    folder, paths
        Picture files; they are taken again from the start where more are asked for than there are.
    data
        What they are, for the rows.
    pictures
        How many a call of `end-to-end` reads, and at most in one of `pairs`; None for as many as fit the time.
    pairs
        In a pass; None for what is measured to be fastest.
    workers
        Threads that decode, each number a row of `end-to-end`; none for one a core.
    """

    classifier: FrozenClassifier
    occluders: Tensor
    folder: Path
    paths: Sequence[str]
    data: str
    pictures: int | None = None
    pairs: int | None = None
    workers: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """The clean picture and the occluders."""
        return 1 + len(self.occluders)

    @cached_property
    def flops(self) -> int:
        """Of the network for one picture (`measure.flops`)."""
        return flops(self.classifier)

    def files(self, count: int) -> list[str]:
        """So many paths."""
        return [self.paths[i % len(self.paths)] for i in range(count)]
