"""What a benchmark of pairs runs: a network, occluders, and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..export.bank import OccluderBank
from ..export.classifier import FrozenClassifier
from ..export.errors import InputError
from ..export.options import whole_number
from .ceilings import flops

# Size of the random signs that stand for a bank: clamping is then as frequent as under a trained one.
_EPSILON = 10.0


@dataclass(frozen=True)
class Workload:
    """What is run.

    Attributes
    ----------
    occluders
        float32 [K, S, S, 3], pixel units.
    folder, paths
        Picture files; they are taken again from the start where more are wanted than there are.
    data
        Name of the pictures, for the rows.
    pictures
        How many a call of `end-to-end` reads, and at most in one of `pairs`; None for as many as fit the time.
    pairs
        Pairs in a pass; None for what is measured to be fastest.
    workers
        Threads that decode, a row of `end-to-end` for each number; empty for one thread a core.
    """

    classifier: FrozenClassifier
    occluders: Tensor
    folder: Path
    paths: Sequence[str]
    data: str
    pictures: int | None = None
    pairs: int | None = None
    workers: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Rows of a picture: the clean one and the occluders."""
        return 1 + len(self.occluders)

    @cached_property
    def flops(self) -> int:
        """FLOP of the network for one picture (`ceilings.flops`)."""
        return flops(self.classifier)

    def files(self, count: int) -> list[str]:
        """Return `count` picture paths."""
        return [self.paths[i % len(self.paths)] for i in range(count)]


def load_occluders(text: str, classifier: FrozenClassifier, seed: int) -> Tensor:
    """Return the occluders that `--occluders` names, float32 [K, S, S, 3].

    Parameters
    ----------
    text
        `K` for random signs, `zero:K`, `FILE` for a bank that fits, or `FILE:K` for its first K.
    seed
        Seed of the random signs.

    Raises
    ------
    InputError
        None of these, too few in the bank, or too many for the memory.
    """
    size, (kind, _, number) = classifier.preprocessing.input_size, text.rpartition(":")
    count = whole_number(number)
    if count == 0:
        raise InputError(f"--occluders {text}: expected at least 1")
    if count is not None and kind in ("", "zero"):
        try:
            bank = torch.zeros(count, size, size, 3)
        except RuntimeError as error:  # PyTorch's error for a lack of memory on the CPU, and for sizes beyond 64 bits
            raise InputError(f"--occluders {text}: do not fit into the memory; use fewer") from error
        if not kind:
            bank.bernoulli_(generator=torch.Generator().manual_seed(seed)).mul_(2 * _EPSILON).sub_(_EPSILON)
        return bank
    path = Path(text if count is None else kind)
    if not path.is_file():
        raise InputError(f"--occluders {text}: bank not found; give a number, zero:K, FILE or FILE:K")
    bank = OccluderBank.load(path)
    bank.check_fits(classifier, path)
    if count is not None and count > len(bank.occluders):
        raise InputError(f"--occluders {text}: {path} holds {len(bank.occluders)}; use at most as many")
    return bank.occluders[:count]
