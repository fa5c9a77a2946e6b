"""Accuracies of a run and what they are worth: tables S1 and S2, controls, fooling rate, with bootstrap intervals.

Pictures are reused under every occluder and classes by every pair, so pairs are not independent. Two cluster
bootstraps (percentile, 95 %):

- `ci95_pictures`: pictures are resampled within their class; a picture keeps its answers under all occluders.
  It speaks for other pictures of these classes.
- `ci95_classes`: classes are resampled too, each with its occluder and its resampled pictures (in a pair of two classes
  both are drawn; pairs of a class with itself drop out). It speaks for other classes.

Ratios are formed within each replicate. Everything streams class by class: memory does not grow with the pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ..data.folders import name_of
from .store import CLEAN, NOISE, QUARANTINED, RunStore

REPLICATES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _ClassAnswers:
    """The readable pictures of one class: predictions int32 [n, K+2], and whether they are right."""

    class_id: int
    predictions: NDArray[np.int32]

    @property
    def right(self) -> NDArray[np.float32]:
        return (self.predictions == self.class_id).astype(np.float32)


def _bank_ids(store: RunStore) -> list[int]:
    return [int(i) for i in store.occluders if i not in (CLEAN, NOISE)]


def _class_order(store: RunStore) -> list[int]:
    """Bank classes in row order, then the others in picture order."""
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
    """accuracy[k, c]: occluder row k (clean, the bank, noise) on pictures of class c.

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
    """A seeded permutation of 0 … count − 1 without a fixed point, for the `permuted` control; empty for one class."""
    if count < 2:
        return []
    order = np.random.default_rng(seed).permutation(count)
    target = np.empty(count, dtype=int)
    target[order] = np.roll(order, -1)  # one cycle through all
    return target.tolist()


@dataclass(frozen=True)
class _Estimate:
    """A number and its replicates under the two bootstraps, [R] each."""

    value: float
    pictures: Floats
    classes: Floats

    def __truediv__(self, other: _Estimate) -> _Estimate:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(self.value, other.value))
            return _Estimate(value, self.pictures / other.pictures, self.classes / other.classes)

    def to_dict(self, name: str, classes: int) -> dict[str, Any] | None:
        """Null where there is no number, and no interval over classes where there is one class: it tells nothing."""
        if not np.isfinite(self.value):
            return None
        over_classes = _ci95(self.classes) if classes > 1 else None
        return {name: self.value, "ci95_pictures": _ci95(self.pictures), "ci95_classes": over_classes}


def _ci95(replicates: Floats) -> list[float] | None:
    finite = replicates[np.isfinite(replicates)]
    return [float(q) for q in np.percentile(finite, [2.5, 97.5])] if len(finite) else None


class _Mean:
    """Σ weight · part over classes ÷ Σ weight, for the value and for every replicate, fed class by class."""

    def __init__(self, replicates: int) -> None:
        self._value = np.zeros(2)
        self._pictures = np.zeros((2, replicates))
        self._classes = np.zeros((2, replicates))

    def add(
        self,
        value: float,
        replicates: Floats,
        draws: Floats | float,
        weight: float = 1.0,
        *,
        replicate_weights: Floats | None = None,
        class_part: tuple[Floats, Floats] | None = None,
    ) -> None:
        """One class: its value, its [R] picture replicates, and how often each class replicate drew it, [R].

        `replicate_weights` are the [R] weights where they are resampled too (a ratio of sums); `class_part` replaces
        numerator and denominator of the class bootstrap, where the draws of occluders enter as well.
        """
        weights = np.full_like(replicates, weight) if replicate_weights is None else replicate_weights
        self._value += (value * weight, weight)
        self._pictures += (replicates * weights, weights)
        self._classes += class_part or (draws * weights * replicates, draws * weights)

    def estimate(self) -> _Estimate:
        with np.errstate(divide="ignore", invalid="ignore"):
            return _Estimate(*(np.divide(part[0], part[1]) for part in (self._value, self._pictures, self._classes)))


class _Tally:
    """Everything that one pass over the classes collects."""

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
        self.cells = {name: _Mean(replicates) for name in (*self.CELLS, "fooling_rate")}
        self.pictures: Counter[str] = Counter()
        self.classes: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()  # classes with pictures, of the bank's `own` and `other` ones
        self.unmatched_by_occluder = _ByOccluder(len(self.bank))

    def _draw(self, count: int) -> Floats:
        """How often each of `count` classes is drawn, [R, count]."""
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


def _class_row(answers: _ClassAnswers, own: int, accuracy: Floats, run: dict[str, Any]) -> dict[str, Any]:
    """What the report shows of one class. Wilson's interval holds here: the pictures of one cell are independent."""
    n, matched = len(answers.predictions), answers.predictions[:, own]
    wrong = Counter(matched[matched != answers.class_id].tolist())
    top = wrong.most_common(1)
    matched_wrong = wrong.total()
    interval = binomtest(n - matched_wrong, n).proportion_ci(method="wilson")
    name = name_of(top[0][0], run["num_classes"], run["folders"]) if top else ""
    return {
        "class_id": answers.class_id,
        "folder": run["folders"][str(answers.class_id)],
        "name": run["class_names"][str(answers.class_id)],
        "pictures": n,
        "clean": float(accuracy[0]),
        "matched": float(accuracy[own]),
        "matched_wilson95": [float(interval.low), float(interval.high)],
        "top_wrong_label": {"class_id": top[0][0], "name": name, "share": top[0][1] / matched_wrong} if top else None,
    }


def summarize(store: RunStore, *, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Any]:
    """The numbers of `summary.json` (described in the README).

    `clean`, `matched`, `unmatched`, `permuted`, `noise` are over the bank's classes, `*_other` over further ones; a
    cell without pictures is None. `fooling_rate` is the share of pictures that the model has right when clean and wrong
    under their class's occluder; `largest_wrong_label_share` the mean over classes of the most frequent wrong answer's
    share of all wrong matched answers.
    """
    tally = _Tally(store, replicates, seed)
    for answers in _answers(store):
        tally.add(answers)
    estimates = {name: mean.estimate() for name, mean in tally.cells.items()}
    result: dict[str, Any] = {}
    for name in tally.CELLS:
        cell = estimates[name].to_dict("accuracy", tally.counts["other" if "other" in name else "own"])
        result[name] = cell and {**cell, "pictures": tally.pictures[name]}
    result["ratios"] = {
        f"{name}/clean": (estimates[name] / estimates["clean"]).to_dict("value", tally.counts["own"])
        for name in ("matched", "unmatched")
    }
    fooling = estimates["fooling_rate"].to_dict("value", tally.counts["own"])
    result["fooling_rate"] = fooling and {**fooling, "pictures": tally.pictures["fooling_rate"]}
    for row in tally.classes:
        row["unmatched_by_occluder"] = tally.unmatched_by_occluder.value(tally.bank.index(row["class_id"]))
    shares = [row["top_wrong_label"]["share"] for row in tally.classes if row["top_wrong_label"]]
    result["largest_wrong_label_share"] = {"value": float(np.mean(shares)), "classes": len(shares)} if shares else None
    result["classes"] = tally.classes
    return result
