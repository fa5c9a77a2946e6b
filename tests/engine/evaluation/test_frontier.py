"""The frontier against lines through its points, and its intervals against replicates interpolated one by one."""

from __future__ import annotations

import numpy as np
import pytest

from gfo.engine.evaluation.bootstrap import Bootstrapped
from gfo.engine.evaluation.frontier import Quotients, crossing, frontier
from gfo.engine.evaluation.results import MARKS


def run(matched: Bootstrapped, unmatched: Bootstrapped, classes: int = 9) -> Quotients:
    return {
        "matched/clean": (matched, classes),
        "unmatched/clean": (unmatched, classes),
        "unmatched_preserved/clean": (unmatched, 0),
        "unmatched_unseen/clean": (unmatched, 1),
    }


def without_spread(value: float) -> Bootstrapped:
    return Bootstrapped(value, np.full(40, value), np.full(40, value))


def test_points_are_joined_by_lines_from_strength_0() -> None:
    curve = {1.0: (0.25, 0.55), 0.5: (0.6, 0.9)}  # as they may come
    found = frontier(
        {
            strength: run(without_spread(matched), without_spread(unmatched))
            for strength, (matched, unmatched) in curve.items()
        }
    )
    assert found.strengths == (0.5, 1.0)
    assert found.unmatched["0.2"] is None
    for mark in ("0.3", "0.4"):
        ratio = found.unmatched[mark]
        assert ratio
        wanted = np.interp(float(mark), [0.25, 0.6, 1.0], [0.55, 0.9, 1.0])
        assert ratio.value == pytest.approx(wanted)
        assert ratio.ci95_pictures == pytest.approx((wanted, wanted))
        assert ratio.ci95_classes == pytest.approx((wanted, wanted))
        other = found.unmatched_unseen[mark]
        assert other
        assert (other.value, other.ci95_classes) == (ratio.value, None)  # of a single class


def test_a_single_step_from_strength_0_and_a_point_on_the_mark() -> None:
    assert crossing(0.3, np.array([[0.1, 0.3, 0.5]]), np.array([[0.5, 0.6, 0.7]])) == pytest.approx(
        [1 - 0.7 / 0.9 * 0.5, 0.6, np.nan], nan_ok=True
    )


def test_the_first_crossing_counts_where_a_curve_turns() -> None:
    matched, unmatched = np.array([[0.5], [0.2], [0.4], [0.1]]), np.array([[0.9], [0.6], [0.5], [0.2]])
    assert crossing(0.3, matched, unmatched) == pytest.approx([0.7])


def test_replicates_are_interpolated_one_by_one() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.02, 400)  # what resampling does to all strengths alike
    points = {}
    for strength, (matched, unmatched) in {0.5: (0.5, 0.9), 1.0: (0.2, 0.6)}.items():
        points[strength] = [Bootstrapped(v, v + shared, v + 2 * shared) for v in (matched, unmatched)]
    found = frontier({strength: run(*pair) for strength, pair in points.items()}).unmatched["0.3"]
    assert found
    assert found.value == pytest.approx(0.7)
    for interval, scale in ((found.ci95_pictures, 1), (found.ci95_classes, 2)):
        # Both ratios move by the same, and the line between them has slope 1.
        at_mark = [np.interp(0.3, [0.2 + d, 0.5 + d, 1], [0.6 + d, 0.9 + d, 1]) for d in scale * shared]
        assert interval == pytest.approx(np.percentile(at_mark, [2.5, 97.5]))


@pytest.mark.parametrize(("short", "known"), [(10, True), (11, False)])
def test_an_interval_needs_the_replicates_that_reach_the_mark(short: int, known: bool) -> None:
    """Without more than 2.5 % of them it would be cut off."""
    matched = np.full(400, 0.25)
    matched[:short] = 0.35
    pictures = Bootstrapped(0.25, matched, np.full(400, np.nan))
    found = frontier({1.0: run(pictures, Bootstrapped(0.5, matched + 0.25, matched))})
    assert all(found.unmatched[mark] is None for mark in MARKS[:1])
    at_mark = found.unmatched["0.3"]
    assert at_mark
    assert (at_mark.ci95_pictures is not None) == known
    assert at_mark.ci95_classes is None
