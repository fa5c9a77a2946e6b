"""The summary against the definitions written as loops, and the intervals against what they must cover."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.engine.evaluation.bootstrap import Bootstrapped, mean
from gfo.engine.evaluation.class_answers import accuracy_matrix
from gfo.engine.evaluation.metrics import derangement, quotients_of_strengths, summarize
from gfo.engine.evaluation.results import Accuracy, Ratio, Results
from gfo.engine.evaluation.store import RunStore

Make = Callable[..., RunStore]


def cell(results: Results, name: str) -> Accuracy:
    found = getattr(results, name)
    assert isinstance(found, Accuracy)
    return found


BANK = [4, 2, 9]
LABELS = [2] * 5 + [4] * 3 + [9] * 4 + [7] * 6  # 7 is no class of the bank


@pytest.fixture
def predictions() -> np.ndarray:
    return np.random.default_rng(0).choice([2, 4, 7, 9], (len(LABELS), len(BANK) + 2))


def test_cells_equal_their_definitions(make: Make, tmp_path: Path, predictions: np.ndarray) -> None:
    store = make(tmp_path, predictions, LABELS, BANK)
    summary = summarize(store, replicates=50)
    labels = np.array(LABELS)

    def accuracy(row: int, c: int) -> float:
        return float((predictions[labels == c, row] == c).mean())

    rows = {c: k + 1 for k, c in enumerate(BANK)}
    wanted = {
        "clean": np.mean([accuracy(0, c) for c in BANK]),
        "matched": np.mean([accuracy(rows[c], c) for c in BANK]),
        "unmatched": np.mean([np.mean([accuracy(rows[k], c) for c in BANK if c != k]) for k in BANK]),
        "noise": np.mean([accuracy(len(BANK) + 1, c) for c in BANK]),
        "clean_other": accuracy(0, 7),
        "unmatched_other": np.mean([accuracy(rows[k], 7) for k in BANK]),
        "permuted": np.mean([accuracy(rows[BANK[j]], c) for c, j in zip(BANK, derangement(3, 0), strict=True)]),
    }
    for name, value in wanted.items():
        assert cell(summary, name).accuracy == pytest.approx(value, abs=1e-6), name
    assert {name: cell(summary, name).pictures for name in wanted} == {
        **dict.fromkeys(("clean", "matched", "unmatched", "noise", "permuted"), 12),
        **dict.fromkeys(("clean_other", "unmatched_other"), 6),
    }
    for name, ratio in (("matched", summary.ratios["matched/clean"]), ("unmatched", summary.ratios["unmatched/clean"])):
        assert ratio
        assert ratio.value == pytest.approx(wanted[name] / wanted["clean"], abs=1e-6)
    matrix, columns = accuracy_matrix(store)
    assert columns == [*BANK, 7]
    np.testing.assert_allclose(matrix, [[accuracy(r, c) for c in columns] for r in range(5)], atol=1e-6)


def test_fooling_rate_and_wrong_labels(make: Make, tmp_path: Path, predictions: np.ndarray) -> None:
    summary = summarize(make(tmp_path, predictions, LABELS, BANK), replicates=20)
    labels, rows = np.array(LABELS), {c: k + 1 for k, c in enumerate(BANK)}
    own = np.array([predictions[i, rows[c]] if c in rows else -1 for i, c in enumerate(LABELS)])
    had = (predictions[:, 0] == labels) & (own >= 0)
    assert summary.fooling_rate
    assert summary.fooling_rate.value == pytest.approx((own[had] != labels[had]).mean())
    assert summary.fooling_rate.pictures == had.sum()
    shares = []
    for row in summary.classes:
        wrong = own[(labels == row.class_id) & (own != labels)]
        values, counts = np.unique(wrong, return_counts=True)
        if len(wrong):
            shares.append(counts.max() / len(wrong))
            assert row.top_wrong_label
            assert row.top_wrong_label.share == pytest.approx(shares[-1])
            assert row.top_wrong_label.class_id in values[counts == counts.max()]
        others = [c for c in BANK if c != row.class_id]
        by_occluder = np.mean([(predictions[labels == c, rows[row.class_id]] == c).mean() for c in others])
        assert row.unmatched_by_occluder == pytest.approx(by_occluder, abs=1e-6)
    assert summary.largest_wrong_label_share
    assert summary.largest_wrong_label_share.value == pytest.approx(np.mean(shares))
    assert summary.largest_wrong_label_share.classes == len(shares)


def test_quarantined_pictures_count_nowhere(make: Make, tmp_path: Path, predictions: np.ndarray) -> None:
    kept = [i for i in range(len(LABELS)) if i not in (0, 5, 6, 7)]  # one of class 2, all of class 4
    reduced = make(tmp_path / "a", predictions[kept], [LABELS[i] for i in kept], BANK)
    whole = make(tmp_path / "b", predictions, LABELS, BANK, dict.fromkeys((0, 5, 6, 7), "broken"))
    a, b = summarize(reduced, replicates=50), summarize(whole, replicates=50)
    for name in ("clean", "matched", "unmatched", "unmatched_other", "permuted", "fooling_rate"):
        assert getattr(a, name) == getattr(b, name), name
    assert np.isnan(accuracy_matrix(whole)[0][:, 0]).all()


def test_cells_without_pictures_are_null(make: Make, tmp_path: Path) -> None:
    only_other = summarize(make(tmp_path / "a", np.full((3, 3), 7), [7] * 3, [4]), replicates=5)
    assert only_other.clean is only_other.matched is only_other.fooling_rate is None
    assert only_other.ratios["matched/clean"] is only_other.ratios["unmatched/clean"] is None
    assert only_other.clean_unseen == only_other.clean_other
    assert cell(only_other, "clean_other").accuracy == 1.0
    one_class = summarize(make(tmp_path / "b", np.full((3, 3), 4), [4] * 3, [4]), replicates=5)
    assert one_class.unmatched is one_class.permuted is one_class.clean_other is None
    assert cell(one_class, "matched").accuracy == 1.0


@pytest.mark.parametrize("preserved", [(2, 7), (7,), (2,), (2, 4, 9, 7, 5), ()])
def test_preserved_classes_and_the_others_are_apart(
    make: Make, tmp_path: Path, predictions: np.ndarray, preserved: tuple[int, ...]
) -> None:
    """From the predictions alone, pair of classes by pair of classes; of 7 and 5, beyond the bank, too."""
    labels = np.array([*LABELS[:-2], 5, 5])
    results = summarize(make(tmp_path, predictions, labels.tolist(), BANK, preserved=preserved), replicates=50)
    evaluated = [*BANK, 7, 5]
    for name, classes in (
        ("preserved", [c for c in evaluated if c in preserved]),
        ("unseen", [c for c in evaluated if c not in preserved]),
    ):
        occluded, clean, pictures = list[float](), list[float](), set[int]()
        for row, k in enumerate(BANK, start=1):
            others = [labels == c for c in classes if c != k]
            if others:
                occluded.append(float(np.mean([(predictions[of, row] == labels[of]).mean() for of in others])))
                clean.append(float(np.mean([(predictions[of, 0] == labels[of]).mean() for of in others])))
                pictures |= {int(i) for of in others for i in np.flatnonzero(of)}
        ratio = results.ratios.get(f"unmatched_{name}/clean")
        if not occluded:
            assert getattr(results, f"clean_{name}") is getattr(results, f"unmatched_{name}") is ratio is None
            continue
        for what, values in (("clean", clean), ("unmatched", occluded)):
            found = cell(results, f"{what}_{name}")
            assert found.accuracy == pytest.approx(np.mean(values), abs=1e-6)
            assert found.pictures == len(pictures)
            assert (found.ci95_classes is None) == (len(classes) == 1)
        assert (ratio is None) == (np.mean(clean) == 0)
        assert ratio is None or ratio.value == pytest.approx(np.mean(occluded) / np.mean(clean), abs=1e-6)


def test_without_preserved_classes_the_unseen_ones_are_all(make: Make, tmp_path: Path, predictions: np.ndarray) -> None:
    own = np.array(LABELS) != 7
    results = summarize(make(tmp_path, predictions[own], [c for c in LABELS if c != 7], BANK), replicates=50)
    assert results.unmatched_unseen == results.unmatched
    assert results.clean_unseen == results.clean
    assert results.ratios.get("unmatched_unseen/clean") == results.ratios["unmatched/clean"]


def test_the_class_bootstrap_of_the_classes_never_preserved(make: Make, tmp_path: Path) -> None:
    """With one picture a class the replicates follow from the draws of the bank's classes and of the others alone."""
    bank, others, preserved = [0, 1, 2, 3], [5, 6, 7], (1, 6)
    labels, generator = [*bank, *others], np.random.default_rng(1)
    right = generator.random((7, 6)) < np.linspace(0.2, 0.9, 7)[:, None]
    predictions = np.where(right, np.array(labels)[:, None], 9)
    results = summarize(make(tmp_path, predictions, labels, bank, preserved=preserved), replicates=4000, seed=3)
    unseen = [i for i, c in enumerate(labels) if c not in preserved]
    occluders = generator.multinomial(4, np.full(4, 0.25), size=20000)
    drawn = np.concatenate([occluders, generator.multinomial(3, np.full(3, 1 / 3), size=20000)], axis=1)[:, unseen]
    pairs = np.array([[labels[i] != k for i in unseen] for k in bank])
    shares = pairs / pairs.sum(axis=1, keepdims=True)  # an occluder's classes weigh 1 together
    weights = occluders[:, :, None] * drawn[:, None, :] * shares
    with np.errstate(invalid="ignore"):
        unmatched = (weights * right[unseen, 1:5].T).sum((1, 2)) / weights.sum((1, 2))
        clean = (drawn * shares.sum(0)) @ right[unseen, 0] / (drawn @ shares.sum(0))
        wanted = {"unmatched": unmatched, "clean": clean}
    for what, values in wanted.items():
        low, high = np.nanpercentile(values, [2.5, 97.5])
        assert cell(results, f"{what}_unseen").ci95_classes == pytest.approx([low, high], abs=0.04), what
    with np.errstate(invalid="ignore", divide="ignore"):
        of_pairs = (weights * right[unseen, 0]).sum((1, 2)) / weights.sum((1, 2))
        ratios = unmatched / of_pairs
    found = results.ratios.get("unmatched_unseen/clean")
    assert found is not None
    wanted_ratio = np.percentile(ratios[np.isfinite(ratios)], [2.5, 97.5])
    assert found.ci95_classes == pytest.approx(wanted_ratio.tolist(), rel=0.06)


@settings(max_examples=15)
@given(
    bank=st.lists(st.integers(0, 9), min_size=2, max_size=5, unique=True),
    others=st.lists(st.integers(10, 14), max_size=3, unique=True),
    preserved=st.sets(st.integers(0, 14)),
    seed=st.integers(0, 99),
)
def test_an_occluder_that_changes_nothing_has_ratios_of_one(
    make: Make,
    tmp_path_factory: pytest.TempPathFactory,
    bank: list[int],
    others: list[int],
    preserved: set[int],
    seed: int,
) -> None:
    """In every replicate of both bootstraps, too: each divides by the clean accuracy of the very pairs it drew."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([*bank, *others], generator.integers(1, 6, len(bank) + len(others)))
    clean = np.where(generator.random(len(labels)) < 0.7, labels, 99)
    predictions = np.repeat(clean[:, None], len(bank) + 2, axis=1)
    folder = tmp_path_factory.mktemp("store")
    store = make(folder, predictions, labels.tolist(), bank, preserved=tuple(sorted(preserved)))
    for name, ratio in summarize(store, replicates=50).ratios.items():
        assert ratio is None or isinstance(ratio, Ratio)
        if ratio is not None:
            for interval in (ratio.ci95_pictures, ratio.ci95_classes):
                assert interval is None or interval == pytest.approx((1, 1), abs=1e-5), name
            assert ratio.value == pytest.approx(1, abs=1e-5), name


def test_the_difference_of_a_bank_to_itself_is_0_in_every_replicate(make: Make, tmp_path: Path) -> None:
    """And of others of the same classes and pictures it has their spread taken out: the bootstraps resample alike."""
    bank, generator = [0, 1, 2, 3, 4, 5], np.random.default_rng(2)
    labels = np.repeat(bank, 8)
    clean = np.where(generator.random(len(labels)) < np.linspace(0.3, 1, 6).repeat(8), labels, 99)
    predictions = np.repeat(clean[:, None], len(bank) + 2, axis=1)
    weaker = predictions.copy()
    weaker[::4, 1:] = 99
    found = []
    for name, of in (("a", predictions), ("b", predictions), ("c", weaker)):
        store = make(tmp_path / name, of, labels.tolist(), bank)
        found.append(quotients_of_strengths([store], replicates=400)[1.0]["unmatched/clean"][0])
    first, same, weak = found
    nothing = mean([first - same, same - first]).ratio(6)
    assert nothing
    assert (nothing.value, nothing.ci95_pictures, nothing.ci95_classes) == (0, (0, 0), (0, 0))
    assert (weak - first).value == pytest.approx(weak.value - first.value)


def test_a_mean_has_no_interval_where_too_many_replicates_lack_a_number() -> None:
    whole, replicates = np.full(400, 0.5), np.full(400, 0.5)
    replicates[:10] = np.nan
    few = Bootstrapped(0.5, replicates, whole)
    other = Bootstrapped(0.7, np.roll(replicates, 20), whole)
    kept, lost = mean([few, few]).ratio(3), mean([few, other]).ratio(3)
    assert kept
    assert lost
    assert kept.ci95_pictures == (0.5, 0.5)
    assert (lost.value, lost.ci95_pictures, lost.ci95_classes) == (pytest.approx(0.6), None, (0.5, 0.5))


def test_the_class_bootstrap_is_the_resampled_matrix(make: Make, tmp_path: Path) -> None:
    """With one picture a class nothing is left to resample in it: the replicates follow from the class draws alone."""
    bank = [0, 1, 2, 3]
    right = np.random.default_rng(1).random((4, 6)) < 0.5
    predictions = np.where(right, np.arange(4)[:, None], 9)
    summary = summarize(make(tmp_path, predictions, bank, bank), replicates=4000, seed=3)
    matrix = right[:, 1:5].T.astype(float)  # [k, c]
    draws = np.random.default_rng(5).multinomial(4, np.full(4, 0.25), size=20000)
    off = ~np.eye(4, dtype=bool)
    weights = draws[:, :, None] * draws[:, None, :] * off
    with np.errstate(invalid="ignore"):
        unmatched = (weights * matrix).sum((1, 2)) / weights.sum((1, 2))
    low, high = np.nanpercentile(unmatched, [2.5, 97.5])
    assert cell(summary, "unmatched").ci95_classes == pytest.approx([low, high], abs=0.06)
    matched = draws @ np.diag(matrix) / 4
    assert cell(summary, "matched").ci95_classes == pytest.approx(
        np.percentile(matched, [2.5, 97.5]).tolist(), abs=0.01
    )
    accuracy = cell(summary, "unmatched").accuracy
    assert cell(summary, "unmatched").ci95_pictures == pytest.approx([accuracy, accuracy])


def test_picture_interval_is_the_binomial_one_for_a_single_cell(make: Make, tmp_path: Path) -> None:
    n = 200
    predictions = np.where(np.arange(n)[:, None] < 60, 4, 9) * np.ones((1, 3), dtype=int)
    summary = summarize(make(tmp_path, predictions, [4] * n, [4]), replicates=4000)
    half = 1.96 * np.sqrt(0.3 * 0.7 / n)
    assert cell(summary, "clean").ci95_pictures == pytest.approx([0.3 - half, 0.3 + half], abs=0.01)
    low, high = summary.classes[0].matched_wilson95 or (0, 0)
    assert (low, high) == pytest.approx((0.2406, 0.3667), abs=1e-3)  # Wilson for 60 of 200
    ratio = summary.ratios["matched/clean"]
    assert ratio
    assert ratio.ci95_pictures == (1.0, 1.0)  # paired: the same pictures


@given(count=st.integers(2, 60), seed=st.integers(0, 999))
def test_derangement(count: int, seed: int) -> None:
    permutation = derangement(count, seed)
    assert sorted(permutation) == list(range(count))
    assert all(i != j for i, j in enumerate(permutation))
    assert permutation == derangement(count, seed)
