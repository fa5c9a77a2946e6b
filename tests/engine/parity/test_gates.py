"""Every gate just on either side of its threshold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gfo.engine.parity.gates import LARGEST_ERROR_FLOOR, judge, judge_largest_error
from gfo.engine.parity.paired_interval import paired_interval
from gfo.engine.parity.pairs import CLEAN, KINDS, MATCHED, UNMATCHED, ParityPairs, parity_pairs
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.occluded import OccludedClassifier


def some_pairs(each: int) -> ParityPairs:
    """`each` pictures, clean, matched and unmatched."""
    return parity_pairs(torch.arange(each) % 3, [0, 1, 2], each, 3 * each, seed=0)


def answering(prediction: Tensor, classes: int = 5) -> Tensor:
    """Logits with these top-1 answers, 1 for the answer and 0 for the others."""
    return torch.nn.functional.one_hot(prediction, classes).float()


def random_logits(pairs: int, classes: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(pairs, classes, generator=torch.Generator().manual_seed(seed))


def test_numbers_against_loops() -> None:
    pairs, truth = some_pairs(40), random_logits(120)
    own, found = truth + 0.1 * random_logits(120, seed=1), truth + 0.15 * random_logits(120, seed=2)
    labels = (pairs.image_index + (pairs.image_index == 7)) % 3
    verdict = judge(truth, found, pairs, "bf16", labels, own)
    t, f = truth.tolist(), found.tolist()
    for kind, name in enumerate(KINDS):
        here = [p for p in range(120) if pairs.kind[p] == kind]
        top_t, top_f = ([int(np.argmax(x[p])) for p in here] for x in (t, f))
        right = [[a == labels[p] for a, p in zip(top, here, strict=True)] for top in (top_t, top_f)]
        numbers = verdict.kinds[name]
        assert (numbers.pairs, numbers.pictures) == (40, len({int(pairs.image_index[p]) for p in here}))
        assert numbers.agreement == pytest.approx(np.mean(np.equal(top_t, top_f)))
        assert numbers.accuracy_truth == pytest.approx(np.mean(right[0]))
        assert numbers.accuracy_found == pytest.approx(np.mean(right[1]))
        assert numbers.difference_points == pytest.approx(100 * (np.mean(right[1]) - np.mean(right[0])))
    flat = [(f[p][c] - t[p][c], c) for p in range(120) for c in range(5)]
    mean = [np.mean([d for d, k in flat if k == c]) for c in range(5)]
    errors = verdict.errors
    assert errors is not None
    assert errors.max_error == pytest.approx(max(abs(d) for d, _ in flat))
    assert errors.range == pytest.approx(max(map(max, t)) - min(map(min, t)))
    assert errors.rms_error == pytest.approx(math.sqrt(np.mean([d**2 for d, _ in flat])))
    assert errors.centred_rms_error == pytest.approx(math.sqrt(np.mean([(d - mean[c]) ** 2 for d, c in flat])))
    assert errors.own_rms_error == pytest.approx(0.1 * float(random_logits(120, seed=1).square().mean().sqrt()))


@pytest.mark.parametrize(("each", "enough"), [(66, False), (67, True)])
def test_equal_logits_pass_and_a_claim_needs_200(each: int, enough: bool) -> None:
    truth = random_logits(3 * each)
    verdict = judge(truth, truth.clone(), some_pairs(each), "fp32", None, None)
    assert (verdict.passed, verdict.reason, verdict.gate, verdict.enough) == (True, "", "fp32", enough)


@pytest.mark.parametrize(("share", "passed"), [(0.00099, True), (0.00101, False)])
def test_fp32_error(share: float, passed: bool) -> None:
    truth = 10 * answering(torch.arange(30) % 5)
    truth[3, 4] = -6  # range 16
    found = truth.clone()
    found[8, 0] -= 16 * share
    verdict = judge(truth, found, some_pairs(10), "fp32", None, None)
    assert verdict.passed is passed
    assert "of the range 16" in verdict.reason or passed


def test_fp32_top1_must_be_the_same_everywhere() -> None:
    pairs, truth = some_pairs(100), answering(torch.arange(300) % 5)
    last = int(torch.nonzero(pairs.kind == UNMATCHED)[-1])
    truth[last] = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
    found = truth.clone()
    found[last, 1] += 1e-6
    verdict = judge(truth, found, pairs, "fp32", None, None)
    assert not verdict.passed
    assert "unmatched" in verdict.reason
    assert "99.000% of 100" in verdict.reason


def wrong_in(count: int, kind: int, pairs: ParityPairs, labels: Tensor) -> Tensor:
    """The right answers, but class 4 in `count` pairs of a kind."""
    answers = labels.clone()
    answers[torch.nonzero(pairs.kind == kind)[:count, 0]] = 4
    return answers


@pytest.mark.parametrize(("differing", "passed"), [(6, True), (7, False)])
def test_clean_agreement(differing: int, passed: bool) -> None:
    """97 % of 200; both wrong, so that no accuracy differs."""
    pairs = some_pairs(200)
    labels = torch.full((600,), 3)
    truth, found = torch.zeros(600, dtype=torch.int64), torch.zeros(600, dtype=torch.int64)
    found[torch.nonzero(pairs.kind == CLEAN)[:differing, 0]] = 1
    verdict = judge(answering(truth), answering(found), pairs, "bf16", labels, None)
    assert verdict.passed is passed
    assert verdict.gate == "accuracy"
    assert passed or "clean top-1 agrees in 96.500% of 200" in verdict.reason
    assert verdict.kinds["clean"].difference_points == 0


@pytest.mark.parametrize("kind", [MATCHED, UNMATCHED])
@pytest.mark.parametrize("better", [False, True])
def test_accuracy_fails_when_wholly_beyond_half_a_point(kind: int, better: bool) -> None:
    """Either way: an engine that is more often right than fp32 computes something else too."""
    pairs = some_pairs(300)
    labels = pairs.image_index % 3
    seen = []
    for count in range(30):
        logits = [answering(labels), answering(wrong_in(count, kind, pairs, labels))]
        truth, found = reversed(logits) if better else logits
        verdict = judge(truth, found, pairs, "fp16", labels, None)
        difference = np.array([1 if better else -1] * count + [0] * (300 - count))
        low, high, _ = paired_interval(difference, np.arange(300))
        assert verdict.passed is not (low > 0.005 or high < -0.005)
        assert verdict.kinds[KINDS[kind]].ci95_points == pytest.approx([100 * low, 100 * high])
        assert verdict.passed or verdict.reason.startswith(f"{KINDS[kind]} accuracy")
        seen.append(verdict.passed)
    assert seen == sorted(seen, reverse=True)
    assert 2 < sum(seen) < 10


@pytest.mark.parametrize(("each", "within"), [(764, False), (765, True)])
def test_within_half_a_point_needs_evidence(each: int, within: bool) -> None:
    """z² / (n + z²) ≤ 0.005 from n = 765 on, without any disagreement."""
    pairs = some_pairs(each)
    labels = pairs.image_index % 3
    verdict = judge(answering(labels), answering(labels), pairs, "bf16", labels, None)
    assert verdict.passed
    assert [kind.within_half_point for kind in verdict.kinds.values()] == [within] * 3


@pytest.mark.parametrize("better", [False, True])
def test_an_interval_half_beyond_half_a_point_proves_nothing(better: bool) -> None:
    """Six of 2000: 0.3 points, the interval from 0.14 to 0.65; neither fails nor is within."""
    pairs = some_pairs(2000)
    labels = pairs.image_index % 3
    logits = [answering(labels), answering(wrong_in(6, UNMATCHED, pairs, labels))]
    truth, found = reversed(logits) if better else logits
    verdict = judge(truth, found, pairs, "bf16", labels, None)
    assert verdict.passed
    assert [kind.within_half_point for kind in verdict.kinds.values()] == [True, True, False]


@pytest.mark.parametrize(("factor", "passed"), [(1.999, True), (2.001, False)])
def test_rounding(factor: float, passed: bool) -> None:
    truth, noise = random_logits(60), 0.01 * random_logits(60, seed=1)
    verdict = judge(truth, truth + factor * noise, some_pairs(20), "bf16", None, truth + noise)
    assert verdict.passed is passed
    assert verdict.gate == "rounding"
    assert passed or "2 times PyTorch's own" in verdict.reason


def test_rounding_does_not_see_a_constant_of_a_class_but_reports_it() -> None:
    truth, shift = random_logits(60), torch.tensor([0.0, 3.0, 0.0, 0.0, -1.0])
    own = truth + 0.01 * random_logits(60, seed=1)
    verdict = judge(truth, own + shift, some_pairs(20), "bf16", None, own)
    assert verdict.passed
    assert verdict.errors is not None
    assert verdict.errors.own_rms_error is not None
    assert verdict.errors.rms_error > 100 * verdict.errors.own_rms_error
    assert verdict.errors.centred_rms_error == pytest.approx(verdict.errors.own_centred_rms_error, rel=1e-4)
    assert not judge(truth, truth + shift, some_pairs(20), "fp32", None, None).passed


def test_rounding_allows_the_last_bit_where_pytorch_is_exact() -> None:
    truth = random_logits(60)
    last_bit = torch.nextafter(truth, torch.full_like(truth, torch.inf))
    assert judge(truth, last_bit, some_pairs(20), "bf16", None, truth).passed
    assert not judge(truth, truth + 1e-5 * random_logits(60, seed=1), some_pairs(20), "bf16", None, truth).passed


def test_rounding_without_finite_logits_of_pytorch_fails() -> None:
    truth = random_logits(60)
    own = truth.clone()
    own[0, 0] = torch.inf
    verdict = judge(truth, truth, some_pairs(20), "fp16", None, own)
    assert not verdict.passed
    assert "not finite" in verdict.reason
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["errors"]["own_rms_error"] is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_broken_logit_fails(value: float, precision: str) -> None:
    truth, labels = random_logits(60), torch.zeros(60, dtype=torch.int64)
    found = truth.clone()
    found[17, 3] = value
    verdict = judge(truth, found, some_pairs(20), precision, labels, None)
    assert not verdict.passed
    assert verdict.reason == "NaN or infinite logits in 1 of 60 pairs"
    assert [kind.pairs for kind in verdict.kinds.values()] == [20, 20, 20]
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", [(60, 4), (59, 5), (60, 5, 1), (300,), (0, 5)])
def test_a_wrong_shape_fails(shape: tuple[int, ...]) -> None:
    verdict = judge(random_logits(60), torch.zeros(shape), some_pairs(20), "fp32", None, None)
    assert not verdict.passed
    assert str(list(shape)) in verdict.reason
    assert 2 <= len(verdict.lines()) <= 5


# ---- a real network


@pytest.fixture(scope="module")
def run(
    tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank]
) -> Callable[[ParityPairs, str, list[int]], Tensor]:
    """Logits of the tiny network on noise, under a bank whose rows come in the given order."""
    images = torch.randint(0, 256, (15, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    bank = make_bank().occluders

    def run(pairs: ParityPairs, precision: str, rows: list[int]) -> Tensor:
        network = OccludedClassifier(tiny_classifier, precision, impl="reference")
        with torch.no_grad():
            return network(images, pairs.image_index, pairs.occluder_index, bank[rows])

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_permuted_rows_of_the_bank_fail(run: Any, precision: str) -> None:
    pairs = some_pairs(15)
    truth, own = run(pairs, "fp32", [0, 1, 2]), run(pairs, precision, [0, 1, 2])
    assert judge(truth, own, pairs, precision, None, own).passed
    for rows in ([1, 0, 2], [1, 2, 0]):
        verdict = judge(truth, run(pairs, precision, rows), pairs, precision, None, own)
        assert not verdict.passed
        assert "off by" in verdict.reason or "rms error" in verdict.reason or "top-1" in verdict.reason


def test_permuted_rows_fail_by_accuracy_where_occluders_work() -> None:
    """Matched answers are wrong, and right again under other rows."""
    pairs = some_pairs(90)
    labels = pairs.image_index % 3
    matched = pairs.occluder_index == labels + 1
    moved = (pairs.occluder_index - 1) % 3 + 1  # row order 2, 0, 1
    truth = answering(torch.where(matched, 4, labels))
    found = answering(torch.where((moved % 3 == labels) & (pairs.occluder_index > 0), 4, labels))
    verdict = judge(truth, found, pairs, "bf16", labels, None)
    assert verdict.reason.startswith("matched accuracy minus fp32's is +100.00")


# ---- bad calls, few pairs, output


def nothing() -> ParityPairs:
    empty = torch.zeros(0, dtype=torch.int64)
    return ParityPairs(empty, empty, empty.to(torch.int8))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("labels", [None, torch.zeros(0, dtype=torch.int64)])
def test_no_pairs_is_never_a_pass(precision: str, labels: Tensor | None) -> None:
    logits = torch.zeros(0, 5)
    with pytest.raises(ValueError, match="0 pairs: nothing"):
        judge(logits, logits, nothing(), precision, labels, logits)


def test_calls_that_cannot_be_judged() -> None:
    pairs, logits, labels = some_pairs(4), random_logits(12), torch.zeros(12, dtype=torch.int64)
    one = ParityPairs(*(part[:1] for part in dataclasses.astuple(pairs)))
    with pytest.raises(ValueError, match="1 pairs: nothing"):
        judge(logits[:1], logits[:1], one, "bf16", None, logits[:1])
    occluded = ParityPairs(pairs.image_index, pairs.occluder_index, torch.full_like(pairs.kind, MATCHED))
    with pytest.raises(ValueError, match="accuracy"):
        judge(logits, logits, occluded, "bf16", labels, None)
    with pytest.raises(ValueError, match="own logits at fp16"):
        judge(logits, logits, pairs, "fp16", None, None)
    with pytest.raises(ValueError, match="precision float32"):
        judge(logits, logits, pairs, "float32", None, None)
    with pytest.raises(ValueError, match="truth"):
        judge(logits[:11], logits[:11], pairs, "fp32", None, None)
    with pytest.raises(ValueError, match="labels"):
        judge(logits, logits, pairs, "bf16", labels[:4], None)
    with pytest.raises(ValueError, match="own"):
        judge(logits, logits, pairs, "bf16", labels, logits[:, :4])
    with pytest.raises(InputError, match="check the weights"):
        judge(logits * torch.nan, logits, pairs, "fp32", None, None)


def test_three_pairs_are_judged_and_prove_nothing() -> None:
    pairs = some_pairs(1)
    labels = torch.zeros(3, dtype=torch.int64)
    verdict = judge(answering(labels), answering(labels), pairs, "bf16", labels, None)
    assert verdict.passed
    assert [kind.within_half_point for kind in verdict.kinds.values()] == [False] * 3
    assert judge(answering(labels), answering(labels), pairs, "fp32", None, None).enough is False


@pytest.mark.parametrize(("precision", "labelled"), [("fp32", False), ("fp32", True), ("bf16", True), ("bf16", False)])
def test_lines_and_json(precision: str, labelled: bool) -> None:
    pairs, truth = some_pairs(20), random_logits(60)
    labels = pairs.image_index % 3 if labelled else None
    verdict = judge(truth, truth + 1e-5, pairs, precision, labels, truth + 0.01 if precision == "bf16" else None)
    lines = verdict.lines()
    assert 2 <= len(lines) <= 5
    assert all("\n" not in line and "None" not in line and len(line) < 140 for line in lines)
    assert lines[0].startswith(f"parity {precision}, gate {verdict.gate}: ")
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False)) == verdict.to_dict()
    assert ("within" in lines[-1]) is (verdict.gate == "accuracy")


# ---- against float64


@pytest.mark.parametrize(("extra", "passed"), [(0.9, True), (1.1, False), (math.nan, False)])
def test_the_largest_error_is_compared_with_pytorchs_own(extra: float, passed: bool) -> None:
    truth = random_logits(20).double()
    own, found = truth.float(), truth.float()
    own[3, 1] += 0.25
    own_error = float((own.double() - truth).abs().max())
    allowed = 2 * own_error + LARGEST_ERROR_FLOOR * float(truth.abs().max())
    found[7, 2] = truth[7, 2].float() + extra * allowed
    error = judge_largest_error(truth, found, own)
    assert error.allowed_error == allowed
    assert error.passed == passed
    assert error.max_error == pytest.approx(extra * allowed, rel=1e-5, nan_ok=True)
    assert error.agreement == np.mean(truth.argmax(1).numpy() == found.argmax(1).numpy())


def test_the_floor_allows_other_roundings_where_pytorch_is_exact() -> None:
    truth = random_logits(20).float().double()
    peak = float(truth.abs().max())
    assert judge_largest_error(truth, truth.float() + 0.8e-5 * peak, truth.float()).passed
    assert not judge_largest_error(truth, truth.float() + 2e-5 * peak, truth.float()).passed
