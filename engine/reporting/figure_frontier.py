"""The frontier: what is left of the other classes' accuracy over what is left of the own class's, bank by bank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.results import MARKS, Marks, RatioName
from ..evaluation.summary import Summary
from .lettering import Lettering
from .rows import Estimate, Row, bank_names, ratio_of
from .tables import SOURCE_NUMBERS, comparable

# Of Okabe and Ito: they differ for colour-blind readers, too.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_PLACES: Final = "osD^vPX"


@dataclass(frozen=True)
class Line:
    """RUNs of one bank at two strengths or more, weakest first, all of one split."""

    label: str
    split: str
    rows: tuple[Row, ...]

    @property
    def strongest(self) -> Summary:
        """The summary of its last RUN."""
        return self.rows[-1].runs[self.split].summary

    def points(self, name: RatioName) -> list[tuple[float, float, float]]:
        """Return strength, matched/clean and a ratio of each RUN that has both, from strength 0 on."""
        found = [(0.0, 1.0, 1.0)]
        for row in self.rows:
            x, y = (row.estimate(self.split, ratio_of(ratio)) for ratio in ("matched/clean", name))
            if x and y:
                found.append((row.facts.strength, x.value, y.value))
        return found

    def marks(self) -> Iterator[tuple[RatioName, Marks]]:
        """Yield what its summaries say at the marks, for each ratio that is drawn."""
        frontier = next((f for row in reversed(self.rows) if (f := row.runs[self.split].summary.frontier)), None)
        if frontier:
            yield "unmatched/clean", frontier.unmatched
            if self.strongest.preserved_classes:
                yield "unmatched_unseen/clean", frontier.unmatched_unseen


def frontier_lines(rows: Sequence[Row]) -> list[tuple[Line, ...]]:
    """Return the lines of each figure: one figure for each model and its weights, none where no bank has two RUNs."""
    banks = bank_names(rows)
    of_model, of_line = attrgetter("facts.model", "facts.weights_hash"), attrgetter("facts.engine", "facts.precision")
    figures: list[tuple[Line, ...]] = []
    for _, group in groupby(sorted(rows, key=of_model), of_model):
        members = list(group)
        told_apart = len(set(map(of_line, members))) > 1
        lines: list[Line] = []
        for row in members:
            alike = [other for other in members if of_line(other) == of_line(row)]
            alike = [other for other in alike if other.facts.bank_hash == row.facts.bank_hash]
            for split in ("val", "train"):
                mine = tuple(sorted((r for r in alike if split in r.runs), key=attrgetter("facts.strength")))
                if len(mine) > 1 and row is alike[0]:
                    extra = f", {row.facts.engine} {row.facts.precision}" if told_apart else ""
                    of_bank = row.facts.epsilon / row.facts.strength
                    label = f"{banks[row.facts.bank_hash]}, ε = {of_bank:g}{extra}"
                    lines.append(Line(label, split, mine))
                    break
        if lines:
            figures.append(tuple(lines))
    return figures


def frontier_figure(lines: Sequence[Line]) -> Figure:
    """Draw a line for each bank, and one for the classes that it never preserved where it preserved others."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    letters = Lettering.of(line.label for line in lines)
    for i, line in enumerate(lines):
        colour, place = _COLOURS[i % len(_COLOURS)], _PLACES[i % len(_PLACES)]
        words = "test" if line.split == "val" else "train"
        label = letters.short(f"{line.label}, {words}", 60)
        _line(axis, line.points("unmatched/clean"), f"{place}-", colour, label)
        if line.strongest.preserved_classes:
            points = line.points("unmatched_unseen/clean")
            _line(axis, points, f"{place}--", colour, f"{label}, classes never preserved")
        for j, (_, marks) in enumerate(line.marks()):
            _marks(axis, marks, colour, aside=(2 * i + j - len(lines) + 0.5) * 0.006)
    _source(axis, lines)
    for mark in MARKS:
        axis.axvline(float(mark), color="#dddddd", linewidth=0.8, zorder=0)
    axis.set_xlabel("matched/clean: accuracy left on the occluder's own class")
    axis.set_ylabel("unmatched/clean: accuracy left on the others")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(0, max(1.02, axis.get_ylim()[1]))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#eeeeee", linewidth=0.6)
    legend = figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set(**letters.style)
    return figure


def _line(axis: Axes, points: Sequence[tuple[float, float, float]], style: str, colour: str, label: str) -> None:
    """Draw a line with the strength beside each point."""
    _, xs, ys = zip(*points, strict=True)
    hollow = style.endswith("--")
    axis.plot(xs, ys, style, color=colour, markersize=4, markerfacecolor="white" if hollow else colour, label=label)
    for strength, x, y in points if not hollow else ():
        axis.annotate(f"{strength:g}", (x, y), xytext=(4, -9), textcoords="offset points", fontsize=6.5, color=colour)


def _marks(axis: Axes, marks: Marks, colour: str, aside: float) -> None:
    """Draw the intervals where matched/clean is at a mark, thin over classes and thick over pictures, side by side."""
    for mark, ratio in marks.items():
        if ratio is None:
            continue
        estimate = Estimate.of(ratio)
        x = float(mark) + aside
        axis.plot([x], [estimate.value], "_", color=colour, markersize=7, markeredgewidth=1.6)
        for width, interval in ((1.0, estimate.ci95_classes), (2.8, estimate.ci95_pictures)):
            if interval:
                axis.vlines(x, *interval, color=colour, linewidth=width, alpha=0.8)


def _source(axis: Axes, lines: Sequence[Line]) -> None:
    """Draw the source's own banks, on pictures of its test split, beside lines of the same network."""
    models = {line.strongest.model for line in lines if comparable(line.rows[0])}
    for model in sorted(models):
        name, numbers = SOURCE_NUMBERS[model]
        matched, unmatched = (numbers[what][1] / numbers["clean"][1] for what in ("matched", "unmatched"))
        axis.plot([matched], [unmatched], "k*", markersize=9, label=f"{name}, Wu et al. 2020, test")
