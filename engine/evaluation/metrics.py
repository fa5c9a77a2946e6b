"""Accuracies of a run with bootstrap intervals: the cells of Tables S1 and S2, controls, fooling rate.

Everything streams class by class, and a class chunk by chunk: memory does not grow with the pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ...export.errors import InputError
from .bootstrap import ClassMean, Floats
from .class_answers import ClassAnswers, bank_ids, class_answers, class_order
from .frontier import Quotients, frontier
from .resampling import ClassSums
from .results import ClassRow, LabelShare, RatioName, Results, WrongLabel
from .store import NOISE, RunStore
from .summary import Run

REPLICATES = 1000

# Each unmatched cell, with the clean one over the same classes.
_CLEAN_OF: Final[Mapping[str, str]] = {
    "unmatched": "clean",
    "unmatched_other": "clean_other",
    "unmatched_preserved": "clean_preserved",
    "unmatched_unseen": "clean_unseen",
}
# Each ratio, with the cell above.
_ABOVE: Final[Mapping[RatioName, str]] = {
    "matched/clean": "matched",
    "unmatched/clean": "unmatched",
    "unmatched_preserved/clean": "unmatched_preserved",
    "unmatched_unseen/clean": "unmatched_unseen",
}


@dataclass(frozen=True)
class _Group:
    """Classes on whose pictures every occluder but their own is judged, and the cells that are over them.

    `shares` [K] has for each occluder one over the number of those classes, its own not among them.
    """

    cells: tuple[str, ...]
    classes: frozenset[int]
    shares: Floats


def _groups(store: RunStore, bank: Sequence[int]) -> list[_Group]:
    """Return the classes with readable pictures that each cell of unmatched pairs is over; cells may share them."""
    present = frozenset(store.labels[store.readable()].tolist())
    preserved = frozenset(store.run.preserved_classes)
    groups = {
        "unmatched": present & set(bank),
        "unmatched_other": present - set(bank),
        "unmatched_preserved": present & preserved,
        "unmatched_unseen": present - preserved,
    }
    cells: dict[frozenset[int], list[str]] = {}
    for name, classes in groups.items():
        cells.setdefault(classes, []).append(name)

    def shares(classes: frozenset[int]) -> Floats:
        return np.array([1 / max(len(classes - {k}), 1) for k in bank])

    return [_Group(tuple(names), classes, shares(classes)) for classes, names in cells.items()]


@dataclass(frozen=True)
class _ClassNumbers:
    """What is known of a class, and the replicates' draws of it, [R].

    `row` is the class's own among the bank's rows, None for a class beyond the bank.
    """

    row: int | None
    sums: ClassSums
    draws: Floats


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

    CELLS = ("matched", "permuted", "noise", *_CLEAN_OF, *_CLEAN_OF.values())

    def __init__(self, store: RunStore, replicates: int, seed: int) -> None:
        self._store = store
        self._rng = np.random.default_rng(seed)
        self._replicates = replicates
        self.bank = bank_ids(store)
        self._groups = _groups(store, self.bank)
        self._permutation = derangement(len(self.bank), seed)
        self._draws = self._draw(len(self.bank))
        others = [i for i in class_order(store) if i not in self.bank]
        self._other_draws = dict(zip(others, self._draw(len(others)).T, strict=True)) if others else {}
        self._cells = {name: ClassMean(replicates) for name in (*self.CELLS, "fooling_rate")}
        # A replicate that drew a class often has it in many pairs. The clean cell of classes would not move with an
        # unmatched one, and their ratio would scatter: it divides by the clean cell of the same pairs.
        self._clean_pairs = {name: ClassMean(replicates) for name in _ABOVE.values() if name in _CLEAN_OF}
        self._pictures: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()  # how many a cell rests on
        self._rows: list[ClassRow] = []
        self._unmatched_by_occluder = _ByOccluder(len(self.bank))

    def _draw(self, count: int) -> Floats:
        """Draw how often each of `count` classes is in each replicate, [R, count]."""
        if count == 0:
            return np.zeros((self._replicates, 0))
        return self._rng.multinomial(count, np.full(count, 1 / count), size=self._replicates).astype(float)

    def add(self, answers: ClassAnswers) -> None:
        row = self.bank.index(answers.class_id) if answers.class_id in self.bank else None
        sums = ClassSums(answers, None if row is None else row + 1, self._replicates, self._rng)
        draws = self._draws[:, row] if row is not None else self._other_draws[answers.class_id]
        found = _ClassNumbers(row, sums, draws)
        if row is not None:
            self._add_own(row, found)
            self._rows.append(_class_row(answers.class_id, row + 1, sums, self._store.run))
        for group in self._groups:
            if answers.class_id in group.classes:
                self._add_pairs(group, found)

    def _add(self, name: str, pictures: int, *numbers: Any, **further: Any) -> None:
        self._cells[name].add(*numbers, **further)
        self._pictures[name] += pictures
        self._classes[name] += 1

    def _add_own(self, row: int, found: _ClassNumbers) -> None:
        sums, noise = found.sums, len(self.bank) + 1
        columns = {"clean": 0, "matched": row + 1}
        if NOISE in self._store.occluders:
            columns["noise"] = noise
        if self._permutation:
            columns["permuted"] = self._permutation[row] + 1
        for name, column in columns.items():
            self._add(name, sums.pictures, sums.accuracy[column], sums.replicates[:, column], found.draws)
        others = np.arange(len(self.bank)) != row
        self._unmatched_by_occluder.add(np.flatnonzero(others), sums.accuracy[1:noise][others])
        if sums.had:
            with np.errstate(invalid="ignore"):
                rates = np.nan_to_num(sums.fooled_replicates / sums.had_replicates)
            # In float32, so that the rate is that of older summaries to the last bit.
            rate, had = float(np.float32(sums.fooled) / np.float32(sums.had)), sums.had_replicates
            self._add("fooling_rate", sums.had, rate, rates, found.draws, float(sums.had), replicate_weights=had)

    def _add_pairs(self, group: _Group, found: _ClassNumbers) -> None:
        # The cell is the mean over k of the mean over c ≠ k of accuracy[k, c]; this class adds its part to every k ≠ c.
        bank = slice(1, len(self.bank) + 1)
        shares = group.shares.copy()
        if found.row is not None:
            shares[found.row] = 0.0
        weight = float(shares.sum())
        if weight == 0:
            return
        occluders = self._draws * shares  # [R, K], how much each replicate has of every occluder
        drawn = found.draws * occluders.sum(axis=1)
        accuracy, replicates = found.sums.accuracy[bank], found.sums.replicates[:, bank]
        part = found.draws * np.einsum("rk,rk->r", occluders, replicates), drawn
        mean, means = float(accuracy @ shares) / weight, replicates @ shares / weight
        for name in group.cells:
            self._add(name, found.sums.pictures, mean, means, found.draws, weight, class_part=part)
            self._add_clean(name, found, weight, drawn)

    def _add_clean(self, name: str, found: _ClassNumbers, weight: float, drawn: Floats) -> None:
        """Add what the pictures of pairs say without an occluder."""
        accuracy, replicates = found.sums.accuracy[0], found.sums.replicates[:, 0]
        if name in self._clean_pairs:
            part = drawn * replicates, drawn
            self._clean_pairs[name].add(accuracy, replicates, found.draws, weight, class_part=part)
        if name != "unmatched":  # whose clean cell the own classes make up
            self._add(_CLEAN_OF[name], found.sums.pictures, accuracy, replicates, found.draws, weight)

    def quotients(self) -> Quotients:
        """Return the ratios with their replicates, and how many classes each rests on."""

        def below(above: str) -> ClassMean:
            return self._clean_pairs.get(above, self._cells["clean"])

        return {
            name: (self._cells[above].estimate() / below(above).estimate(), self._classes[above])
            for name, above in _ABOVE.items()
        }

    def results(self) -> Results:
        """Return the numbers of the run, without a frontier."""
        estimates = {name: mean.estimate() for name, mean in self._cells.items()}
        cells: Any = {name: estimates[name].accuracy(self._classes[name], self._pictures[name]) for name in self.CELLS}
        ratios: Any = {name: quotient.ratio(classes) for name, (quotient, classes) in self.quotients().items()}
        shares = [row.top_wrong_label.share for row in self._rows if row.top_wrong_label]
        by_occluder = (self._unmatched_by_occluder.value(self.bank.index(row.class_id)) for row in self._rows)
        return Results(
            **cells,
            ratios=ratios,
            fooling_rate=estimates["fooling_rate"].rate(self._classes["clean"], self._pictures["fooling_rate"]),
            largest_wrong_label_share=LabelShare(float(np.mean(shares)), len(shares)) if shares else None,
            classes=tuple(
                replace(row, unmatched_by_occluder=value) for row, value in zip(self._rows, by_occluder, strict=True)
            ),
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


def _class_row(class_id: int, own: int, sums: ClassSums, run: Run) -> ClassRow:
    """Describe one class, except for what the pictures of other classes say of its occluder."""
    n, key, wrong = sums.pictures, str(class_id), sums.wrong
    interval = binomtest(n - wrong.total(), n).proportion_ci(method="wilson")
    top = [WrongLabel(label, run.name_of(label), count / wrong.total()) for label, count in wrong.most_common(1)]
    return ClassRow(
        class_id=class_id,
        folder=run.folders[key],
        name=run.class_names[key],
        pictures=n,
        clean=float(sums.accuracy[0]),
        matched=float(sums.accuracy[own]),
        matched_wilson95=(float(interval.low), float(interval.high)),
        top_wrong_label=top[0] if top else None,
        unmatched_by_occluder=None,
    )


def summarize_strengths(stores: Sequence[RunStore], *, replicates: int = REPLICATES, seed: int = 0) -> list[Results]:
    """Compute the numbers of each store of one bank at several strengths, with their frontier; see `summarize`.

    Raises
    ------
    InputError
        A block of a store is damaged, or one has answers to other pictures than another: nothing is paired then.
    """
    tallies = _tallies(stores, replicates, seed)
    found = frontier({strength: tally.quotients() for strength, tally in tallies.items()})
    return [replace(tally.results(), frontier=found) for tally in tallies.values()]


def quotients_of_strengths(
    stores: Sequence[RunStore], *, replicates: int = REPLICATES, seed: int = 0
) -> dict[float, Quotients]:
    """Compute the ratios of each store, by its strength; arguments and errors as of `summarize_strengths`.

    Two banks of the same classes, evaluated on the same pictures, have replicates that resample alike.
    """
    return {strength: tally.quotients() for strength, tally in _tallies(stores, replicates, seed).items()}


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
    return _tally(store, replicates, seed).results()


def _tallies(stores: Sequence[RunStore], replicates: int, seed: int) -> dict[float, _Tally]:
    readable = stores[0].readable()
    for store in stores[1:]:
        if not np.array_equal(store.readable(), readable):
            raise InputError(f"{store.path}: quarantines other pictures than {stores[0].path}; remove one of them")
    return {store.run.strength: _tally(store, replicates, seed) for store in stores}


def _tally(store: RunStore, replicates: int, seed: int) -> _Tally:
    tally = _Tally(store, replicates, seed)
    for answers in class_answers(store):
        tally.add(answers)
    return tally
