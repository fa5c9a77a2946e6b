"""Gates: whether an engine computes what PyTorch computes, decided from their logits on the same pairs.

`judge` compares with float32 on a user's model, `judge_largest_error` with float64 on a small network of our own.
Accuracies differ by little and come from few pairs, so a difference has an interval (`paired_interval`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...export.classifier import DTYPES, INT8
from ...export.errors import InputError
from .paired_interval import paired_interval
from .pairs import CLEAN, KINDS, ParityPairs

FP32_SHARE = 1e-3  # of the logits' range: the largest error of an fp32 engine
ENOUGH_PAIRS = 200  # for a claim about fp32 on real pictures
HALF_POINT = 0.5  # percentage points of accuracy
CLEAN_AGREEMENT = 0.97  # of bf16 and fp16 with fp32, where there are labels
# Another order of the same sums, not another formula: this many times PyTorch's own error at that precision, and, for
# the largest error, this share of the largest logit more.
ROUNDING_FACTOR = 2.0
LARGEST_ERROR_FLOOR = 1e-5


# ---- the verdict


@dataclass(frozen=True)
class KindNumbers:
    """Numbers on the pairs of one kind. Shares are 0 … 1, points percent; None without pairs, logits or labels."""

    pairs: int
    pictures: int
    agreement: float | None = None
    accuracy_found: float | None = None
    accuracy_truth: float | None = None
    difference_points: float | None = None
    ci95_points: list[float] | None = None
    design_effect: float | None = None
    within_half_point: bool | None = None
    """Whether the whole interval is within half a point: only this is evidence for a claim."""


@dataclass(frozen=True)
class LogitErrors:
    """Errors of an engine's logits against the truth.

    `centred` is without each class's mean error over the pairs, `own` is of PyTorch at that precision (None where not
    given or not finite), `range` is the largest minus the smallest logit of the truth.
    """

    max_error: float
    range: float
    rms_error: float
    centred_rms_error: float
    own_rms_error: float | None
    own_centred_rms_error: float | None
    floor: float


@dataclass(frozen=True)
class Verdict:
    """Decision of a gate (`fp32`, `accuracy` or `rounding`) on an engine, with its numbers."""

    passed: bool
    reason: str
    """The first thing that failed, with its numbers; empty when passed."""
    gate: str
    precision: str
    pairs: int
    enough: bool | None
    """fp32: whether the pairs, if real, suffice for a claim. Elsewhere None: see `within_half_point`."""
    kinds: dict[str, KindNumbers]
    errors: LogitErrors | None
    """None where the logits cannot be compared."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without NaN."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Return two to five lines for the terminal."""
        kinds = {name: kind for name, kind in self.kinds.items() if kind.pairs}
        state = f"passed on {self.pairs} pairs" if self.passed else f"FAILED: {self.reason}"
        state += f" (fewer than {ENOUGH_PAIRS}: too few for a claim)" if self.enough is False else ""
        lines = [f"parity {self.precision}, gate {self.gate}: {state}"]
        if self.errors is None:
            return [*lines, "pairs: " + ", ".join(f"{name} {kind.pairs}" for name, kind in kinds.items())]
        agreeing = (f"{name} {kind.agreement:.2%} of {kind.pairs}" for name, kind in kinds.items())
        e, own = self.errors, self.errors.own_centred_rms_error
        rms = f"rms {e.centred_rms_error:.2g} (centred)" + (f", PyTorch's own {own:.2g}" if own is not None else "")
        lines += [
            f"top-1 agreement: {', '.join(agreeing)}",
            f"errors: largest {e.max_error:.2g} of {e.range:.3g}, {rms}",
        ]
        if self.gate == "accuracy":
            shown = [name for name, kind in kinds.items() if kind.within_half_point]
            differences = ", ".join(f"{name} {_points(kind)}" for name, kind in kinds.items())
            lines.append(f"accuracy minus fp32's, points (95 %): {differences}")
            lines.append(f"shown to be within ±{HALF_POINT} point: {', '.join(shown) or 'none'}")
        return lines


def _points(kind: KindNumbers) -> str:
    low, high = kind.ci95_points or (0.0, 0.0)
    return f"{kind.difference_points:+.2f} ({low:+.2f} … {high:+.2f})"


def judge(
    truth: Tensor, found: Tensor, pairs: ParityPairs, precision: str, labels: Tensor | None, own: Tensor | None
) -> Verdict:
    """Compare an engine's logits with those of float32 PyTorch, all on the CPU.

    - `fp32`: every top-1 is the same, and no logit is off by more than 1e-3 of the logits' range.
    - `accuracy` (labels): for no kind does the interval of the accuracy's difference lie wholly beyond ±0.5 point; at
      bf16 and fp16 97 % of clean top-1 are the same, too. int8 changes more answers, in both directions: how many is
      reported. The gate sees no logits: swapped unmatched rows can pass.
    - `rounding` (no labels): the RMS error, less each class's mean over the pairs, is at most twice that of the
      reference at that precision: PyTorch's, or at int8 that of the graph, node by node. Without trained weights logits
      are mostly a constant of the class, and so is much of their rounding; the rest is the effect of pictures and
      occluders. A constant shift of a class goes unseen here:
      `rms_error` beside `own_rms_error` shows it, and so does the `fp32` gate on the same graph.

    Parameters
    ----------
    truth, found
        float32 [P, C]: PyTorch's float32 logits, and the engine's.
    precision
        `fp32`, `bf16`, `fp16` or `int8`.
    labels
        int64 [P], class id of each pair's picture; None for random weights or pictures without labels.
    own
        float32 [P, C], PyTorch's logits at `precision`; required by `rounding`, elsewhere only reported.

    Raises
    ------
    InputError
        The truth is not finite.
    ValueError
        There is nothing to compare (no pairs, no clean ones for `accuracy`, a single one for `rounding`), `rounding`
        lacks `own`, shapes do not match, or the precision is unknown.
    """
    gate = "fp32" if precision == "fp32" else "rounding" if labels is None else "accuracy"
    _check(truth, pairs, precision, labels, own, gate)
    errors, fault = None, ""
    if found.shape != truth.shape:
        fault = f"expected logits of shape {list(truth.shape)}, got {list(found.shape)}"
    elif broken := int((~found.isfinite()).any(dim=1).sum()):
        fault = f"NaN or infinite logits in {broken} of {len(found)} pairs"
    else:
        errors = _errors(truth.double(), found, own)
    # argmax takes the lowest id on a tie, as `score` does.
    top = None if errors is None else (truth.argmax(dim=1), found.argmax(dim=1))
    kinds = {name: _numbers(pairs, kind, top, labels) for kind, name in enumerate(KINDS)}
    if errors is not None:
        fault = _fault(gate, precision, kinds, errors)
    enough = len(pairs) >= ENOUGH_PAIRS if gate == "fp32" else None
    return Verdict(not fault, fault, gate, precision, len(pairs), enough, kinds, errors)


def _check(
    truth: Tensor, pairs: ParityPairs, precision: str, labels: Tensor | None, own: Tensor | None, gate: str
) -> None:
    if precision not in DTYPES:
        raise ValueError(f"precision {precision}: expected one of {', '.join(DTYPES)}")
    if truth.dim() != 2 or len(truth) != len(pairs) or truth.shape[1] == 0:
        raise ValueError(f"truth {tuple(truth.shape)}: expected [P, C] with {len(pairs)} pairs and a class")
    for name, tensor, shape in (("labels", labels, pairs.kind.shape), ("own", own, truth.shape)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} {tuple(tensor.shape)}: expected {tuple(shape)}")
    needed = {"fp32": len(pairs) > 0, "accuracy": bool((pairs.kind == CLEAN).any()), "rounding": len(pairs) > 1}
    if not needed[gate]:
        raise ValueError(f"{len(pairs)} pairs: nothing to compare by the gate {gate}")
    if gate == "rounding" and own is None:
        raise ValueError(f"own: expected PyTorch's own logits at {precision}, as there are no labels; got None")
    if not truth.isfinite().all():
        raise InputError("float32 PyTorch itself gives NaN or infinite logits; check the weights")


def _numbers(pairs: ParityPairs, kind: int, top: tuple[Tensor, Tensor] | None, labels: Tensor | None) -> KindNumbers:
    """Compute the numbers of one kind from the top-1 answers, int64 [P], of truth and engine."""
    here = pairs.kind == kind
    pictures = pairs.image_index[here]
    numbers = KindNumbers(len(pictures), len(pictures.unique()))
    if top is None or numbers.pairs == 0:
        return numbers
    truth, found = top[0][here], top[1][here]
    numbers = replace(numbers, agreement=_mean(truth == found))
    if labels is None:
        return numbers
    before, after = truth == labels[here], found == labels[here]
    difference = after.long() - before.long()
    low, high, effect = paired_interval(difference.numpy(), pictures.numpy())
    return replace(
        numbers,
        accuracy_found=_mean(after),
        accuracy_truth=_mean(before),
        difference_points=100 * _mean(difference),
        ci95_points=[100 * low, 100 * high],
        design_effect=effect,
        within_half_point=max(-low, high) * 100 <= HALF_POINT,
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _errors(truth: Tensor, found: Tensor, own: Tensor | None) -> LogitErrors:
    """Compute the errors against float64 truth, from which differences are exact."""
    difference = found - truth
    own_rms = (None, None) if own is None or not own.isfinite().all() else _rms(own - truth)
    # A float32 is off by half an eps of itself, two are by one eps; an RMS is no more than the largest.
    floor = torch.finfo(torch.float32).eps * _largest(truth)
    spread = float(truth.max() - truth.min())
    return LogitErrors(_largest(difference), spread, *_rms(difference), *own_rms, floor)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _rms(difference: Tensor) -> tuple[float, float]:
    """Return the RMS of the differences, as they are and less each class's mean over the pairs."""
    return _mean(difference**2) ** 0.5, _mean((difference - difference.mean(dim=0)) ** 2) ** 0.5


def _least_agreement(gate: str, precision: str) -> dict[str, float]:
    """Return the share of top-1 that must be the same, by the name of a kind."""
    if gate == "fp32":
        return dict.fromkeys(KINDS, 1.0)
    return {} if precision == INT8 else {KINDS[CLEAN]: CLEAN_AGREEMENT}


def _fault(gate: str, precision: str, kinds: dict[str, KindNumbers], errors: LogitErrors) -> str:
    """Return the first fault that this gate finds, or an empty string."""
    if gate == "rounding":
        return _rounding_fault(errors.centred_rms_error, errors.own_centred_rms_error, errors.floor)
    for name, least in _least_agreement(gate, precision).items():
        kind = kinds[name]
        if kind.agreement is not None and kind.agreement < least:
            return f"{name} top-1 agrees in {kind.agreement:.3%} of {kind.pairs} pairs; {gate} needs {least:.0%}"
    if gate == "fp32":
        over = errors.max_error > FP32_SHARE * errors.range
        limit = f"more than {FP32_SHARE:g} of the range {errors.range:.4g}"
        return f"a logit is off by {errors.max_error:.4g}, {limit}" if over else ""
    for name, kind in kinds.items():
        if kind.ci95_points is not None and (kind.ci95_points[0] > HALF_POINT or kind.ci95_points[1] < -HALF_POINT):
            return f"{name} accuracy minus fp32's is {_points(kind)} points, wholly beyond ±{HALF_POINT}"
    return ""


def _rounding_fault(error: float, own: float | None, floor: float) -> str:
    if own is None:
        return "PyTorch's own logits at this precision are not finite: nothing to judge by"
    if error > ROUNDING_FACTOR * own + floor:
        return f"rms error (per class centred) {error:.4g}, more than {ROUNDING_FACTOR:g} times PyTorch's own {own:.4g}"
    return ""


# ---- against float64


@dataclass(frozen=True)
class LargestError:
    """An engine's largest error against float64.

    Attributes
    ----------
    max_error, allowed_error
        Largest |logit − float64 logit| over all pairs, and its limit.
    agreement
        Share of pairs with the same top-1 class as float64, 0 … 1.
    """

    max_error: float
    allowed_error: float
    agreement: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; false for NaN."""
        return self.max_error <= self.allowed_error


def judge_largest_error(truth: Tensor, found: Tensor, own: Tensor) -> LargestError:
    """Compare an engine's logits with float64 ones, all on the CPU.

    The largest error may be twice that of plain PyTorch at the same precision, and 1e-5 of the largest logit more.

    Parameters
    ----------
    truth
        float64 [P, C].
    found, own
        float32 [P, C]: the engine's logits, and those of PyTorch at the engine's precision.
    """
    allowed = ROUNDING_FACTOR * _largest(own - truth) + LARGEST_ERROR_FLOOR * _largest(truth)
    return LargestError(_largest(found - truth), allowed, _mean(truth.argmax(dim=1) == found.argmax(dim=1)))
