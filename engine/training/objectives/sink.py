"""Occluders that turn a class into a given other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....export.errors import InputError
from .preserving import Preserving, PreservingOptions, margin


class Sink(Preserving):
    """Away from a picture's own class c and towards the class t that is named, the sink.

    (max(z_c − max_{j ≠ c} z_j, 0) + max(max_{j ≠ t} z_j − z_t, −κ)) / 2

    Source: Benz et al., ACCV 2020 (DT-UAP), equations of L_t1 and L_t2; their code takes the mean of the two.
    """

    name = "sink"
    formula = "double-targeted-margin"

    @dataclass(frozen=True, kw_only=True)
    class Options(PreservingOptions):
        """Options of `sink`.

        Attributes
        ----------
        target
            Model output t ≥ 0 of the sink; −1 for none, which is refused.
        """

        target: int = field(default=-1, metadata={"help": "model output that the pictures are to be taken for"})

    def __init__(self, options: Options) -> None:
        if options.target < 0:
            raise InputError("--objective sink: needs --objective-option target=N, the model output to be taken for")
        super().__init__(options)
        self._target = options.target

    def check(self, class_ids: Sequence[int], outputs: int) -> None:
        """See `Objective.check`."""
        option = f"--objective-option target={self._target}"
        if self._target >= outputs:
            raise InputError(f"{option}: the model has outputs 0..{outputs - 1}")
        if self._target in class_ids:
            raise InputError(f"{option}: is a class of the bank, which cannot be its own sink; leave it out")

    def loss(self, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        """See `Objective.loss`. There is no fused form: `impl` is not read."""
        detach = self._options.detach_rival
        away = margin(logits, labels, detach_rival=detach).clamp(min=0)
        towards = -margin(logits, torch.full_like(labels, self._target), detach_rival=detach)
        return (away + towards.clamp(min=-self._options.kappa)) / 2
