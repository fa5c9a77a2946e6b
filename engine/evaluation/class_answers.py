"""The answers of a store, class by class, a chunk of pictures at a time: memory does not grow with a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .store import CLEAN, NOISE, QUARANTINED, RunStore

# Pictures that are in memory together, more than ImageNet has of a class. Where a class has more, the replicates of a
# summary depend on this number.
CHUNK: Final = 2048


@dataclass(frozen=True)
class ClassAnswers:
    """Readable pictures of one class: those of `span`, places in the store, that `ours` marks, at least one."""

    store: RunStore
    class_id: int
    span: range
    ours: NDArray[np.bool_]

    @property
    def pictures(self) -> int:
        """How many there are."""
        return int(self.ours.sum())

    @property
    def sizes(self) -> list[int]:
        """How many each chunk has."""
        pictures = self.pictures
        return [min(CHUNK, pictures - start) for start in range(0, pictures, CHUNK)]

    def chunks(self) -> Iterator[NDArray[np.int32]]:
        """Yield predictions, int32 [n, K+2], of `CHUNK` pictures at a time, and at last of those that are left.

        Where a chunk ends depends on the pictures of the class alone, not on the blocks of the store.

        Raises
        ------
        InputError
            A block is damaged.
        """
        kept = np.zeros((0, len(self.store.occluders)), np.int32)
        for start in range(0, len(self.span), CHUNK):
            part = self.span[start : start + CHUNK]
            found = self.store.predictions(part.start, part.stop)[self.ours[start : start + CHUNK]]
            kept = np.concatenate([kept, found])
            if len(kept) >= CHUNK:
                yield kept[:CHUNK]
                kept = kept[CHUNK:]
        if len(kept):
            yield kept


def bank_ids(store: RunStore) -> list[int]:
    """Return the class ids of the bank's rows."""
    return [int(i) for i in store.occluders if i not in (CLEAN, NOISE)]


def class_order(store: RunStore) -> list[int]:
    """Return the bank's classes in row order, then the others in picture order."""
    bank = bank_ids(store)
    return bank + [int(i) for i in dict.fromkeys(store.labels.tolist()) if i not in bank]


def class_answers(store: RunStore) -> Iterator[ClassAnswers]:
    """Yield the classes that have readable pictures, in `class_order`. Raises `InputError` if reasons are damaged."""
    readable = store.readable()
    for class_id in class_order(store):
        ours = (store.labels == class_id) & readable
        where = np.flatnonzero(ours)
        if len(where):
            span = range(int(where[0]), int(where[-1]) + 1)
            yield ClassAnswers(store, class_id, span, ours[span.start : span.stop])


def accuracy_matrix(store: RunStore) -> tuple[NDArray[np.float64], list[int]]:
    """Compute accuracy[k, c]: occluder row k (clean, the bank, noise) on pictures of class c.

    Returns
    -------
    tuple
        float64 [K+2, C] in 0 … 1, NaN where a class has no readable picture, and for noise where the run has none; the
        C class ids, the bank's first.

    Raises
    ------
    InputError
        A block is damaged.
    """
    order = class_order(store)
    right, pictures = _counts(store, order)
    matrix = np.full((len(bank_ids(store)) + 2, len(order)), np.nan)
    with np.errstate(invalid="ignore"):
        matrix[: len(store.occluders)] = (right / pictures).T
    return matrix, order


def _counts(store: RunStore, order: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count right answers [C, K+2] and readable pictures [C, 1] of each class, in the order of the pictures."""
    place = {class_id: i for i, class_id in enumerate(order)}
    right, pictures = np.zeros((len(order), len(store.occluders)), np.int64), np.zeros((len(order), 1), np.int64)
    together = max(1, CHUNK // store.block) * store.block  # whole blocks: none is decoded twice
    for start in range(0, len(store), together):
        stop = min(start + together, len(store))
        predictions, labels = store.predictions(start, stop), store.labels[start:stop]
        first = np.flatnonzero(np.diff(labels, prepend=-1))
        rows = [place[class_id] for class_id in labels[first].tolist()]
        counted = (right, predictions == labels[:, None]), (pictures, predictions[:, :1] != QUARANTINED)
        for sums, marks in counted:
            np.add.at(sums, rows, np.add.reduceat(marks, first, dtype=np.int64))
    return right, pictures
