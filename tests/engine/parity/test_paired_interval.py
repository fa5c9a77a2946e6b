"""The interval against published values, brute force and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.engine.parity.paired_interval import paired_interval


def differences(better: int, worse: int, n: int) -> np.ndarray:
    return np.repeat([1, -1, 0], [better, worse, n - better - worse])


def interval(better: int, worse: int, n: int) -> tuple[float, float]:
    low, high, effect = paired_interval(differences(better, worse, n), np.arange(n))
    assert effect == 1.0
    return low, high


@pytest.mark.parametrize(
    ("better", "worse", "n", "published"),
    [
        (9, 3, 32, (-0.027, 0.390)),  # Tango 1998
        (16, 8, 86, (-0.020, 0.207)),  # Agresti and Min 2005
        (1, 7, 21, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014
    ],
)
def test_tango_as_published(better: int, worse: int, n: int, published: tuple[float, float]) -> None:
    assert interval(better, worse, n) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("counts", [(3, 1, 40), (0, 2, 15), (5, 5, 10), (6, 0, 6), (0, 6, 6), (0, 0, 7)])
def test_tango_is_the_score_test_inverted(counts: tuple[int, int, int]) -> None:
    """By brute force: for δ on a grid, the likeliest share of `worse` on a grid, and the test with it."""
    better, worse, n = counts
    kept, neither = [], n - better - worse
    for delta in np.linspace(-0.999, 0.999, 667):
        share = np.linspace(max(0.0, -delta), (1 - delta) / 2, 2001)
        rest = np.clip(1 - 2 * share - delta, 0, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = zip((worse, better, neither), (share, share + delta, rest), strict=True)
            likelihood = sum(np.where(count > 0, count * np.log(p), 0.0) for count, p in terms if count)
        q = share[np.nanargmax(likelihood)]
        if (better - worse - n * delta) ** 2 <= 1.96**2 * n * (2 * q + delta - delta**2):
            kept.append(delta)
    assert interval(better, worse, n) == pytest.approx((kept[0], kept[-1]), abs=0.004)


@pytest.mark.parametrize("n", [1, 3, 100, 8000])
def test_no_disagreement_has_a_width(n: int) -> None:
    bound = 1.959964**2 / (n + 1.959964**2)
    assert interval(0, 0, n) == pytest.approx((-bound, bound))


@settings(derandomize=True)
@given(st.integers(1, 60), st.data())
def test_interval_holds_the_difference_and_mirrors(n: int, data: st.DataObject) -> None:
    difference = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)))
    picture = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    low, high, effect = paired_interval(difference, picture)
    assert -1 <= low <= difference.mean() + 1e-9
    assert difference.mean() - 1e-9 <= high <= 1
    assert high - low > 1e-6
    assert effect >= 1
    assert paired_interval(-difference, picture) == pytest.approx((-high, -low, effect))


def test_design_effect_is_the_ratio_of_variances() -> None:
    """Against loops, with enough disagreement for the added z² not to matter."""
    rng = np.random.default_rng(0)
    picture = np.repeat(np.arange(2000), 4)
    difference = np.where(rng.random(8000) < 0.5, rng.choice([-1, 0, 1], 2000)[picture], rng.choice([-1, 0, 1], 8000))
    means = [difference[picture == i].mean() for i in range(2000)]
    wanted = (np.var(means, ddof=1) / 2000) / (np.var(difference, ddof=1) / 8000)
    assert paired_interval(difference, picture)[2] == pytest.approx(wanted, rel=2e-3)


def test_design_effect_of_a_few_pictures_by_hand() -> None:
    """Pairs (1, 1), (0, 0), (0, 0): the rest is ±2/3, ∓1/3; together 2.667 · 3/2, apart 1.333 · 6/5, 2 pairs each."""
    effect = paired_interval(np.array([1, 1, 0, 0, 0, 0]), np.array([4, 4, 5, 5, 9, 9]))[2]
    assert effect == pytest.approx((4 + 3.841459 * 2) / (1.6 + 3.841459))


def test_pairs_of_a_picture_that_always_agree_count_once() -> None:
    once = differences(12, 3, 150)
    assert paired_interval(np.tile(once, 6), np.tile(np.arange(150), 6))[2] == pytest.approx(6, rel=0.01)
    nothing = paired_interval(np.zeros(900, dtype=np.int64), np.tile(np.arange(150), 6))
    assert nothing[:2] == pytest.approx(interval(0, 0, 150))
    single = paired_interval(differences(5, 0, 9), np.zeros(9, dtype=np.int64))
    assert single[2] == 9.0


@pytest.mark.parametrize(
    ("pictures", "each", "better", "worse", "alike"),
    [(300, 1, 0.03, 0.02, 0.0), (300, 1, 0.01, 0.0, 0.0), (400, 6, 0.02, 0.01, 0.0), (400, 6, 0.03, 0.01, 0.7)],
)
def test_simulated_coverage(pictures: int, each: int, better: float, worse: float, alike: float) -> None:
    """At least 95 % but for chance (600 runs: ±1.8 points), whether or not the pairs of a picture are alike."""
    rng = np.random.default_rng(1)
    picture, chances = np.repeat(np.arange(pictures), each), [worse, 1 - better - worse, better]
    covered = 0
    for _ in range(600):
        common, own = (rng.choice([-1, 0, 1], size, p=chances) for size in (pictures, pictures * each))
        difference = np.where(rng.random(pictures * each) < alike, common[picture], own)
        low, high, _ = paired_interval(difference, picture)
        covered += low <= better - worse <= high
    assert 0.932 <= covered / 600 <= 0.99
