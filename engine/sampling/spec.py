"""What a sampled evaluation is to reach: widths of cells, claims to decide, and the most pairs it may take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from ...export.errors import InputError
from ..evaluation.sample import CellName
from .drawing import LEAST
from .strata import StratumName

CELLS: Final[tuple[CellName, ...]] = get_args(CellName)
_ROUNDING = 1e-9  # of a cell that is known
_CLAIM = re.compile(r"([a-z/]+)\s*(<=|>=)\s*(\S+)")


@dataclass(frozen=True)
class Claim:
    """That a cell is at most or at least a number."""

    cell: CellName
    at_most: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.cell}{'<=' if self.at_most else '>='}{self.bound:g}"

    def decided(self, low: float, high: float) -> bool | None:
        """Return whether it holds for all of `low` … `high`, or for none of them; None where only for some."""
        if self.at_most:
            return True if high <= self.bound + _ROUNDING else False if low > self.bound + _ROUNDING else None
        return True if low >= self.bound - _ROUNDING else False if high < self.bound - _ROUNDING else None


def stratum_of(cell: CellName) -> StratumName | None:
    """Return the pairs that a cell is drawn from; None for `clean`, which every picture has."""
    name = cell.partition("/")[0]
    return None if name == "clean" else name  # type: ignore[return-value]


def check_width(cell: CellName, mark: float) -> None:
    """Raise `InputError` for a half-width that no cell can have."""
    if not 0 < mark < 1:
        raise InputError(f"--until {cell}={mark:g}: a half-width is above 0 and below 1, as 0.01 for ±1 point")


@dataclass(frozen=True)
class SamplingSpec:
    """When a sampled evaluation ends: every width is reached and every claim decided.

    Attributes
    ----------
    until
        Half-width of the 95 % interval that a cell is to have, 0 … 1, exclusive, by cell.
    claims
        Claims to decide; all decisions of a call hold together with a probability of 95 %.
    max_pairs
        The most pairs to evaluate beside the clean ones; None for as many as it takes.
    as_there_are
        Whether `until` is about those of its cells that there are; otherwise a cell without pairs is refused.

    Raises
    ------
    InputError
        A number is out of range, a cell is claimed twice in one direction, or there is nothing to reach.
    """

    until: Mapping[CellName, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    max_pairs: int | None = None
    as_there_are: bool = False

    @property
    def cells(self) -> set[CellName]:
        """Cells that something is asked of."""
        return {*self.until, *(claim.cell for claim in self.claims)}

    def check_classes(self, count: int) -> None:
        """Raise `InputError` if something is asked of unmatched pairs and the bank has a single class."""
        asked: list[CellName] = [claim.cell for claim in self.claims]
        if not self.as_there_are:
            asked += self.until
        if count == 1 and "unmatched" in map(stratum_of, asked):
            raise InputError("--until, --claim: the bank has a single class, so no pair is unmatched; ask of matched")

    def __post_init__(self) -> None:
        if not self.until and not self.claims:
            raise InputError("--until, --claim: give at least one of them")
        if "clean" in self.until:
            raise InputError("--until clean: every picture is evaluated clean, so that it is exact; leave it out")
        for cell, mark in self.until.items():
            check_width(cell, mark)
        for claim in self.claims:
            if not 0 <= claim.bound < math.inf or (claim.bound > 1 and "/" not in claim.cell):
                raise InputError(f"--claim {claim}: accuracies are from 0 to 1, and ratios from 0 on")
        if len(set(self.claims)) < len(self.claims):
            raise InputError(f"--claim {','.join(map(str, self.claims))}: names a claim twice; leave one out")
        if self.max_pairs is not None and self.max_pairs < 2 * LEAST:
            raise InputError(f"--max-pairs {self.max_pairs}: must be at least {2 * LEAST}, {LEAST} of each cell")


def parse_spec(until: str | None, claim: str | None, max_pairs: int | None) -> SamplingSpec:
    """Read the options of `gfo-eval`; a single number is for the cells that there are. Raises `InputError`."""
    marks = {} if until is None else parse_until(until)
    claims = () if claim is None else parse_claims(claim)
    return SamplingSpec(marks, claims, max_pairs, as_there_are=until is not None and "=" not in until)


def parse_until(text: str) -> dict[CellName, float]:
    """Read `0.01`, for every cell, or `matched=0.02,unmatched=0.01`. Raises `InputError`."""
    found: dict[CellName, float] = {}
    parts = text.split(",") if "=" in text else [f"{cell}={text}" for cell in CELLS if cell != "clean"]
    for part in parts:
        name, _, number = part.partition("=")
        cell = _cell(name.strip(), f"--until {text}")
        if cell in found:
            raise InputError(f"--until {text}: {cell} is named twice; leave one out")
        try:
            found[cell] = float(number)
        except ValueError as error:
            raise InputError(
                f"--until {text}: expected a half-width, as 0.01, or one for each cell, as matched=0.02,unmatched=0.01"
            ) from error
    return found


def parse_claims(text: str) -> tuple[Claim, ...]:
    """Read `matched<=0.25,unmatched/clean>=0.7`. Raises `InputError`."""
    found: list[Claim] = []
    for part in text.split(","):
        match = _CLAIM.fullmatch(part.strip())
        try:
            if match is None:
                raise ValueError(part)
            bound = float(match[3])
        except ValueError as error:
            raise InputError(
                f"--claim {text}: expected claims separated by commas, as matched<=0.25,unmatched/clean>=0.7"
            ) from error
        found.append(Claim(_cell(match[1], f"--claim {text}"), match[2] == "<=", bound))
    return tuple(found)


def _cell(name: str, option: str) -> CellName:
    if name not in CELLS:
        raise InputError(f"{option}: no cell is called {name!r}; cells are {', '.join(CELLS)}")
    return name
