"""The frontier of a bank: what is left of unmatched accuracy at the strength at which matched falls to a mark.

Banks differ in strength as they are; at equal matched/clean they can be compared. Between neighbouring strengths both
ratios are interpolated linearly; strength 0 is the point (1, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from .bootstrap import MOST_MISSING, Bootstrapped, Floats
from .results import MARKS, Frontier, MarkName, Marks, RatioName

Quotients: TypeAlias = Mapping[RatioName, tuple[Bootstrapped, int]]
"""Ratios of a run with their replicates, and how many classes each rests on."""


def frontier(runs: Mapping[float, Quotients]) -> Frontier:
    """Compute the frontier of one bank.

    Parameters
    ----------
    runs
        Ratios by strength, whose replicates resample alike.
    """
    first = next(iter(runs.values()))

    def marks(name: RatioName) -> Marks:
        return {mark: found.ratio(first[name][1]) for mark, found in at_marks(runs, name).items()}

    return Frontier(
        strengths=tuple(sorted(runs)),
        unmatched=marks("unmatched/clean"),
        unmatched_unseen=marks("unmatched_unseen/clean"),
    )


def at_marks(runs: Mapping[float, Quotients], name: RatioName) -> dict[MarkName, Bootstrapped]:
    """Return a ratio where matched/clean is at each mark, with its replicates; NaN where the mark is not reached."""
    found = [runs[strength] for strength in sorted(runs)]
    matched, unmatched = [run["matched/clean"][0] for run in found], [run[name][0] for run in found]
    return {mark: _at(float(mark), matched, unmatched) for mark in MARKS}


def _at(mark: float, matched: Sequence[Bootstrapped], unmatched: Sequence[Bootstrapped]) -> Bootstrapped:
    def points(of: Sequence[Bootstrapped], kind: str) -> Floats:
        return np.stack([np.atleast_1d(np.asarray(getattr(one, kind), dtype=float)) for one in of])

    value, pictures, of_classes = (
        (points(matched, kind), points(unmatched, kind)) for kind in ("value", "pictures", "classes")
    )
    return Bootstrapped(float(crossing(mark, *value)[0]), _supported(mark, *pictures), _supported(mark, *of_classes))


def _supported(mark: float, matched: Floats, unmatched: Floats) -> Floats:
    """Return the replicates at a mark, [R]; all NaN where too many of them do not reach it."""
    found = crossing(mark, matched, unmatched)
    defined = np.isfinite(matched).all(axis=0) & np.isfinite(unmatched).all(axis=0)
    unreached = ~np.isfinite(found[defined])
    return np.full_like(found, np.nan) if unreached.sum() > MOST_MISSING * len(unreached) else found


def crossing(mark: float, matched: Floats, unmatched: Floats) -> Floats:
    """Interpolate `unmatched` where `matched` first falls to a mark below 1.

    Parameters
    ----------
    matched, unmatched
        Ratios [S, N] of S growing strengths; strength 0, at which both are 1, is added.

    Returns
    -------
    Floats
        [N], NaN where the mark is not reached.
    """
    start = np.ones((1, matched.shape[1]))
    matched, unmatched = np.concatenate([start, matched]), np.concatenate([start, unmatched])
    with np.errstate(invalid="ignore"):
        reached = matched <= mark
    after, every = reached.argmax(axis=0), np.arange(matched.shape[1])
    before = np.maximum(after - 1, 0)
    high, low = matched[before, every], matched[after, every]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (high - mark) / (high - low)
        found = unmatched[before, every] + share * (unmatched[after, every] - unmatched[before, every])
    return np.where(reached.any(axis=0), found, np.nan)
