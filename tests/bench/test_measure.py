"""The measuring core: statistics against numpy and scipy, turns taken in order, under a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from gfo.bench.ceilings import bandwidth
from gfo.bench.measure import MIN_ROUNDS, Timer, extra_mb, measure, ratio, ratio_of_totals, timer, with_rates
from gfo.bench.rows import BenchRow, Facts, Ratio

ROW = BenchRow(stage="pairs", engine="torch", precision="fp32", unit="pairs/s", facts=Facts())


class Clock:
    """Stands still but for the calls that `taking` makes; `log` has their names in order."""

    def __init__(self) -> None:
        self.time = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.time

    def taking(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes these seconds, in turn and then the last for ever."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_seconds_are_the_mean_of_the_calls():
    clock = Clock()
    assert Timer(clock).seconds(clock.taking("a", 1.0, 2.0, 6.0), 3) == pytest.approx(3.0)


def test_alternatives_take_turns_after_all_are_warm():
    clock = Clock()
    calls = {"a": clock.taking("a", 0.5, 0.002), "b": clock.taking("b", 0.001)}
    times = measure(calls, seconds=0.1, timer=Timer(clock))
    # Samples of 5 ms are 3 calls of a and 5 of b; the slow first call of a, which compiles, does not count.
    assert clock.log.index("b") == 1 + 5
    turns = "".join(clock.log[1 + 5 + 1 + 10 :])
    rounds = len(times["a"])
    assert turns == "aaabbbbb" * rounds
    assert rounds == 10  # of 11 ms
    assert times["a"] == pytest.approx(np.full(rounds, 0.002))
    assert times["b"] == pytest.approx(np.full(rounds, 0.001))


def test_slow_calls_still_get_their_rounds():
    clock = Clock()
    times = measure({"a": clock.taking("a", 10.0), "b": clock.taking("b", 5.0)}, seconds=0.1, timer=Timer(clock))
    assert [len(values) for values in times.values()] == [MIN_ROUNDS, MIN_ROUNDS]
    assert clock.log[4:] == ["a", "b"] * MIN_ROUNDS


def test_a_long_budget_gives_longer_samples_not_ever_more():
    clock = Clock()
    times = measure({"a": clock.taking("a", 1e-3), "b": clock.taking("b", 1e-3)}, seconds=20, timer=Timer(clock))
    assert len(times["a"]) == pytest.approx(200, abs=10)


def test_nothing_to_measure():
    assert measure({}, seconds=1.0, timer=Timer(Clock())) == {}


def holds(found: Ratio, value: float) -> bool:
    """Whether the interval holds a value."""
    assert found.low is not None
    assert found.high is not None
    return found.low <= value <= found.high


def test_ratio_agrees_with_scipy():
    rng = np.random.RandomState(0)
    others = rng.normal(100, 5, 60)
    rates = 2 * rng.normal(100, 5, 60)
    found = ratio(rates, "bare", others)
    assert found.to == "bare"
    assert found.median == pytest.approx(np.median(rates) / np.median(others))
    assert holds(found, 2.0)
    wanted = stats.bootstrap(
        (rates, others),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=width / 5)
    assert found.high == pytest.approx(wanted.high, abs=width / 5)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.RandomState(0)
    found = [ratio(rng.lognormal(np.log(200), 0.1, 40), "b", rng.lognormal(np.log(100), 0.1, 40)) for _ in range(200)]
    # 95% of 200, less three standard deviations of a binomial.
    assert sum(holds(one, 2.0) for one in found) >= 190 - 10


def test_what_slows_a_whole_round_does_not_widen_the_interval():
    others = np.random.RandomState(0).uniform(10, 1000, 30)
    found = ratio(2 * others, "bare", others)
    assert (found.median, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_ratio_is_the_same_every_time():
    rng = np.random.RandomState(0)
    rates, others = rng.uniform(1, 2, 9), rng.uniform(1, 2, 9)
    assert ratio(rates, "b", others) == ratio(rates, "b", others)


def test_a_ratio_of_totals_weighs_rounds_by_what_they_take():
    seconds, others = np.array([1.0, 2.0, 7.0]), np.array([10.0, 10.0, 10.0])
    found = ratio_of_totals(seconds, "b", others)
    assert (found.to, found.median) == ("b", 3.0)
    # Drawn with replacement: some draws are three times the round of ten times, or that of 10/7.
    assert (found.low, found.high) == pytest.approx((10 / 7, 10.0))
    few = ratio_of_totals(seconds[:2], "b", others[:2])
    assert few == Ratio("b", 20 / 3, None, None)


def test_row_gets_its_percentiles():
    rates = np.random.RandomState(0).uniform(1, 2, 33)
    against = Ratio("bare", 1.0, 0.9, 1.1)
    row = with_rates(ROW, rates, against)
    assert (row.p20, row.p50, row.p80) == pytest.approx((*np.percentile(rates, (20, 50, 80)),))
    assert (row.rounds, row.ratio, row.engine) == (33, against, "torch")
    assert row.peak_rss_mb is None or row.peak_rss_mb > 10


def test_extra_memory_is_the_most_that_is_held_at_once():
    def call() -> torch.Tensor:
        first = torch.ones(1 << 18)  # 1 MiB
        second = first + 1
        del first
        return second + 1

    assert extra_mb(call, "cpu") == pytest.approx(2.0, abs=1e-3)
    assert extra_mb(lambda: None, "cpu") == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_events_tell_the_time_of_a_gpu():
    block = torch.ones(1 << 28, dtype=torch.uint8, device="cuda")
    times = measure({"copy": block.clone, "nothing": lambda: None}, seconds=0.2, timer=timer("cuda"))
    assert np.median(times["copy"]) > np.median(times["nothing"])
    assert extra_mb(block.clone, "cuda") == pytest.approx(256, abs=4)
    assert bandwidth("cuda") > 0
