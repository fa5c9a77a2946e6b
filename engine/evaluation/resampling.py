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
    accuracy, replicates
        Accuracy under every row, [K+2], and its replicates, [R, K+2].
    had, fooled
        How many are right when clean, and of these wrong under the occluder of row `own`; with their replicates, [R].
    wrong
        Wrong answers under that occluder. Without one, as of a class beyond the bank, these three are empty.
    """

    def __init__(self, answers: ClassAnswers, own: int | None, replicates: int, generator: np.random.Generator) -> None:
        self.pictures = answers.pictures
        self.had, self.fooled = 0, 0
        self.had_replicates, self.fooled_replicates = np.zeros(replicates), np.zeros(replicates)
        self.wrong: Counter[int] = Counter()
        columns = len(answers.store.occluders)
        right_answers, self.replicates = np.zeros(columns), np.zeros((replicates, columns))
        parts = zip(answers.chunks(), draws(generator, answers.sizes, replicates), strict=True)
        for predictions, drawn in parts:
            right = (predictions == answers.class_id).astype(np.float32)
            weights = drawn.astype(np.float32) / self.pictures
            right_answers += right.sum(axis=0, dtype=float)
            self.replicates += weights @ right
            if own is not None:
                self._add_own(right[:, 0], right[:, own], weights)
                self.wrong.update(predictions[right[:, own] == 0, own].tolist())
        self.accuracy: Floats = right_answers / self.pictures

    def _add_own(self, clean: NDArray[np.float32], own: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        fooled = clean * (1 - own)
        self.had, self.fooled = self.had + int(clean.sum()), self.fooled + int(fooled.sum())
        self.had_replicates += (weights @ clean).astype(float) * self.pictures
        self.fooled_replicates += (weights @ fooled).astype(float) * self.pictures
