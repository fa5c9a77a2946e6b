"""Accuracies of a run with bootstrap intervals: the cells of Tables S1 and S2, controls, fooling rate.

Everything streams class by class: memory does not grow with the pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ..data.folders import name_of
from .bootstrap import ClassMean, Floats
from .results import ClassRow, LabelShare, Results, WrongLabel
from .store import CLEAN, NOISE, QUARANTINED, RunStore
from .summary import Run

REPLICATES = 1000


@dataclass(frozen=True)
class _ClassAnswers:
    """Readable pictures of one class: predictions int32 [n, K+2]."""

    class_id: int
    predictions: NDArray[np.int32]

    @property
    def right(self) -> NDArray[np.float32]:
        return (self.predictions == self.class_id).astype(np.float32)


def _bank_ids(store: RunStore) -> list[int]:
    return [int(i) for i in store.occluders if i not in (CLEAN, NOISE)]


def _class_order(store: RunStore) -> list[int]:
    """Return the bank's classes in row order, then the others in picture order."""
    bank = _bank_ids(store)
    return bank + [int(i) for i in dict.fromkeys(store.labels.tolist()) if i not in bank]


def _answers(store: RunStore) -> Iterator[_ClassAnswers]:
    for class_id in _class_order(store):
        where = np.flatnonzero(store.labels == class_id)
        if len(where) == 0:
            continue
        predictions = store.predictions(int(where[0]), int(where[-1]) + 1)
        readable = predictions[predictions[:, 0] != QUARANTINED]
        if len(readable):
            yield _ClassAnswers(class_id, readable)


def accuracy_matrix(store: RunStore) -> tuple[Floats, list[int]]:
    """Compute accuracy[k, c]: occluder row k (clean, the bank, noise) on pictures of class c.

    Returns
    -------
    tuple
        float64 [K+2, C] in 0 … 1, NaN where a class has no readable picture, and for noise where the run has none; the
        C class ids, the bank's first.
    """
    order = _class_order(store)
    matrix = np.full((len(_bank_ids(store)) + 2, len(order)), np.nan)
    for answers in _answers(store):
        matrix[: len(store.occluders), order.index(answers.class_id)] = answers.right.mean(axis=0)
    return matrix, order


def derangement(count: int, seed: int) -> list[int]:
    """Draw a permutation of 0 … count − 1 without a fixed point, for the `permuted` control; empty for one class."""
    if count < 2:
        return []
    order = np.random.default_rng(seed).permutation(count)
    target = np.empty(count, dtype=int)
    target[order] = np.roll(order, -1)  # one cycle through all
    return target.tolist()


class _Tally:
    """Sums that one pass over the classes collects."""

    CELLS = ("clean", "matched", "unmatched", "clean_other", "unmatched_other", "permuted", "noise")

    def __init__(self, store: RunStore, replicates: int, seed: int) -> None:
        self._store = store
        self._rng = np.random.default_rng(seed)
        self._replicates = replicates
        self.bank = _bank_ids(store)
        readable = set(store.labels[store.readable()].tolist())
        present = [i in readable for i in self.bank]
        # Of each occluder in `unmatched`: one over the number of other classes that have pictures.
        self._shares = np.array([1 / max(sum(present) - here, 1) for here in present])
        self.permutation = derangement(len(self.bank), seed)
        self._draws = self._draw(len(self.bank))
        others = [i for i in _class_order(store) if i not in self.bank]
        self._other_draws = dict(zip(others, self._draw(len(others)).T, strict=True)) if others else {}
        self.cells = {name: ClassMean(replicates) for name in (*self.CELLS, "fooling_rate")}
        self.pictures: Counter[str] = Counter()
        self.classes: list[ClassRow] = []
        self.counts: Counter[str] = Counter()  # classes with pictures, of the bank's `own` and `other` ones
        self.unmatched_by_occluder = _ByOccluder(len(self.bank))

    def _draw(self, count: int) -> Floats:
        """Draw how often each of `count` classes is in each replicate, [R, count]."""
        if count == 0:
            return np.zeros((self._replicates, 0))
        return self._rng.multinomial(count, np.full(count, 1 / count), size=self._replicates).astype(float)

    def add(self, answers: _ClassAnswers) -> None:
        right = answers.right
        n = len(right)
        weights = self._rng.multinomial(n, np.full(n, 1 / n), size=self._replicates).astype(np.float32) / n
        replicates = (weights @ right).astype(float)  # [R, K+2]
        accuracy = right.mean(axis=0, dtype=float)  # [K+2]
        self.counts["other" if answers.class_id in self._other_draws else "own"] += 1
        if answers.class_id in self._other_draws:
            self._add_other(answers.class_id, n, accuracy, replicates)
        else:
            self._add_own(answers, accuracy, replicates, weights)

    def _add_other(self, class_id: int, n: int, accuracy: Floats, replicates: Floats) -> None:
        draws, bank = self._other_draws[class_id], slice(1, len(self.bank) + 1)
        self.cells["clean_other"].add(accuracy[0], replicates[:, 0], draws)
        numerator = draws * (self._draws * replicates[:, bank]).sum(axis=1)
        denominator = draws * self._draws.sum(axis=1)
        means = replicates[:, bank].mean(axis=1)
        self.cells["unmatched_other"].add(accuracy[bank].mean(), means, draws, class_part=(numerator, denominator))
        self.pictures.update(clean_other=n, unmatched_other=n)

    def _add_own(
        self, answers: _ClassAnswers, accuracy: Floats, replicates: Floats, weights: NDArray[np.floating[Any]]
    ) -> None:
        row, n, right = self.bank.index(answers.class_id), len(answers.predictions), answers.right
        own, draws = row + 1, self._draws[:, row]
        columns = {"clean": 0, "matched": own} | (
            {"noise": len(self.bank) + 1} if NOISE in self._store.occluders else {}
        )
        for name, column in columns.items():
            self.cells[name].add(accuracy[column], replicates[:, column], draws)
            self.pictures[name] += n
        if len(self.bank) > 1:
            column = self.permutation[row] + 1
            self.cells["permuted"].add(accuracy[column], replicates[:, column], draws)
            self.pictures["permuted"] += n
            self._add_unmatched(row, accuracy, replicates, draws)
            self.pictures["unmatched"] += n
        had, fooled = right[:, 0], right[:, 0] * (1 - right[:, own])
        if had.any():
            had_replicates = (weights @ had).astype(float) * n
            with np.errstate(invalid="ignore"):
                rates = np.nan_to_num((weights @ fooled).astype(float) * n / had_replicates)
            rate = float(fooled.sum() / had.sum())
            self.cells["fooling_rate"].add(rate, rates, draws, float(had.sum()), replicate_weights=had_replicates)
            self.pictures["fooling_rate"] += int(had.sum())
        self.classes.append(_class_row(answers, own, accuracy, self._store.run))

    def _add_unmatched(self, row: int, accuracy: Floats, replicates: Floats, draws: Floats) -> None:
        # unmatched = mean over k of the mean over c ≠ k of accuracy[k, c]; this class adds its part to every k ≠ c.
        bank, others = slice(1, len(self.bank) + 1), np.arange(len(self.bank)) != row
        shares = np.where(others, self._shares, 0.0)
        weight = float(shares.sum())
        self.unmatched_by_occluder.add(np.flatnonzero(others), accuracy[bank][others])
        drawn = np.einsum("rk,rk->r", self._draws, replicates[:, bank]) - draws * replicates[:, row + 1]
        self.cells["unmatched"].add(
            float(accuracy[bank] @ shares) / weight,
            replicates[:, bank] @ shares / weight,
            draws,
            weight,
            class_part=(draws * drawn, draws * (self._draws.sum(axis=1) - draws)),
        )


class _ByOccluder:
    """Mean accuracy of each occluder on pictures of the bank's other classes."""

    def __init__(self, count: int) -> None:
        self._sum, self._classes = np.zeros(count), np.zeros(count)

    def add(self, rows: NDArray[np.intp], accuracy: Floats) -> None:
        self._sum[rows] += accuracy
        self._classes[rows] += 1

    def value(self, row: int) -> float | None:
        return float(self._sum[row] / self._classes[row]) if self._classes[row] else None


def _class_row(answers: _ClassAnswers, own: int, accuracy: Floats, run: Run) -> ClassRow:
    """Describe one class, except for what the pictures of other classes say of its occluder."""
    n, matched, key = len(answers.predictions), answers.predictions[:, own], str(answers.class_id)
    wrong = Counter(matched[matched != answers.class_id].tolist())
    interval = binomtest(n - wrong.total(), n).proportion_ci(method="wilson")
    top = [
        WrongLabel(label, name_of(label, run.num_classes, run.folders), count / wrong.total())
        for label, count in wrong.most_common(1)
    ]
    return ClassRow(
        class_id=answers.class_id,
        folder=run.folders[key],
        name=run.class_names[key],
        pictures=n,
        clean=float(accuracy[0]),
        matched=float(accuracy[own]),
        matched_wilson95=(float(interval.low), float(interval.high)),
        top_wrong_label=top[0] if top else None,
        unmatched_by_occluder=None,
    )


def summarize(store: RunStore, *, replicates: int = REPLICATES, seed: int = 0) -> Results:
    """Compute the numbers of `summary.json` from the answers of a store whose blocks are all done.

    Parameters
    ----------
    replicates
        R, of both bootstraps.
    seed
        Seed of the bootstraps and of the permutation.

    Raises
    ------
    InputError
        A block of the store is damaged.
    """
    tally = _Tally(store, replicates, seed)
    for answers in _answers(store):
        tally.add(answers)
    estimates = {name: mean.estimate() for name, mean in tally.cells.items()}
    own, pictures = tally.counts["own"], tally.pictures
    shares = [row.top_wrong_label.share for row in tally.classes if row.top_wrong_label]
    by_occluder = (tally.unmatched_by_occluder.value(tally.bank.index(row.class_id)) for row in tally.classes)
    return Results(
        **{
            name: estimates[name].accuracy(tally.counts["other" if "other" in name else "own"], pictures[name])
            for name in tally.CELLS
        },
        ratios={
            "matched/clean": (estimates["matched"] / estimates["clean"]).ratio(own),
            "unmatched/clean": (estimates["unmatched"] / estimates["clean"]).ratio(own),
        },
        fooling_rate=estimates["fooling_rate"].rate(own, pictures["fooling_rate"]),
        largest_wrong_label_share=LabelShare(float(np.mean(shares)), len(shares)) if shares else None,
        classes=tuple(
            replace(row, unmatched_by_occluder=value) for row, value in zip(tally.classes, by_occluder, strict=True)
        ),
    )
