"""What training expects of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor


class Objective(ABC):
    """A loss that occluders minimise.

    Attributes
    ----------
    name
        Name in `OBJECTIVES`.
    shared
        Whether one occluder serves all classes; every row of the bank is then the same.
    preserves
        Whether it takes pictures of other classes, whose answers are to stay; see `preserving_loss`. Not together
        with `shared`.
    needs_preserved
        Whether it makes no sense without them.
    Options
        Frozen dataclass of the options that the objective is made from. Every field has a default, and a text for
        `gfo-doctor` as its metadata `help`; values that `__post_init__` refuses are an `InputError`.
    """

    name: ClassVar[str]
    shared: ClassVar[bool] = False
    preserves: ClassVar[bool] = False
    needs_preserved: ClassVar[bool] = False
    Options: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """Return what the bank's header records: `loss`, which names the formula, and the options. Values are JSON."""

    def check(self, class_ids: Sequence[int], outputs: int) -> None:  # noqa: B027 (most have nothing to check)
        """Raise `InputError` where the objective does not go with the bank's classes or the model's outputs."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        """Return the loss of each occluded picture of an occluder's own class.

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

    def preserving_loss(self, logits: Tensor, clean: Tensor) -> Tensor:
        """Return the loss of each occluded picture whose answer is to stay, where the objective `preserves`.

        Parameters
        ----------
        logits
            float32 [P, C]. Differentiable.
        clean
            float32 [P, C], the network's logits without an occluder.

        Returns
        -------
        Tensor
            float32 [P]; its mean, times `PreserveConfig.weight`, is added to the mean of `loss`.
        """
        raise NotImplementedError(f"{self.name} preserves nothing")
