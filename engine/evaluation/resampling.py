"""The answers to the pictures of one class, counted and resampled, a chunk at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Floats
from .class_answers import ClassAnswers


def draws(generator: np.random.Generator, sizes: Sequence[int], replicates: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each picture of a class is in each replicate, int64 [R, n], for chunks of `sizes`.

    A replicate draws as many pictures as there are, with replacement: a multinomial. Given the draws of the chunks
    before, how many of the others fall into a chunk is binomial, and they spread over it as a multinomial again.
    """
    left, undrawn = sum(sizes), np.full(replicates, sum(sizes))
    for size in sizes:
        here = generator.binomial(undrawn, size / left) if size < left else undrawn
        yield generator.multinomial(here, np.full(size, 1 / size))
        left, undrawn = left - size, undrawn - here


class ClassSums:
    """Sums over the pictures of a class.

    Attributes
    ----------
    pictures
        Readable pictures of it.
    replicates
        Replicates of `accuracy`, [R, K+2].
    had, fooled
        How many pictures are right when clean, and of these wrong under the class's own occluder, that of column `own`.
    had_replicates, fooled_replicates
        The same in each replicate, [R].
    wrong
        Wrong answers under that occluder, by how many there are. A class beyond the bank has no occluder, and these
        last five are empty.
    """

    def __init__(self, answers: ClassAnswers, own: int | None, replicates: int, generator: np.random.Generator) -> None:
        columns = len(answers.store.occluders)
        self._class_id, self._own, self.pictures = answers.class_id, own, answers.pictures
        self._right, self.replicates = np.zeros(columns), np.zeros((replicates, columns))
        self.had, self.had_replicates = 0, np.zeros(replicates)
        self.fooled, self.fooled_replicates = 0, np.zeros(replicates)
        self.wrong: Counter[int] = Counter()
        drawn = draws(generator, answers.sizes, replicates)
        for predictions, times in zip(answers.chunks(), drawn, strict=True):
            self._add(predictions, times)

    @property
    def accuracy(self) -> Floats:
        """Accuracy under every row, [K+2]."""
        return self._right / self.pictures

    def _add(self, predictions: NDArray[np.int32], times: NDArray[np.int64]) -> None:
        right, weights = (predictions == self._class_id).astype(np.float32), times.astype(np.float32)
        weights /= self.pictures
        self._right += right.sum(axis=0, dtype=float)
        self.replicates += weights @ right
        if self._own is None:
            return
        clean, occluded = right[:, 0], right[:, self._own]
        fooled = clean * (1 - occluded)
        self.had, self.fooled = self.had + int(clean.sum()), self.fooled + int(fooled.sum())
        self.had_replicates += (weights @ clean).astype(float) * self.pictures
        self.fooled_replicates += (weights @ fooled).astype(float) * self.pictures
        self.wrong.update(predictions[occluded == 0, self._own].tolist())
