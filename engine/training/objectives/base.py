"""What training expects of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor


class Objective(ABC):
    """A loss that occluders minimise.

    Attributes
    ----------
    name
        Name in `OBJECTIVES`.
    Options
        Frozen dataclass of the options that the objective is made from. Every field has a default, and a text for
        `gfo-doctor` as its metadata `help`; values that `__post_init__` refuses are an `InputError`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """Return what the bank's header records: `loss`, which names the formula, and the options. Values are JSON."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        """Return the loss of each occluded picture.

        Parameters
        ----------
        logits
            float32 [P, C]. Differentiable.
        labels
            int64 [P], the class of each picture, in 0 … C − 1.
        impl
            Implementation of the fused operations, `reference` or `triton`.

        Returns
        -------
        Tensor
            float32 [P]; its sum is minimised.
        """
