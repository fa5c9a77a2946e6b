"""Means over classes with 95 % intervals from two cluster bootstraps (percentile).

Pictures are reused under every occluder and classes by every pair, so pairs are not independent:

- `ci95_pictures`: pictures are resampled within their class; a picture keeps its answers under all occluders.
  It generalises to other pictures of these classes.
- `ci95_classes`: classes are resampled too, each with its occluder and its resampled pictures (in a pair of two classes
  both are drawn; pairs of a class with itself drop out). It generalises to other classes.

Ratios are formed within each replicate. Means are fed class by class: memory does not grow with the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .results import Accuracy, Interval, Rate, Ratio

Floats = NDArray[np.float64]

# A percentile interval of 95 % needs its tails: with more replicates that are missing, as those of a bank that does not
# reach a mark, it would be too narrow.
MOST_MISSING: Final = 0.025


@dataclass(frozen=True)
class Bootstrapped:
    """A number (NaN without pictures) and its replicates under the two bootstraps, [R] each."""

    value: float
    pictures: Floats
    classes: Floats

    def __truediv__(self, other: Bootstrapped) -> Bootstrapped:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(self.value, other.value))
            return Bootstrapped(value, self.pictures / other.pictures, self.classes / other.classes)

    def __sub__(self, other: Bootstrapped) -> Bootstrapped:
        return Bootstrapped(self.value - other.value, self.pictures - other.pictures, self.classes - other.classes)

    def intervals(self, classes: int) -> tuple[Interval | None, Interval | None]:
        """Return the intervals over pictures and over classes; the latter is None for a single class."""
        return _ci95(self.pictures), _ci95(self.classes) if classes > 1 else None

    def accuracy(self, classes: int, pictures: int) -> Accuracy | None:
        """Return the number as a cell over that many classes and pictures; None if it is not finite."""
        return Accuracy(self.value, *self.intervals(classes), pictures) if np.isfinite(self.value) else None

    def rate(self, classes: int, pictures: int) -> Rate | None:
        """Return the number as a rate, as `accuracy` does."""
        return Rate(self.value, *self.intervals(classes), pictures) if np.isfinite(self.value) else None

    def ratio(self, classes: int) -> Ratio | None:
        """Return the number as a ratio, as `accuracy` does."""
        return Ratio(self.value, *self.intervals(classes)) if np.isfinite(self.value) else None


def mean(numbers: Sequence[Bootstrapped]) -> Bootstrapped:
    """Return the mean of numbers, replicate by replicate; all are NaN where more than 2.5 % of them lack a number."""

    def averaged(kind: str) -> Floats:
        found = np.mean([getattr(one, kind) for one in numbers], axis=0)
        return np.full_like(found, np.nan) if np.isnan(found).mean() > MOST_MISSING else found

    return Bootstrapped(float(np.mean([one.value for one in numbers])), averaged("pictures"), averaged("classes"))


def _ci95(replicates: Floats) -> Interval | None:
    finite = replicates[np.isfinite(replicates)]
    if len(finite) == 0:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


class ClassMean:
    """Weighted mean over classes, of the value and of every replicate, fed class by class."""

    def __init__(self, replicates: int) -> None:
        self._value = np.zeros(2)
        self._pictures = np.zeros((2, replicates))
        self._classes = np.zeros((2, replicates))

    def add(
        self,
        value: float,
        replicates: Floats,
        draws: Floats,
        weight: float = 1.0,
        *,
        replicate_weights: Floats | None = None,
        class_part: tuple[Floats, Floats] | None = None,
    ) -> None:
        """Add a class: its value, its [R] picture replicates, and how often each class replicate drew it, [R].

        `replicate_weights` are the [R] weights where they are resampled too (a ratio of sums); `class_part` replaces
        numerator and denominator of the class bootstrap, where the draws of occluders enter as well.
        """
        weights = np.full_like(replicates, weight) if replicate_weights is None else replicate_weights
        self._value += (value * weight, weight)
        self._pictures += (replicates * weights, weights)
        self._classes += class_part or (draws * weights * replicates, draws * weights)

    def estimate(self) -> Bootstrapped:
        """Divide the sums; a value or replicate without a class is NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value, pictures, classes = (part[0] / part[1] for part in (self._value, self._pictures, self._classes))
        return Bootstrapped(float(value), pictures, classes)
