"""How a bank is trained, and which pictures it may use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...export.classifier import PRECISIONS
from ...export.errors import InputError
from ...export.options import read_options
from ...kernels.ball import NORMS, largest_difference
from ..cluster.spec import ClusterSpec
from .augment import check_augment
from .objectives import OBJECTIVES
from .objectives.base import Objective
from .optimizers import OPTIMIZERS
from .preserve import PreserveConfig

SHORTHANDS = {"kappa": "--kappa"}
"""Options of objectives that have an option of their own in gfo-train."""

# On a CPU the tensors of a whole batch come from memory and not from the caches, and take gigabytes.
_PASS_SIZE = {"cpu": 32}


@dataclass(frozen=True)
class TrainConfig:
    """How a bank is trained, checked when it is made. Pixel units are 0 … 255.

    Attributes
    ----------
    epsilon, norm
        Radius of the ball in pixel units: of every pixel (`linf`), or ‖d‖₂ of the occluder (`l2`).
    epochs
        Passes over each class's pictures.
    batch_size, classes_together
        Number of pictures in a batch, and of the classes that share it.
    optimizer
        Name in `OPTIMIZERS`: `momentum` (normalised steps) or `adam`.
    step, momentum
        First step as a share of ε, falling to 0 along half a cosine: what a pixel moves, or with momentum in the l2
        ball the whole occluder. Decay μ of the momentum, β₁ of Adam.
    pictures_per_class, held_out
        Number of training pictures per class to fit (None: all), and to set aside, as for choosing ε; seeded draws.
    seed
        Seed of every draw and of the order of the pictures.
    objective, objective_options
        Name in `OBJECTIVES`, and values for its `Options`, as `{"kappa": 5.0}` for `pure`.
    target_accuracy
        Accuracy, 0 … 1, to leave a class: its occluder is left as it is after the first epoch that reaches it on the
        held-out pictures, or on the fitted ones where none are, and then made as weak as it allows. None: the last
        epoch's, at full strength.
    preserve
        Pictures of other classes whose answers are preserved, for objectives that do so; `specific` needs them.
    correct_only
        Whether only pictures that the clean network gets right are fitted.
    augment
        Names in `AUGMENTATIONS`: random changes of the fitted pictures, in turn, anew each time.
    pass_size
        Maximum number of pictures in a forward and backward pass. A batch's gradient is the sum over its passes: this
        changes rounding, speed and memory alone. None: 32 on a CPU, the batch on a GPU.
    precision
        Precision of the network, `fp32`, `bf16`, `fp16` or `auto` (measured); occluders are always float32.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    impl
        Implementation of the fused operations, `auto`, `reference` or `triton`; see `kernels.impl.choose_impl`.
    cluster
        Dask cluster whose workers train, a group of classes at a time; None means this process.

    Raises
    ------
    InputError
        A number out of range, or an unknown name or option.
    """

    epsilon: float
    norm: str = "linf"
    epochs: int = 8
    batch_size: int = 64
    classes_together: int = 4
    optimizer: str = "momentum"
    step: float = 0.1
    momentum: float = 0.9
    pictures_per_class: int | None = None
    held_out: int = 0
    seed: int = 0
    objective: str = "pure"
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    preserve: PreserveConfig | None = None
    correct_only: bool = False
    augment: tuple[str, ...] = ()
    target_accuracy: float | None = None
    pass_size: int | None = None
    precision: str = "auto"
    device: str = "auto"
    impl: str = "auto"
    cluster: ClusterSpec | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise InputError(f"--precision {self.precision}: expected auto or one of {', '.join(PRECISIONS)}")
        if self.norm not in NORMS:
            raise InputError(f"--norm {self.norm}: expected one of {', '.join(NORMS)}")
        OPTIMIZERS.check(self.optimizer)
        check_augment(self.augment)
        objective = self.make_objective()
        if self.preserve is not None and not objective.preserves:
            others = " or ".join(name for name, kind in OBJECTIVES.by_name().items() if kind.preserves)
            raise InputError(f"--preserve: objective {self.objective} preserves nothing; use --objective {others}")
        if self.preserve is not None and objective.shared:  # a class's occluder meets no preserved picture of it
            raise InputError(f"--preserve: objective {self.objective} has one occluder for all classes; drop it")
        if self.preserve is None and objective.needs_preserved:
            raise InputError(
                f"--objective {self.objective}: has nothing to preserve; add --preserve FOLDER, classes or a number of "
                "classes"
            )
        if self.preserve and self.preserve.every and self.preserve.weight != 1 and self.optimizer == "momentum":
            raise InputError(
                f"--preserve-weight {self.preserve.weight}: has no effect with --preserve-every and --optimizer "
                "momentum, which takes steps of one size; leave it out or use adam"
            )
        for option, value, low, high in (
            ("--epochs", self.epochs, 1, 10**6),
            ("--batch-size", self.batch_size, 1, 10**5),
            ("--classes-together", self.classes_together, 1, 10**5),
            ("--step", self.step, math.ulp(0.0), 2.0),
            ("--momentum", self.momentum, 0.0, math.nextafter(1.0, 0.0)),
            ("--per-class", 1 if self.pictures_per_class is None else self.pictures_per_class, 1, 10**9),
            ("--pass-size", 1 if self.pass_size is None else self.pass_size, 1, 10**5),
            ("--held-out", self.held_out, 0, 10**9),
            ("--target-accuracy", 0.0 if self.target_accuracy is None else self.target_accuracy, 0.0, 1.0),
        ):
            _check_range(option, value, low, high)

    def pictures_in_a_pass(self, device: str) -> int:
        """Return the maximum number of pictures in a pass on a device of that type, `cpu` or `cuda`."""
        return min(self.batch_size, self.pass_size or _PASS_SIZE.get(device, self.batch_size))

    def check_epsilon(self, input_size: int) -> None:
        """Raise `InputError` unless ε is above 0 and at most the largest difference of two pictures of that size."""
        _check_range("--epsilon", self.epsilon, math.ulp(0.0), largest_difference(self.norm, input_size))

    def make_objective(self) -> Objective:
        """Make the objective from its options."""
        kind = OBJECTIVES[self.objective]
        owner = f"objective {self.objective}"
        return kind(read_options(kind.Options, self.objective_options, "--objective-option", owner, SHORTHANDS))

    def step_size(self, done: float) -> float:
        """Return α in pixel units after the share `done` (0 … 1) of all steps: half a cosine from step · ε to 0."""
        return self.step * self.epsilon * 0.5 * (1 + math.cos(math.pi * done))

    def header(self) -> dict[str, Any]:
        """Return what the bank's header records under `objective` of how the bank is trained."""
        return {
            **self.make_objective().header(),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "classes_together": self.classes_together,
            "optimizer": self.optimizer,
            "step": self.step,
            "momentum": self.momentum,
            "pictures_per_class": self.pictures_per_class,
            "held_out": self.held_out,
            # Only where they are used: banks from before there were such options go on to fit their configuration.
            **({"preserve": self.preserve.header()} if self.preserve else {}),
            **({"correct_only": True} if self.correct_only else {}),
            **({"augment": list(self.augment)} if self.augment else {}),
            **({} if self.target_accuracy is None else {"target_accuracy": self.target_accuracy}),
        }


def _check_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        above = "above 0" if low == math.ulp(0.0) else f"at least {low:g}"
        raise InputError(f"{option} {value}: must be {above} and at most {high:g}")


def split_pictures(paths: Sequence[str], class_id: int, config: TrainConfig) -> tuple[list[str], list[str]]:
    """Split the pictures of a class into (fitted, held out), a draw seeded by class.

    Raises
    ------
    InputError
        The class has too few pictures to hold out that many and fit one.
    """
    order = np.random.default_rng([config.seed, class_id]).permutation(len(paths))
    shuffled: list[str] = [paths[int(i)] for i in order]
    held_out, rest = shuffled[: config.held_out], shuffled[config.held_out :]
    if not rest:
        raise InputError(
            f"--held-out {config.held_out}: class folder of {paths[0]} has only {len(paths)}; hold out fewer"
        )
    return sorted(rest[: config.pictures_per_class]), sorted(held_out)
