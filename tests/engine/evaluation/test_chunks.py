"""A class in chunks: the same numbers as at once, replicates of the same distribution, and bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from gfo.engine.evaluation.class_answers import CHUNK, ClassAnswers, accuracy_matrix
from gfo.engine.evaluation.metrics import quotients_of_strengths, summarize
from gfo.engine.evaluation.resampling import ClassSums, draws
from gfo.engine.evaluation.results import Results
from gfo.engine.evaluation.store import RunStore

Make = Callable[..., RunStore]
BANK, OTHER = [4, 2, 9], 7
CELLS = ("clean", "matched", "unmatched", "clean_other", "unmatched_other", "permuted", "noise", "fooling_rate")


def summarized(store: RunStore, chunk: int, replicates: int) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gfo.engine.evaluation.class_answers.CHUNK", chunk)
        return summarize(store, replicates=replicates)


def test_a_class_in_one_chunk_is_what_the_plain_formula_says_to_the_last_bit(make: Make, tmp_path: Path) -> None:
    """A summary that exists does not change: the same draws in the same order, rounded alike."""
    generator, counts, R = np.random.default_rng(3), [30, 50, 7, 20], 200
    labels = np.repeat([*BANK, OTHER], counts)
    predictions = np.where(generator.random((len(labels), 5)) < 0.6, labels[:, None], 1)
    store = make(tmp_path, predictions, labels.tolist(), BANK)
    rng, K = np.random.default_rng(0), len(BANK)
    drawn = rng.multinomial(K, np.full(K, 1 / K), size=R).astype(float)
    rng.multinomial(1, [1.0], size=R)  # of the class beyond the bank
    sums = {name: np.zeros((2, 2, R)) for name in ("clean", "matched", "fooling_rate")}  # [bootstrap, over and under]
    for row, (class_id, n) in enumerate(zip(BANK, counts, strict=False)):
        right = (predictions[labels == class_id] == class_id).astype(np.float32)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=R).astype(np.float32) / n
        replicates = (weights @ right).astype(float)
        had = (weights @ right[:, 0]).astype(float) * n
        fooled = (weights @ (right[:, 0] * (1 - right[:, row + 1]))).astype(float) * n
        one = np.ones(R)
        for name, values, of in (
            ("clean", replicates[:, 0], one),
            ("matched", replicates[:, row + 1], one),
            ("fooling_rate", np.nan_to_num(fooled / had), had),
        ):
            sums[name] += [(values * of, of), (drawn[:, row] * of * values, drawn[:, row] * of)]
    found = summarize(store, replicates=R)
    for name, (pictures, classes) in sums.items():
        cell = getattr(found, name)
        assert cell.ci95_pictures == tuple(np.percentile(pictures[0] / pictures[1], [2.5, 97.5])), name
        assert cell.ci95_classes == tuple(np.percentile(classes[0] / classes[1], [2.5, 97.5])), name
    (ratio, _) = quotients_of_strengths([store], replicates=R)[1.0]["matched/clean"]
    of = {name: sums[name][0, 0] / sums[name][0, 1] for name in ("matched", "clean")}
    np.testing.assert_array_equal(ratio.pictures, of["matched"] / of["clean"])


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=4, max_size=4),
    quarantined=st.sets(st.integers(0, 119)),
    chunk=st.sampled_from([1, 2, 3, 7, 16, 29, 30, 31]),
    seed=st.integers(0, 99),
)
def test_what_is_not_drawn_is_the_same_in_any_chunks(
    make: Make,
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    quarantined: set[int],
    chunk: int,
    seed: int,
) -> None:
    """Of classes whose ends lie anywhere, also under pictures that are quarantined."""
    labels, generator = np.repeat([*BANK, OTHER], counts), np.random.default_rng(seed)
    predictions = generator.choice([2, 4, 7, 9], (len(labels), 5))
    broken = dict.fromkeys(sorted(i for i in quarantined if i < len(labels)), "broken")
    store = make(tmp_path_factory.mktemp("store"), predictions, labels.tolist(), BANK, broken)
    found, whole = summarized(store, chunk, 5), summarized(store, CHUNK, 5)
    for name in CELLS:
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert (ours is None) == (theirs is None)
        if ours:
            value = "value" if name == "fooling_rate" else "accuracy"
            assert (getattr(ours, value), ours.pictures) == (getattr(theirs, value), theirs.pictures), name
    assert found.classes == whole.classes
    assert found.largest_wrong_label_share == whole.largest_wrong_label_share
    readable = ~np.isin(np.arange(len(labels)), list(broken))
    for row in found.classes:
        ours = predictions[readable & (labels == row.class_id)]
        own = ours[:, BANK.index(row.class_id) + 1]
        assert row.pictures == len(ours)
        assert (row.clean, row.matched) == ((ours[:, 0] == row.class_id).mean(), (own == row.class_id).mean())
        wrong = Counter(own[own != row.class_id].tolist()).most_common(1)
        assert [t.class_id for t in [row.top_wrong_label] if t] == [label for label, _ in wrong]


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_every_replicate_draws_as_many_pictures_as_there_are(sizes: list[int], seed: int) -> None:
    parts = list(draws(np.random.default_rng(seed), sizes, 20))
    assert [part.shape for part in parts] == [(20, size) for size in sizes]
    drawn = np.concatenate(parts, axis=1)
    assert (drawn >= 0).all()
    assert (drawn.sum(axis=1) == sum(sizes)).all()


@pytest.mark.parametrize("sizes", [[90], [40, 40, 10], [1] * 90, [1, 88, 1]])
def test_draws_are_multinomial_in_any_chunks(sizes: list[int]) -> None:
    """Of any m of n pictures, binomial(n, m / n) are drawn; and two pictures have a covariance of −1 / n."""
    R, n = 20_000, 90
    drawn = np.concatenate(list(draws(np.random.default_rng(7), sizes, R)), axis=1)
    distance = np.sqrt(np.log(2 / 1e-6) / (2 * R))  # Dvoretzky, Kiefer, Wolfowitz, Massart: but once in a million
    for some in (slice(0, 1), slice(89, 90), slice(0, 40), slice(35, 85), slice(0, 90, 2)):
        m = len(range(n)[some])
        values = np.arange(n + 1)
        share = (drawn[:, some].sum(axis=1)[:, None] <= values).mean(axis=0)
        assert np.abs(share - binom.cdf(values, n, m / n)).max() < distance, some
    for i, j in ((0, 1), (0, 89), (39, 40), (79, 80)):
        covariance = ((drawn[:, i] - 1) * (drawn[:, j] - 1)).mean()
        assert covariance == pytest.approx(-1 / n, abs=5 / np.sqrt(R))  # five standard errors of about 1 / √R


@pytest.mark.parametrize("chunk", [CHUNK, 64, 7])
def test_the_interval_of_a_class_in_chunks_is_the_binomial_one(make: Make, tmp_path: Path, chunk: int) -> None:
    """A replicate of an accuracy m / n is binomial(n, m / n) / n, however the class is cut."""
    n, m, R = 200, 130, 4000
    predictions = np.where(np.random.default_rng(5).permutation(n)[:, None] < m, 4, 9) * np.ones((1, 3), dtype=int)
    clean = summarized(make(tmp_path, predictions, [4] * n, [4]), chunk, R).clean
    assert clean
    assert clean.ci95_pictures
    assert (clean.accuracy, clean.pictures) == (m / n, n)
    for bound, q in zip(clean.ci95_pictures, (0.025, 0.975), strict=True):
        aside = 5 * np.sqrt(q * (1 - q) / R)  # of the share of replicates below the quantile, five standard errors
        low, high = (binom.ppf(p, n, m / n) / n for p in (q - aside, q + aside))
        assert low - 1e-6 <= bound <= high + 1e-6


def test_memory_is_that_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, n, R, columns = 256, 40 * 256, 200, 4
    monkeypatch.setattr("gfo.engine.evaluation.class_answers.CHUNK", chunk)

    def predictions(start: int, stop: int) -> np.ndarray:
        return np.full((stop - start, columns), 4, dtype=np.int32)

    store: Any = SimpleNamespace(predictions=predictions, occluders=range(columns))
    answers = ClassAnswers(store, 4, range(n), np.ones(n, dtype=bool))
    tracemalloc.start()
    sums = ClassSums(answers, 1, R, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sums.accuracy.tolist() == [1.0] * columns
    np.testing.assert_allclose(sums.replicates, 1, rtol=1e-6)
    weights = chunk * R * (8 + 4 + 4)  # drawn, as float32, divided
    assert peak < 2 * weights  # at once they would take 40 times as much


def test_the_matrix_counts_what_lies_in_any_order(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.class_answers.CHUNK", 1)
    labels = np.tile([*BANK, OTHER], 75)  # more than a block
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 512)
    predictions = np.random.default_rng(2).choice([2, 4, 7, 9], (len(labels), 5))
    matrix, order = accuracy_matrix(make(tmp_path, predictions, labels.tolist(), BANK))
    assert order == [*BANK, OTHER]
    wanted = [[(predictions[labels == c, row] == c).mean() for c in order] for row in range(5)]
    np.testing.assert_array_equal(matrix, wanted)


def test_a_store_is_summarised_without_pytorch() -> None:
    """Which takes more memory than the summary of a million pictures."""
    check = "import sys, gfo.engine.evaluation.metrics; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", check]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "False\n"
