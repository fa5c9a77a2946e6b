"""Whether an engine computes what float32 PyTorch computes: the pairs to compare, and the verdict on their logits.

Accuracies differ by little and from few pairs, so a difference comes with an interval (`paired_interval`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.classifier import DTYPES
from ...export.errors import InputError
from .paired_interval import paired_interval

CLEAN, MATCHED, UNMATCHED = 0, 1, 2
KINDS = ("clean", "matched", "unmatched")

FP32_SHARE = 1e-3  # of the logits' range: the largest error of an fp32 engine
ENOUGH_PAIRS = 200  # for a claim about fp32 on real pictures
HALF_POINT = 0.5  # percentage points of accuracy
CLEAN_AGREEMENT = 0.97  # of bf16 and fp16 with fp32, where there are labels
ROUNDING_FACTOR = 2.0  # times PyTorch's own rounding at that precision

Ints = NDArray[np.int64]


# ---- the pairs


@dataclass(frozen=True)
class ParityPairs:
    """P different pairs; what is compared, and of which kind each is."""

    image_index: Tensor
    """int64 [P], picture."""
    occluder_index: Tensor
    """int64 [P], 0 = clean, j = row j − 1 of the bank."""
    kind: Tensor
    """int8 [P], `CLEAN`, `MATCHED` or `UNMATCHED`."""

    def __len__(self) -> int:
        return len(self.kind)


def parity_pairs(labels: Tensor | None, class_ids: Sequence[int], pictures: int, pairs: int, seed: int) -> ParityPairs:
    """Draw pairs, a third of each kind where there are as many, in a seeded order.

    Matched is the row of the picture's own class, unmatched a row of another. A kind that runs out (pictures without
    a row of their class, a bank of one row) leaves its share to the others: unmatched pairs go on with further rows,
    and no pair comes twice, so there are fewer than `pairs` where all are used. The kinds share their pictures as far
    as they can.

    Parameters
    ----------
    labels
        int64 [pictures], class ids; None where there are none: then nothing is matched and any row is unmatched.
    class_ids
        Of the K ≥ 1 rows, each once.
    pictures
        How many there are, ≥ 1.
    pairs
        How many to draw, ≥ 3.

    Raises
    ------
    InputError
        No picture, or fewer than three pairs: nothing compared is not a comparison.
    ValueError
        As many labels as pictures are needed.
    """
    if pictures < 1 or pairs < len(KINDS):
        raise InputError(
            f"{pairs} pairs of {pictures} pictures: parity needs a picture and at least {len(KINDS)} pairs"
        )
    if labels is not None and labels.shape != (pictures,):
        raise ValueError(f"labels {tuple(labels.shape)}: expected one for each of {pictures} pictures")
    rng = np.random.default_rng(seed)
    order = rng.permutation(pictures)
    rows = {class_id: row for row, class_id in enumerate(class_ids)}
    own = np.array([rows.get(i, -1) for i in ([-1] * pictures if labels is None else labels.tolist())])
    with_row = order[own[order] >= 0]
    counts = _shares(pairs, [pictures, len(with_row), int((len(class_ids) - (own >= 0)).sum())])
    clean, matched = order[: counts[CLEAN]], with_row[: counts[MATCHED]]
    image, row = _unmatched(order, own, len(class_ids), counts[UNMATCHED], rng)
    images = np.concatenate([clean, matched, image])
    occluders = np.concatenate([np.zeros_like(clean), own[matched] + 1, row + 1])
    shuffled = rng.permutation(len(images))
    kind = np.repeat(np.array([CLEAN, MATCHED, UNMATCHED], dtype=np.int8), counts)
    return ParityPairs(*(torch.from_numpy(part[shuffled]) for part in (images, occluders, kind)))


def _shares(pairs: int, available: Sequence[int]) -> list[int]:
    """Equal counts, and what one kind lacks goes to the others; the scarcest kind is served first."""
    counts = [0] * len(available)
    for served, kind in enumerate(sorted(range(len(available)), key=lambda kind: available[kind])):
        counts[kind] = min(available[kind], -(-pairs // (len(available) - served)))
        pairs -= counts[kind]
    return counts


def _unmatched(order: Ints, own: Ints, rows: int, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The first `count` of: every picture with one row, every picture with another one, and so on; [count] each.

    A picture walks once around one seeded circle of rows from a seeded start, over all but its own row.
    """
    circle = rng.permutation(rows)
    others = rows - (own >= 0)
    before_first = np.where(own >= 0, np.argsort(circle)[own] + 1, 0)
    start = rng.integers(0, np.maximum(others, 1))
    images, chosen, found, step = [order[:0]], [order[:0]], 0, 0
    while found < count:
        walking = order[others[order] > step][: count - found]
        images.append(walking)
        chosen.append(circle[(before_first[walking] + (start[walking] + step) % others[walking]) % rows])
        found, step = found + len(walking), step + 1
    return np.concatenate(images), np.concatenate(chosen)


# ---- the verdict


@dataclass(frozen=True)
class KindNumbers:
    """The pairs of one kind. Shares are 0 … 1, points are percent; None without pairs, usable logits or labels."""

    pairs: int
    pictures: int
    agreement: float | None = None
    accuracy_found: float | None = None
    accuracy_truth: float | None = None
    difference_points: float | None = None
    ci95_points: list[float] | None = None
    design_effect: float | None = None
    within_half_point: bool | None = None
    """Whether the whole interval is: only this is evidence for a claim."""


@dataclass(frozen=True)
class LogitErrors:
    """Engine's logits minus truth. `centred`: less each class's mean difference over the pairs. `own`: PyTorch's own at
    that precision, None where not given or not finite. `range`: largest minus smallest logit of the truth."""

    max_error: float
    range: float
    rms_error: float
    centred_rms_error: float
    own_rms_error: float | None
    own_centred_rms_error: float | None
    floor: float


@dataclass(frozen=True)
class Verdict:
    """Whether an engine passed, by which gate (`fp32`, `accuracy` or `rounding`), and all the numbers."""

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
        """Plain JSON types, without NaN."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Two to five lines for the terminal."""
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
    - `accuracy` (bf16, fp16, labels): 97 % of clean top-1 are the same, and for no kind does the interval of the
      accuracy's difference lie wholly beyond ±0.5 point. It sees no logits: swapped unmatched rows can pass.
    - `rounding` (bf16, fp16, no labels): the RMS error, each class's mean over the pairs taken off, is at most twice
      that of PyTorch at that precision. Without trained weights logits are mostly a constant of the class, and so is
      much of their rounding; what is left is what pictures and occluders do. A constant shift of a class is not seen
      here: `rms_error` beside `own_rms_error` shows it, and so does the `fp32` gate on the same graph.

    Parameters
    ----------
    truth, found
        float32 [P, C]: PyTorch's float32 logits, the engine's.
    precision
        `fp32`, `bf16` or `fp16`.
    labels
        int64 [P], of each pair's picture; None for random weights or pictures without labels.
    own
        float32 [P, C], PyTorch's at `precision`; needed for `rounding`, elsewhere it is reported or None.

    Raises
    ------
    InputError
        The truth is not finite.
    ValueError
        Nothing to compare: no pairs, no clean ones for `accuracy`, a single one for `rounding`; no `own` for
        `rounding`; shapes that do not belong together; an unknown precision.
    """
    gate = "fp32" if precision == "fp32" else "rounding" if labels is None else "accuracy"
    _check(truth, pairs, precision, labels, own, gate)
    errors, fault = None, ""
    if found.shape != truth.shape:
        fault = f"logits of shape {list(found.shape)}, not {list(truth.shape)}"
    elif broken := int((~found.isfinite()).any(dim=1).sum()):
        fault = f"NaN or infinite logits in {broken} of {len(found)} pairs"
    else:
        errors = _errors(truth.double(), found, own)
    # The lowest id on a tie, as `score` has it.
    top = None if errors is None else (truth.argmax(dim=1), found.argmax(dim=1))
    kinds = {name: _numbers(pairs, kind, top, labels) for kind, name in enumerate(KINDS)}
    if errors is not None:
        fault = _fault(gate, kinds, errors)
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
        raise ValueError(f"{len(pairs)} pairs: nothing that the gate {gate} can compare")
    if gate == "rounding" and own is None:
        raise ValueError(f"{precision} without labels is judged by PyTorch's own logits at {precision}; give them")
    if not truth.isfinite().all():
        raise InputError("float32 PyTorch itself gives NaN or infinite logits; check the weights")


def _numbers(pairs: ParityPairs, kind: int, top: tuple[Tensor, Tensor] | None, labels: Tensor | None) -> KindNumbers:
    """Of one kind, from top-1 answers int64 [P] of truth and engine."""
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
    """From float64 truth: differences are exact there."""
    difference = found - truth
    own_rms = (None, None) if own is None or not own.isfinite().all() else _rms(own - truth)
    # A float32 is off by half an eps of itself, two are by one eps; an RMS is no more than the largest.
    floor = torch.finfo(torch.float32).eps * float(truth.abs().max())
    spread = float(truth.max() - truth.min())
    return LogitErrors(float(difference.abs().max()), spread, *_rms(difference), *own_rms, floor)


def _rms(difference: Tensor) -> tuple[float, float]:
    """Plain, and with each class's mean over the pairs taken off."""
    return _mean(difference**2) ** 0.5, _mean((difference - difference.mean(dim=0)) ** 2) ** 0.5


def _fault(gate: str, kinds: dict[str, KindNumbers], errors: LogitErrors) -> str:
    """The first thing that this gate does not let pass, or nothing."""
    if gate == "rounding":
        return _rounding_fault(errors.centred_rms_error, errors.own_centred_rms_error, errors.floor)
    least_agreement = dict.fromkeys(KINDS, 1.0) if gate == "fp32" else {KINDS[CLEAN]: CLEAN_AGREEMENT}
    for name, least in least_agreement.items():
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
