"""How an evaluation runs: `EvaluationConfig`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...export.errors import InputError
from ..cluster.spec import ClusterSpec
from ..engines.choice import EngineChoice

PICTURES = ("all", "fitted", "held-out", "preserved", "unseen")


@dataclass(frozen=True)
class EvaluationConfig:
    """Engine and selection of pictures of an evaluation, checked when it is made.

    Attributes
    ----------
    engine
        Which engine runs, at which precision.
    pictures
        Which pictures, by the bank's use of them: `all`, those that it was `fitted` on, those `held-out`, those whose
        answers were to be `preserved`, or `unseen` ones.
    per_class
        Maximum number of pictures per class, a seeded draw; None means all.
    batch_size
        Maximum number of pairs in a pass through the network; None measures what is fastest where the run is long
        enough, and remembers it (`passes`).
    shard
        (i, n) evaluates every n-th file of the RUN from the i-th (0 … n − 1), for n workers that fill it together.
    max_quarantined
        Share of the run's pictures, 0 … 1, that may be quarantined. A larger share ends the run: it is probably over
        the wrong folder.
    seed
        Seed of the noise row, the permutation, the draws and the bootstrap.
    strengths
        Factors on the occluders, above 0; each has a RUN of its own, and the pictures are read once.
    cluster
        Dask cluster whose workers evaluate; None means this process.

    Raises
    ------
    InputError
        A number out of range, or an unknown selection.
    """

    engine: EngineChoice = field(default_factory=EngineChoice)
    pictures: str = "all"
    per_class: int | None = None
    batch_size: int | None = None
    shard: tuple[int, int] | None = None
    max_quarantined: float = 0.05
    seed: int = 0
    strengths: tuple[float, ...] = (1.0,)
    cluster: ClusterSpec | None = None

    def __post_init__(self) -> None:
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise InputError(f"--shard {self.shard[0]}/{self.shard[1]}: expected I/N with I from 0 to N - 1")
        if self.cluster is not None and self.shard is not None:
            raise InputError(f"--cluster {self.cluster}: shares the run out itself; leave --shard out")
        if self.pictures not in PICTURES:
            raise InputError(f"--pictures {self.pictures}: expected one of {', '.join(PICTURES)}")
        if not 0 <= self.max_quarantined <= 1:
            raise InputError(f"--max-quarantined {self.max_quarantined}: expected a share from 0 to 1")
        for option, value in (("--per-class", self.per_class), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{option} {value}: must be at least 1")
        _check_strengths(self.strengths)


def strength_name(strength: float) -> str:
    """Return a strength as text, which is the name of its folder where there are several."""
    return f"{strength:g}"


def run_folders(out: Path, strengths: Sequence[float]) -> dict[float, Path]:
    """Return the folder of each strength's RUN: `out` for a single one, `out/0.5` for 0.5 of several."""
    several = len(strengths) > 1
    return {strength: out / strength_name(strength) if several else out for strength in strengths}


def _check_strengths(strengths: tuple[float, ...]) -> None:
    names = [strength_name(strength) for strength in strengths]
    if not strengths:
        raise InputError("--strength: name at least one number")
    for strength, name in zip(strengths, names, strict=True):
        if not 0 < strength < math.inf:
            raise InputError(f"--strength {name}: must be above 0 and finite")
        if float(name) != strength:
            raise InputError(f"--strength {strength!r}: has more than six digits; use {name}")
        if names.count(name) > 1:
            raise InputError(f"--strength {','.join(names)}: {name} is named twice; leave one out")
