"""How a bank is trained, checked before anything runs, and which pictures it may use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...export.errors import InputError
from ...kernels.occluder_step import NORMS

OPTIMIZERS = ("momentum", "adam")


@dataclass(frozen=True)
class TrainConfig:
    """How a bank is trained. Pixel units are 0 … 255.

    Attributes
    ----------
    epsilon, norm
        Radius of the ball in pixel units: of every pixel (`linf`), or ‖d‖₂ of the occluder (`l2`).
    kappa
        Confidence of the margin, ≥ 0, in logit units: pictures wrong by more no longer pull.
    epochs
        Passes over each class's pictures.
    batch_size, classes_together
        Pictures in a batch, and over how many classes they are spread.
    optimizer
        `momentum`: along a running sum of normalised gradients, its signs (l∞) or its direction (l2); or `adam`.
    step, momentum
        First step as a share of ε, falling to 0 along half a cosine: what a pixel moves, or with momentum in the l2
        ball the whole occluder. Decay μ of the momentum, β₁ of Adam.
    pictures_per_class, held_out
        Training pictures to fit (None: all), and to set aside for choosing ε or anything else; a seeded draw each.
    """

    epsilon: float
    norm: str = "linf"
    kappa: float = 10.0
    epochs: int = 8
    batch_size: int = 64
    classes_together: int = 4
    optimizer: str = "momentum"
    step: float = 0.1
    momentum: float = 0.9
    pictures_per_class: int | None = None
    held_out: int = 0
    seed: int = 0

    def check(self, input_size: int) -> None:
        """Raise `InputError` for a number out of range."""
        if self.norm not in NORMS:
            raise InputError(f"--norm {self.norm}: expected one of {', '.join(NORMS)}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"--optimizer {self.optimizer}: expected one of {', '.join(OPTIMIZERS)}")
        largest = 255.0 if self.norm == "linf" else 255.0 * math.sqrt(3) * input_size
        for option, value, low, high in (
            ("--epsilon", self.epsilon, math.ulp(0.0), largest),
            ("--kappa", self.kappa, 0.0, 1e6),
            ("--epochs", self.epochs, 1, 10**6),
            ("--batch-size", self.batch_size, 1, 10**5),
            ("--classes-together", self.classes_together, 1, 10**5),
            ("--step", self.step, math.ulp(0.0), 2.0),
            ("--momentum", self.momentum, 0.0, math.nextafter(1.0, 0.0)),
            ("--per-class", 1 if self.pictures_per_class is None else self.pictures_per_class, 1, 10**9),
            ("--held-out", self.held_out, 0, 10**9),
        ):
            if not low <= value <= high:
                above = "above 0" if low == math.ulp(0.0) else f"at least {low:g}"
                raise InputError(f"{option} {value}: must be {above} and at most {high:g}")


def split_pictures(paths: Sequence[str], class_id: int, config: TrainConfig) -> tuple[list[str], list[str]]:
    """A class's pictures (fitted, held out): a draw seeded by class.

    Raises
    ------
    InputError
        Fewer pictures than are to be held out, or none left to fit.
    """
    order = np.random.default_rng([config.seed, class_id]).permutation(len(paths))
    shuffled: list[str] = [paths[int(i)] for i in order]
    held_out, rest = shuffled[: config.held_out], shuffled[config.held_out :]
    if not rest:
        raise InputError(
            f"--held-out {config.held_out}: class folder of {paths[0]} has only {len(paths)}; hold out fewer"
        )
    return sorted(rest[: config.pictures_per_class]), sorted(held_out)
