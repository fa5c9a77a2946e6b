"""Pairs against what `parity_pairs` promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gfo.engine.parity.pairs import CLEAN, MATCHED, UNMATCHED, ParityPairs, parity_pairs
from gfo.export.errors import InputError


def listed(pairs: ParityPairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.image_index.tolist(), pairs.occluder_index.tolist(), pairs.kind.tolist(), strict=True))


@st.composite
def requests(draw: st.DrawFn) -> tuple[Tensor | None, list[int], int, int, int]:
    pictures, rows = draw(st.integers(1, 30)), draw(st.integers(1, 8))
    class_ids = draw(st.permutations(range(12)))[:rows]
    labels = draw(st.none() | st.lists(st.integers(0, 11), min_size=pictures, max_size=pictures))
    wanted = None if labels is None else torch.tensor(labels)
    return wanted, class_ids, pictures, draw(st.integers(3, 400)), draw(st.integers(0, 2**32))


@settings(max_examples=150, derandomize=True)
@given(requests())
def test_pairs_are_different_and_of_their_kind(request: tuple[Tensor | None, list[int], int, int, int]) -> None:
    labels, class_ids, pictures, wanted, _ = request
    pairs = parity_pairs(*request)
    assert [t.dtype for t in (pairs.image_index, pairs.occluder_index, pairs.kind)] == [*[torch.int64] * 2, torch.int8]
    assert listed(pairs) == listed(parity_pairs(*request))
    everything = set()
    for image in range(pictures):
        everything.add((image, 0, CLEAN))
        for row, class_id in enumerate(class_ids):
            own = labels is not None and int(labels[image]) == class_id
            everything.add((image, row + 1, MATCHED if own else UNMATCHED))
    assert set(listed(pairs)) <= everything
    assert len(set(listed(pairs))) == len(pairs) == min(wanted, len(everything))
    counts, most = (np.bincount([kind for _, _, kind in of], minlength=3) for of in (listed(pairs), everything))
    lacking = counts < most  # a kind that is not used up has as many as any, or one fewer
    assert all(counts[kind] >= counts.max() - 1 for kind in np.flatnonzero(lacking))
    # A picture gets another unmatched row only when every picture that has one more has got as many.
    each, most_each = (
        np.bincount([image for image, _, kind in of if kind == UNMATCHED], minlength=pictures)
        for of in (listed(pairs), everything)
    )
    assert (each >= np.minimum(most_each, each.max() - 1)).all()


def test_equal_thirds_on_the_same_pictures() -> None:
    labels = torch.arange(100) % 4
    pairs = parity_pairs(labels, [2, 0, 3, 1], 100, 90, seed=5)
    images = [set(pairs.image_index[pairs.kind == kind].tolist()) for kind in range(3)]
    assert [len(i) for i in images] == [30, 30, 30]
    assert images[0] == images[1] == images[2]
    assert images[0] != set(parity_pairs(labels, [2, 0, 3, 1], 100, 90, seed=6).image_index.tolist())
    assert pairs.kind.tolist() != sorted(pairs.kind.tolist())
    assert set(pairs.occluder_index[pairs.kind == UNMATCHED].tolist()) == {1, 2, 3, 4}


def test_more_pairs_than_pictures_give_once() -> None:
    pairs = parity_pairs(torch.tensor([7, 8, 9, 1]), [7, 8, 9], 4, 12, seed=0)  # 1 is in no row
    assert np.bincount(pairs.kind).tolist() == [4, 3, 5]
    assert len(parity_pairs(torch.tensor([7, 8, 9, 1]), [7, 8, 9], 4, 1000, seed=0)) == 4 * 4


def test_one_row_has_no_unmatched_pair_for_its_class_and_no_labels_no_matched_one() -> None:
    one = parity_pairs(torch.full((10,), 3), [3], 10, 16, seed=0)
    assert np.bincount(one.kind, minlength=3).tolist() == [8, 8, 0]
    unlabelled = parity_pairs(None, [3, 4], 10, 16, seed=0)
    assert np.bincount(unlabelled.kind, minlength=3).tolist() == [8, 0, 8]


@pytest.mark.parametrize(("pictures", "pairs"), [(0, 9), (5, 2), (5, 0)])
def test_nothing_to_compare_is_refused(pictures: int, pairs: int) -> None:
    with pytest.raises(InputError, match=f"{pairs} pairs of {pictures} pictures"):
        parity_pairs(None, [0], pictures, pairs, 0)


def test_labels_of_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each of 5"):
        parity_pairs(torch.zeros(4, dtype=torch.int64), [0], 5, 9, 0)
