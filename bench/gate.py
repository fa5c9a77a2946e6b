"""The gate of the pairs benchmarks: an engine whose logits are not PyTorch's has no speed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..engine.engines.base import Engine
from ..engine.parity.gates import judge
from ..engine.parity.pairs import ParityPairs, parity_pairs
from ..engine.parity.reference import reference
from ..export.classifier import FrozenClassifier
from .workload import Workload

_PAIRS = 24
BLIND = "unchecked: with these weights and occluders, wrong occluders would give the same answers; give real ones"


class GateVerdict(NamedTuple):
    """Whether an engine is right, and whether the comparison could tell."""

    wrong: str
    """How the logits differ from PyTorch's beyond what the precision explains; empty where they do not."""
    telling: bool
    """Whether these weights and pictures distinguish an engine that takes the wrong occluders from a right one."""


def check_engine(engine: Engine, work: Workload, images: Tensor) -> GateVerdict:
    """Compare an open engine, which has the workload's occluders, with PyTorch on the CPU.

    Parameters
    ----------
    images
        uint8 [B, S, S, 3].
    """
    pairs = parity_pairs(None, range(len(work.occluders)), len(images), _PAIRS, seed=0)
    right, wrong = _reference(work.classifier, "fp32", images, pairs, (work.occluders, -work.occluders.flip(0)))
    own = None
    if engine.precision != "fp32":
        (own,) = _reference(work.classifier, engine.precision, images, pairs, (work.occluders,))
    found = _logits(engine, images, pairs)
    verdict, spoilt = (judge(right, of, pairs, engine.precision, None, own) for of in (found, wrong))
    return GateVerdict("" if verdict.passed else f"differs from PyTorch: {verdict.reason}", not spoilt.passed)


def _reference(
    classifier: FrozenClassifier, precision: str, images: Tensor, pairs: ParityPairs, banks: tuple[Tensor, ...]
) -> list[Tensor]:
    """Return the reference's logits under each bank."""
    found = []
    with reference(classifier, precision, "cpu") as right:
        for bank in banks:
            right.load_bank(bank)
            found.append(_logits(right, images, pairs))
    return found


def _logits(engine: Engine, images: Tensor, pairs: ParityPairs) -> Tensor:
    return engine.infer(engine.place(images), pairs.image_index, pairs.occluder_index).cpu()
