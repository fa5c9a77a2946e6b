"""Rows of the tables: RUNs of one bank joined over their splits, and the numbers read from their summaries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import PurePath
from typing import Any, Final

from ...export.errors import InputError
from ..evaluation.results import Accuracy, LabelShare, Rate, Ratio, RatioName
from ..evaluation.summary import Summary
from .runs import RunFolder

DASH: Final = "–"
SPLITS: Final = ("train", "val")
_ROW_KEY: Final = ("model", "weights_hash", "bank_hash", "strength", "epsilon", "norm", "precision", "engine")
_LONGEST: Final = 120  # characters of a name in the name of a file, which takes 255
_TELLS_APART: Final = ("weights_hash", "engine", "precision", "bank_hash")

Cell = Accuracy | Ratio | Rate | LabelShare
Measure = Callable[[Summary], Cell | None]
"""Picks a number out of a summary; None where it rests on no picture."""


def ratio_of(name: RatioName) -> Measure:
    """Return what picks a ratio, which older runs may lack."""
    return lambda summary: summary.ratios.get(name)


@dataclass(frozen=True)
class Estimate:
    """A rate in 0 … 1 (a ratio in 0 … ∞), how many pictures it rests on, and its 95% intervals.

    `half_width` is that of the interval over pairs that were not drawn; None where all were evaluated.
    """

    value: float
    pictures: int | None = None
    ci95_pictures: tuple[float, float] | None = None
    ci95_classes: tuple[float, float] | None = None
    half_width: float | None = None

    @classmethod
    def of(cls, cell: Cell) -> Estimate:
        """Read a cell of a summary."""
        match cell:
            case Accuracy():
                return cls(cell.accuracy, cell.pictures, cell.ci95_pictures, cell.ci95_classes, cell.half_width)
            case Rate():
                return cls(cell.value, cell.pictures, cell.ci95_pictures, cell.ci95_classes)
            case Ratio():
                return cls(cell.value, None, cell.ci95_pictures, cell.ci95_classes, cell.half_width)
            case LabelShare():
                return cls(cell.value)

    @property
    def text(self) -> str:
        """Four decimals, as the source prints, with the half-width of a sample."""
        sampled = "" if self.half_width is None else f" ±{self.half_width:.4f}"
        return f"{self.value:.4f}{sampled}"

    @property
    def interval(self) -> str:
        """Interval over classes in brackets, empty where there is none."""
        return "[{:.3f}, {:.3f}]".format(*self.ci95_classes) if self.ci95_classes else ""

    def columns(self) -> dict[str, float | int | None]:
        """Return the CSV's columns of this number by suffix, with every digit."""
        pictures, classes = self.ci95_pictures or (None, None), self.ci95_classes or (None, None)
        return {
            "": self.value,
            "_pictures": self.pictures,
            **{f"_ci95_pictures_{end}": bound for end, bound in zip(("low", "high"), pictures, strict=True)},
            **{f"_ci95_classes_{end}": bound for end, bound in zip(("low", "high"), classes, strict=True)},
            "_half_width": self.half_width,
        }


@dataclass(frozen=True)
class Row:
    """One model, weights, bank, strength, norm, precision and engine, with its RUNs by split ("train", "val")."""

    label: str
    slug: str
    runs: Mapping[str, RunFolder]

    @property
    def facts(self) -> Summary:
        """A summary whose key fields hold for every RUN of the row; the val RUN's where there is one."""
        return self.preferred.summary

    @property
    def preferred(self) -> RunFolder:
        """The val RUN, else the train RUN."""
        return self.runs.get("val") or self.runs["train"]

    @property
    def epsilon(self) -> str:
        """The occluders' bound as evaluated, pixel units, as shown.

        The norm is named where it is not the l∞ of the source, the strength where it is not 1.
        """
        facts = self.facts
        named = [facts.norm] if facts.norm != "linf" else []
        named += [f"strength {facts.strength:g}"] if facts.strength != 1 else []
        return f"{facts.epsilon:g}" + (f" ({', '.join(named)})" if named else "")

    def estimate(self, split: str, measure: Measure) -> Estimate | None:
        """Return a number of the split's summary; None where there is no such RUN or no picture for it."""
        run = self.runs.get(split)
        cell = measure(run.summary) if run else None
        return Estimate.of(cell) if cell else None

    def covers(self, split: str) -> str:
        """Describe the pictures of the split, counted by what they were used for before."""
        names = {"fitted": "fitted", "held_out": "held out", "preserved": "preserved", "unseen": "unseen"}
        counts = self.fit(split)
        used = [f"{counts[f'{split}_{key}']} {name}" for key, name in names.items() if counts.get(f"{split}_{key}")]
        return ", ".join(used) or DASH

    def fit(self, split: str) -> dict[str, int]:
        """Return counts of pictures under `train_fitted` and the like; empty where there is no such RUN."""
        run = self.runs.get(split)
        return {f"{split}_{key}": count for key, count in vars(run.summary.fit).items()} if run else {}


def join(runs: Sequence[RunFolder]) -> tuple[Row, ...]:
    """Put the RUNs of one bank at one strength, under one engine and precision, into one row.

    Models are in the order given, then by the banks' ε, bank by bank, and by strength.

    Raises
    ------
    InputError
        Two RUNs for the same row and split.
    """
    groups: dict[tuple[Any, ...], dict[str, RunFolder]] = {}
    for run in runs:
        row = groups.setdefault(attrgetter(*_ROW_KEY)(run.summary), {})
        other = row.setdefault(run.summary.split, run)
        if other is not run:
            raise InputError(
                f"{other.directory} and {run.directory}: both hold the {run.summary.split} split of one model, "
                "bank, strength, engine and precision; give one of them"
            )
    rows = [Row(next(iter(row.values())).summary.model, "", row) for row in groups.values()]
    models, banks = (
        list(dict.fromkeys(names)) for names in zip(*((r.label, r.facts.bank_hash) for r in rows), strict=True)
    )

    def place(row: Row) -> tuple[Any, ...]:
        facts = row.facts
        of_bank = float(f"{facts.epsilon / facts.strength:.9g}")  # 0.7 · 8 / 0.7 is 7.999999999999999
        return models.index(row.label), facts.norm, of_bank, banks.index(facts.bank_hash), facts.epsilon

    return _named(sorted(rows, key=place))


def _named(rows: list[Row]) -> tuple[Row, ...]:
    """Label rows that would read the same by what tells them apart, and give every row a file name of its own.

    Where a bank has other strengths than 1, an ε does not tell its rows from another bank's.
    """
    named: list[Row] = []
    taken: Counter[str] = Counter()
    banks = bank_names(rows)
    scaled = {row.label for row in rows if row.facts.strength != 1}
    for row in rows:
        alike = [
            other
            for other in rows
            if other.label == row.label and (row.label in scaled or other.epsilon == row.epsilon)
        ]
        differ = [key for key in _TELLS_APART if len({getattr(other.facts, key) for other in alike}) > 1]
        extra = " ".join(_short(key, row.facts, banks) for key in differ)
        label = f"{row.label} ({extra})" if extra else row.label
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", f"{label[:_LONGEST]}-eps{row.epsilon}").strip("-")
        taken[slug.casefold()] += 1  # some file systems know no case
        count = taken[slug.casefold()]
        named.append(Row(label, slug if count == 1 else f"{slug}-{count}", row.runs))
    return tuple(named)


def bank_names(rows: Sequence[Row]) -> dict[str, str]:
    """Name each bank, by its hash, after its file, or after its hash where several have that name."""
    files = {row.facts.bank_hash: PurePath(row.facts.bank).name.removesuffix(".safetensors") for row in rows}
    taken = Counter(files.values())
    return {key: name if taken[name] == 1 else short_hash(key) for key, name in files.items()}


def _short(key: str, facts: Summary, banks: Mapping[str, str]) -> str:
    if key == "bank_hash":
        return f"bank {banks[facts.bank_hash]}"
    value = getattr(facts, key)
    return f"{key.removesuffix('_hash')} {short_hash(value)}" if key.endswith("_hash") else value


def short_hash(value: str) -> str:
    """Return the first eight digits of `sha256:…`."""
    return value.rpartition(":")[2][:8]
