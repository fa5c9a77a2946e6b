"""Figures of the report, a PNG each: the all-pairs matrix, the ε trade-off curve, the frontier, and Figure S1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...export.files import atomic_path
from ..evaluation.class_answers import accuracy_matrix
from ..evaluation.results import RatioName
from ..evaluation.store import RunStore
from ..names import escaped
from .figure_frontier import frontier_figure, frontier_lines
from .figure_s1 import Moved, figure_blocks, figure_s1
from .lettering import Lettering
from .rows import Estimate, Row, ratio_of
from .runs import RunFolder
from .tables import SOURCE, comparable

Kind = Literal["S1", "trade-off", "frontier", "matrix"]
_DPI: Final = 150
_MATCHED, _UNMATCHED = "#b3261e", "#1f5fa8"
_COLOURS: Final = "viridis"
# With more classes than the first only every n-th is named; with more than the second no number fits into a cell.
_MOST_NAMES, _MOST_NUMBERS = 60, 12
_PRESERVED: Final = "†"


@dataclass(frozen=True)
class Drawn:
    """One PNG, what it shows, and which kind of figure it is."""

    kind: Kind
    path: Path
    caption: str


def draw(rows: Sequence[Row], out: Path, *, classes: int, pictures: int) -> tuple[tuple[Drawn, ...], tuple[str, ...]]:
    """Write every figure of the rows into `out`.

    Returns
    -------
    drawn, notes
        The figures, and a sentence for each Figure S1 that could not be made, and for letters that no font has.

    Raises
    ------
    InputError
        Predictions that are missing or corrupt.
    OSError
        `out` cannot be written.
    """
    drawn: list[Drawn] = []
    notes: list[str] = []
    for row in rows:
        try:
            blocks = figure_blocks(row.preferred, classes, pictures)
        except Moved as reason:
            notes.append(f"Figure S1 of {row.label}, ε = {row.epsilon}, is left out: {reason}.")
            continue
        path = _save(figure_s1(blocks, pictures), out / f"figure-S1-{row.slug}.png")
        caption = (
            f"Figure S1. {row.label}, ε = {row.epsilon}, {row.preferred.summary.split} pictures. Per class: the "
            "occluder magnified to the natural image range; clean pictures that the model gets right; the same "
            "pictures occluded. Above each picture the model's prediction. Classes evenly spaced over the bank, the "
            "first right pictures of each: not chosen by how well the occluder does."
        )
        drawn.append(Drawn("S1", path, caption))
    drawn += [*_draw_curves(rows, out), *_draw_frontiers(rows, out), *_draw_matrices(rows, out)]
    return tuple(drawn), (*notes, *_missing_letters(rows))


def _missing_letters(rows: Sequence[Row]) -> Iterator[str]:
    names = {name for row in rows for run in row.runs.values() for name in run.summary.class_names.values()}
    missing = Lettering.of({row.label for row in rows} | names).escapes
    if missing:
        yield (
            f"On figures, letters that no installed font has are escapes: {escaped(missing[0])} for {missing[0]} "
            f"({len(missing)} letters in all); install a font that has them, as those of Noto do."
        )


def _save(figure: Figure, path: Path) -> Path:
    # Agg without pyplot, which would keep global state and look for a display.
    FigureCanvasAgg(figure)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_DPI, metadata={"Software": None})
    return path


# ---- all-pairs matrix


def _draw_matrices(rows: Sequence[Row], out: Path) -> list[Drawn]:
    drawn: list[Drawn] = []
    for row in rows:
        for split, run in sorted(row.runs.items(), reverse=True):
            sampled = run.summary.sample is not None
            matrix, columns = _matrix(run)
            title = f"{row.label}, ε = {row.epsilon}, {split} pictures"
            path = _save(matrix_figure(run, matrix, columns, title), out / f"matrix-{row.slug}-{split}.png")
            caption = (
                f"All pairs. {title}: top-1 accuracy of each occluder (rows) on the pictures of each class (columns); "
                "clean above, random noise of the same strength below; grey was not evaluated."
            )
            if sampled:
                caption += (
                    " Estimated from a sample of the pairs: occluded cells are what a regression expects, drawn "
                    "towards the effects of their occluder and class; clean is exact."
                )
            if set(columns) & set(run.summary.preserved_classes):
                caption += f" {_PRESERVED} marks classes of which training preserved pictures."
            drawn.append(Drawn("matrix", path, caption))
    return drawn


def _matrix(run: RunFolder) -> tuple[NDArray[np.float64], list[int]]:
    if run.summary.sample is None:
        return accuracy_matrix(RunStore.open(run.directory))
    from ..sampling.matrix import sampled_matrix  # takes SciPy, which other reports do not need

    return sampled_matrix(run.directory, run.summary)


def matrix_figure(run: RunFolder, matrix: NDArray[np.float64], columns: Sequence[int], title: str) -> Figure:
    """Draw a heat map of `matrix`, float64 [K + 2, C]: clean, the bank's rows, noise; NaN where there is no picture.

    `columns` are the C class ids, 10 to 1,000 of them.
    """
    occluders = len(matrix) - 2
    width, height = (float(np.clip(0.3 * count, 3.2, 11.0)) for count in (len(columns), occluders))
    figure = Figure(figsize=(width + 3.2, height + 2.6), layout="constrained")
    thick = max(1, occluders // 40)  # a single row would be a hair beside hundreds
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[thick, occluders, thick])
    parts = (matrix[:1], matrix[1:-1], matrix[-1:])
    numbers = max(matrix.shape) <= _MOST_NUMBERS + 2
    for axis, part in zip(axes, parts, strict=True):
        _heat(axis, part, numbers=numbers)
    for axis, name in ((axes[0], "clean"), (axes[2], "noise")):
        axis.set_yticks([0], [name], fontsize=8)
    preserved = set(run.summary.preserved_classes)
    down = [run.name(c) for c in run.summary.class_ids]
    across = [f"{_PRESERVED} {run.name(c)}" if c in preserved else run.name(c) for c in columns]
    letters = Lettering.of([title, *(names[i] for names in (down, across) for i in _named(len(names)))])
    _name_ticks(axes[1].yaxis, down, letters)
    _name_ticks(axes[2].xaxis, across, letters, rotation=90)
    axes[1].set_ylabel("occluder of")
    axes[2].set_xlabel("pictures of")
    if len(columns) > occluders:  # the bank's own classes end here
        for axis in axes:
            axis.axvline(occluders - 0.5, color="white", linewidth=1.5)
    figure.suptitle(letters.lines(title, width + 3.2), fontsize=10, **letters.style)
    figure.colorbar(ScalarMappable(Normalize(0, 1), _COLOURS), ax=axes, label="top-1 accuracy", fraction=0.04, pad=0.02)
    return figure


def _heat(axis: Axes, part: NDArray[np.float64], *, numbers: bool) -> None:
    # As colours of cells: matplotlib would turn numbers into those of pixels, which takes 300 MB for a large matrix.
    colours = colormaps[_COLOURS](np.ma.masked_invalid(part), bytes=True)
    axis.imshow(colours, aspect="auto", interpolation="nearest")
    axis.set_facecolor("#c8c8c8")
    axis.tick_params(length=0, labelbottom=False)
    axis.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(part) if numbers else ():
        if np.isfinite(value):
            axis.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color="white" if value < 0.6 else "black"
            )


def _named(count: int) -> range:
    """Return which classes are named: every n-th, so that there are at most `_MOST_NAMES` names."""
    return range(0, count, -(-count // _MOST_NAMES))


def _name_ticks(axis: Any, names: Sequence[str], letters: Lettering, rotation: int = 0) -> None:
    ticks = _named(len(names))
    fontsize = 8 if len(names) <= 40 else 6.5
    shown = [letters.short(names[i]) for i in ticks]
    axis.set_ticks(ticks, shown, fontsize=fontsize, rotation=rotation, **letters.style)
    axis.set_tick_params(labelbottom=True)


# ---- ε trade-off curve


def _draw_curves(rows: Sequence[Row], out: Path) -> list[Drawn]:
    """Draw a curve for each model, norm, engine and precision that has two epsilons or more.

    Banks as they were trained share a curve, and each bank has one of its own over its strengths.
    """
    drawn: list[Drawn] = []

    alike = attrgetter(*(f"facts.{key}" for key in ("model", "weights_hash", "norm", "engine", "precision")))
    trained = [(alike(row), row) for row in rows if row.facts.strength == 1]
    scaled = {(*alike(row), row.facts.bank_hash) for row in rows if row.facts.strength != 1}
    of_bank = [(key, row) for row in rows if (key := (*alike(row), row.facts.bank_hash)) in scaled]
    series: dict[tuple[str, ...], list[Row]] = {}
    for key, row in (*trained, *of_bank):
        series.setdefault(key, []).append(row)
    for points in series.values():
        if len({row.facts.epsilon for row in points}) < 2:
            continue
        path = _save(curve_figure(points), out / f"trade-off-{points[0].slug}.png")
        one = len({row.facts.bank_hash for row in points}) == 1
        whose = f"{points[0].label}, one bank at several strengths" if one else points[0].facts.model
        caption = (
            f"Trade-off. {whose}: how much accuracy is left on the occluder's own class (matched/clean, lower is "
            "better) and on the others (unmatched/clean, higher is better) as ε grows. Bars: 95% intervals, thick over "
            "pictures, thin over classes."
        )
        drawn.append(Drawn("trade-off", path, caption))
    return drawn


def curve_figure(rows: Sequence[Row]) -> Figure:
    """Draw matched/clean and unmatched/clean over ε, one line per split."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    epsilons = sorted({row.facts.epsilon for row in rows})
    aside = (epsilons[-1] - epsilons[0]) / 100  # so that the bars of the two splits are side by side
    colours: dict[RatioName, str] = {"unmatched/clean": _UNMATCHED, "matched/clean": _MATCHED}
    for ratio, colour in colours.items():
        for split, word, shift, style in (("val", "test", -aside, "o-"), ("train", "train", aside, "s--")):
            found = ((row.facts.epsilon + shift, row.estimate(split, ratio_of(ratio))) for row in rows)
            points = sorted(((x, e) for x, e in found if e is not None), key=lambda point: point[0])
            _curve(axis, points, style, colour=colour, alpha=1.0 if split == "val" else 0.5, label=f"{ratio}, {word}")
    axis.set_xlabel("ε (pixel units, of 255)")
    axis.set_ylabel("accuracy left, share of clean")
    axis.set_xticks(epsilons)
    axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _curve(
    axis: Axes, points: Sequence[tuple[float, Estimate]], style: str, *, colour: str, alpha: float, label: str
) -> None:
    """Draw a line with two bars at each point: thin over classes, thick over pictures."""
    if not points:
        return
    values = [estimate.value for _, estimate in points]
    axis.plot([x for x, _ in points], values, style, color=colour, alpha=alpha, markersize=4.5, label=label)
    for width, interval in ((1.0, "ci95_classes"), (2.8, "ci95_pictures")):
        bars = [(x, *getattr(estimate, interval)) for x, estimate in points if getattr(estimate, interval)]
        if bars:
            axis.vlines(*np.transpose(bars), color=colour, alpha=alpha, linewidth=width)


# ---- frontier


def _draw_frontiers(rows: Sequence[Row], out: Path) -> list[Drawn]:
    """Draw a figure for each model that has a bank at two strengths or more."""
    drawn: list[Drawn] = []
    for lines in frontier_lines(rows):
        first = lines[0].rows[0]
        path = _save(frontier_figure(lines), out / f"frontier-{first.slug}.png")
        caption = (
            f"Frontier. {first.facts.model}: accuracy left on other classes over accuracy left on the occluder's own, "
            "higher and further left is better; a line for each bank, with its strengths beside it, from strength 0. "
            "At matched/clean 0.2, 0.3 and 0.4 the interpolated value with its paired 95% intervals, thick over "
            "pictures, thin over classes (where its strengths were evaluated together and reach so far)."
        )
        if any(line.strongest.preserved_classes for line in lines):
            caption += " Dashed, hollow: on classes of which training preserved no picture only."
        if any(comparable(line.rows[0]) for line in lines):
            caption += f" Star: {SOURCE}."
        drawn.append(Drawn("frontier", path, caption))
    return drawn
