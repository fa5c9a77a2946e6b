"""Records of a certificate: what the tables of a run would be in fp32, from a random sample of its pairs."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Count, Record, Text
from .sample import CellName


@dataclass(frozen=True)
class CertifiedCell(Record):
    """A cell as all of its pairs would give it in fp32."""

    cell: CellName
    """Its name."""
    run: float
    """The cell of the run itself, from all pairs."""
    value: float
    """The estimate of what all pairs would give in fp32."""
    half_width: float
    """The 95 % interval over the pairs that were not drawn, of these very pictures, is `value` ± this; 0 is exact."""
    wanted: float | None
    """The half-width asked for; null for none, as for ratios."""
    pairs: Count
    """Pairs evaluated in fp32; of a ratio, those of the cell above."""
    total: Count
    """Pairs that there are."""
    changed: float | None
    """Share of the pairs drawn that are right in one of the two and wrong in the other; null for a ratio."""


@dataclass(frozen=True)
class Certificate(Record):
    """The tables of a run in fp32, with intervals. The seed of the order is that of the run."""

    design: Text
    """How pairs were drawn."""
    estimator: Text
    """How cells were estimated."""
    engine: Text
    """Engine of the fp32 answers."""
    engine_variant: str | None
    """Its form; see `engine_variant` of the run."""
    device: Text
    """`cpu`, or the name of the GPU."""
    artefact: str | None
    """Key of the exported artefact that gave the fp32 answers; null for a model."""
    cells: tuple[CertifiedCell, ...]
    """Clean, matched and unmatched accuracy, and the two ratios, as far as there are such pairs."""

    @property
    def short(self) -> tuple[CertifiedCell, ...]:
        """The cells that have not reached the half-width asked for."""
        return tuple(cell for cell in self.cells if cell.wanted is not None and cell.half_width > cell.wanted)
