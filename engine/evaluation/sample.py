"""Records of a sampled run: how its pairs were drawn, how sure its cells are, and what became of its claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .results import Count, Interval, Record, Text

CellName = Literal["clean", "matched", "unmatched", "matched/clean", "unmatched/clean"]
Decision = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class SampledCell(Record):
    """A cell from a part of its pairs."""

    cell: CellName
    """Its name."""
    value: float
    """The estimate of what all pairs would have given."""
    half_width: float
    """The 95 % interval over the pairs that were not drawn, of these very pictures, is `value` ± this; 0 is exact."""
    wanted: float | None
    """The half-width asked for; null for none."""
    pairs: Count
    """Pairs drawn."""
    total: Count
    """Pairs that there are."""


@dataclass(frozen=True)
class DecidedClaim(Record):
    """A claim, and the bounds that decide it: a confidence sequence, which may be looked at as often as one likes."""

    claim: Text
    """As it was asked, as `matched<=0.25`."""
    decision: Decision
    """Whether it holds; `undecided` where the sampling ended before."""
    sequence: Interval
    """Bounds on its cell at the end."""
    pairs_needed: Count | None
    """Pairs of the cell after which it will probably be decided, those drawn among them; null where it is decided."""


@dataclass(frozen=True)
class Sample(Record):
    """How a sampled run was drawn, and how sure it is. Its seed is that of the run."""

    design: Text
    """How pairs were drawn."""
    estimator: Text
    """How cells were estimated."""
    cells: tuple[SampledCell, ...]
    """The cells, with their sampling intervals."""
    claims: tuple[DecidedClaim, ...]
    """The claims, in the order asked; decisions of one call hold together with a probability of 95 %."""

    @property
    def short(self) -> tuple[SampledCell, ...]:
        """The cells that have not reached the half-width asked for."""
        return tuple(cell for cell in self.cells if cell.wanted is not None and cell.half_width > cell.wanted)
