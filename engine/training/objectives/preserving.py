"""What objectives share that preserve the answers to other classes: margins, and the loss of preserved pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from ....export.errors import InputError
from .base import Objective
from .pure import Pure


def margin(logits: Tensor, labels: Tensor, *, detach_rival: bool = False) -> Tensor:
    """Return z_y − max_{j ≠ y} z_j of each picture, float32 [P]; the rival's logit without gradient if asked."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    rival = logits.scatter(1, labels[:, None], -math.inf).max(dim=1).values
    return own - (rival.detach() if detach_rival else rival)


@dataclass(frozen=True, kw_only=True)
class PreservingOptions(Pure.Options):
    """Options of objectives that preserve.

    Attributes
    ----------
    kappa
        As of `pure`, for every margin.
    detach_rival
        Whether the strongest rival's logit has no gradient, as in the published code of DT-UAP.
    keep
        Loss of preserved pictures: cross-entropy with the clean network's answer, the Kullback-Leibler divergence from
        its distribution, or the margin of its answer.
    pairing
        Weight λ ≥ 0 of the mean squared difference from the clean logits, added to that.
    """

    detach_rival: bool = field(default=False, metadata={"help": "give the strongest rival's logit no gradient"})
    keep: Literal["cross-entropy", "kl", "margin"] = field(
        default="cross-entropy", metadata={"help": "loss of preserved pictures: cross-entropy, kl or margin"}
    )
    pairing: float = field(
        default=0.0, metadata={"help": "weight of the mean squared difference from the clean logits"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pairing <= 1e6:
            raise InputError(f"--objective-option pairing={self.pairing}: must be at least 0 and at most 1e+06")


class Preserving(Objective):
    """An objective with `PreservingOptions`; `formula` is the name of its `loss`."""

    preserves = True
    formula: ClassVar[str]

    def __init__(self, options: PreservingOptions) -> None:
        self._options = options

    def header(self) -> dict[str, Any]:
        """See `Objective.header`."""
        return {"loss": self.formula, **vars(self._options)}

    def preserving_loss(self, logits: Tensor, clean: Tensor) -> Tensor:
        """See `Objective.preserving_loss`."""
        options, answers = self._options, clean.argmax(dim=1)
        match options.keep:
            case "cross-entropy":
                loss = functional.cross_entropy(logits, answers, reduction="none")
            case "kl":
                logs, wanted = logits.log_softmax(dim=1), clean.log_softmax(dim=1)
                loss = functional.kl_div(logs, wanted, reduction="none", log_target=True).sum(dim=1)
            case "margin":
                kept = margin(logits, answers, detach_rival=options.detach_rival)
                loss = (-kept).clamp(min=-options.kappa)
        return loss + options.pairing * (logits - clean).square().mean(dim=1) if options.pairing else loss
