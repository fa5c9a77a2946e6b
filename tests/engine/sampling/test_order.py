"""The order of pairs: each once, prefixes that agree, uniform."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from gfo.engine.sampling.order import Order


@given(st.integers(0, 3000), st.integers(0, 5), st.data())
def test_a_longer_answer_begins_with_a_shorter_one(total: int, seed: int, data: st.DataObject) -> None:
    order = Order(total, seed, 1)
    counts = data.draw(st.lists(st.integers(0, total), max_size=4))
    whole = Order(total, seed, 1).first(total)
    assert sorted(whole.tolist()) == list(range(total))
    for count in counts:
        assert np.array_equal(order.first(count), whole[:count])


def test_every_number_is_as_likely_at_every_place() -> None:
    orders = np.array([Order(6, seed).first(6) for seed in range(3000)])
    for place in range(6):
        assert chisquare(np.bincount(orders[:, place], minlength=6)).pvalue > 1e-4
    after = np.bincount(orders[orders[:, 2] == 0][:, 3], minlength=6)[1:]  # the halves are joined between these
    assert chisquare(after).pvalue > 1e-4


def test_seeds_and_cells_have_orders_of_their_own() -> None:
    first = [Order(1000, *seed).first(50).tolist() for seed in ((0, 0), (0, 1), (1, 0))]
    assert first[0] != first[1] != first[2] != first[0]


def test_a_billion_pairs_cost_nothing_until_they_are_drawn() -> None:
    drawn = Order(10**12, 0).first(5000)
    assert len(np.unique(drawn)) == 5000
    assert abs(drawn.mean() / 10**12 - 0.5) < 0.02
