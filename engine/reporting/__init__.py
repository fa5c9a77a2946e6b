"""The report: joins RUNs (splits, epsilons, models) into Tables S1 and S2, figures and one self-contained page.

Source: Wu et al., CVPR 2020, supplementary material, Tables S1 and S2 and Figure S1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

SCHEMA = 1
_FILE_WIDTH = 140
MEASURES = ("clean", "matched", "unmatched", "clean_other", "unmatched_other", "permuted", "noise")
RATIOS = ("matched/clean", "unmatched/clean")


@dataclass(frozen=True)
class Run:
    """One finished RUN folder of `gfo-eval`: where it lies and its checked `summary.json`."""

    directory: Path
    summary: dict[str, Any]

    @property
    def store(self) -> Path:
        """The labelled predictions, a zarr group."""
        return self.directory / "predictions.zarr"

    def name(self, class_id: int) -> str:
        """The class's name as the RUN gives it, its id where it gives none."""
        return str(self.summary["class_names"].get(str(class_id), class_id))


@dataclass(frozen=True)
class ReportFiles:
    """What `report` wrote, and the same tables ready to print."""

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    notes: tuple[str, ...]
    printable: tuple[RichTable, ...]

    def show(self) -> None:
        """Print the tables, the notes and where the files are."""
        from rich.console import Console

        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width of its own
            console = Console(width=_FILE_WIDTH)
        for table in self.printable:
            console.print(table, end="\n\n")
        for line in (
            *self.notes,
            f"tables: {self.tables[0].parent}",
            f"figures: {len(self.figures)}",
            f"page: {self.page}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def report(
    runs: Sequence[Path | str], out: Path | str, *, figure_classes: int = 4, figure_pictures: int = 3
) -> ReportFiles:
    """Write the tables, the figures and `report.html` of some RUNs.

    Parameters
    ----------
    runs
        RUN folders of `gfo-eval`, at least one, in any order. A train and a val RUN of one bank share a row.
    out
        Folder for `report.html`, `*.png` and `tables/`; made if missing.
    figure_classes, figure_pictures
        Figure S1: classes side by side and pictures per class, at least 1 each.

    Returns
    -------
    ReportFiles
        Paths, the notes (what is left out and why), and the tables for the terminal.

    Raises
    ------
    InputError
        A RUN that is missing, unreadable or unfinished, two RUNs for one cell, a number below 1.
    OSError
        `out` cannot be written.
    """
    if not runs or min(figure_classes, figure_pictures) < 1:
        raise InputError(
            f"report: expected at least 1 RUN, class and picture, got {len(runs)} RUNs, {figure_classes} classes, "
            f"{figure_pictures} pictures; give more"
        )
    from . import figures, page, tables

    out = Path(out)
    rows = tables.join([read_run(Path(run)) for run in runs])
    built = tables.build(rows)
    written = tables.write(built, out / "tables")
    drawn, left_out = figures.draw(rows, out, classes=figure_classes, pictures=figure_pictures)
    notes = (*page.notes(rows), *left_out)
    html = page.write(out / "report.html", rows, built, drawn, notes)
    printable = tuple(table.rich() for table in built)
    return ReportFiles(html, written, tuple(figure.path for figure in drawn), notes, printable)


def read_run(directory: Path) -> Run:
    """Read and check one RUN folder.

    Raises
    ------
    InputError
        No such folder, not a RUN, an unreadable or incomplete `summary.json`.
    """
    file = directory / "summary.json"
    if not directory.is_dir():
        raise InputError(f"{directory}: no such RUN folder; give a folder that gfo-eval --out wrote")
    if not file.is_file() and (directory / "predictions.zarr").is_dir():
        raise InputError(f"{directory}: summary.json is missing, the evaluation did not end; rerun the same gfo-eval")
    if not file.is_file():
        raise InputError(f"{directory}: no RUN, it has no summary.json; give a folder that gfo-eval --out wrote")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: unreadable ({error}); rerun the same gfo-eval to write it again") from error
    _check(file, summary)
    return Run(directory, summary)


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _check(file: Path, summary: Any) -> None:
    """Every field that the report reads, in the shape that it reads it."""
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        found = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise InputError(f"{file}: expected schema {SCHEMA}, got {found!r}; rerun gfo-eval with this version of gfo")
    if summary.get("complete") is not True:
        raise InputError(f"{file}: complete is {summary.get('complete')!r}; rerun the same gfo-eval to finish it")
    for key, fits in _FIELDS.items():
        if key not in summary or not fits(summary[key]):
            found = repr(summary[key])[:60] if key in summary else "nothing"
            raise InputError(f"{file}: {key} is not valid, got {found}; rerun the same gfo-eval to write it again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_interval(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))


def _is_estimate(key: str) -> Callable[[Any], bool]:
    """Null, or a number under `key` with its two intervals."""

    def fits(value: Any) -> bool:
        return value is None or (
            isinstance(value, dict)
            and _is_number(value.get(key))
            and all(_is_interval(value.get(name)) for name in ("ci95_pictures", "ci95_classes"))
            and _is_count(value.get("pictures", 0))
        )

    return fits


def _is_map(value: Any, keys: tuple[str, ...], fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys) and all(map(fits, value.values()))


def _is_class(value: Any) -> bool:
    shares = ("clean", "matched", "unmatched_by_occluder")
    wrong = value.get("top_wrong_label") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and _is_count(value.get("class_id"))
        and _is_count(value.get("pictures"))
        and all(value.get(key) is None or _is_number(value[key]) for key in shares)
        and _is_interval(value.get("matched_wilson95"))
        and (
            wrong is None
            or (isinstance(wrong, dict) and _is_text(wrong.get("name")) and _is_number(wrong.get("share")))
        )
    )


_ESTIMATES = {name: _is_estimate("accuracy") for name in MEASURES}
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("gfo_version", "model", "weights", "weights_hash", "bank", "bank_hash", "norm", "split"), _is_text
    ),
    **dict.fromkeys(("engine", "device", "precision", "loader", "data_root", "pictures"), _is_text),
    **dict.fromkeys(("epsilon", "seconds"), _is_number),
    **dict.fromkeys(("seed", "read", "quarantined_count", "pairs", "num_classes"), _is_count),
    "split": lambda value: value in ("train", "val"),
    # Null where a resumed evaluation had nothing left to do.
    "pairs_per_second": lambda value: value is None or _is_number(value),
    "per_class": lambda value: value is None or _is_count(value),
    "preprocessing": lambda value: isinstance(value, dict) and {"input_size", "resize", "interpolation"} <= set(value),
    "class_ids": lambda value: isinstance(value, list) and bool(value) and all(map(_is_count, value)),
    "class_names": lambda value: _is_map(value, (), _is_text),
    "folders": lambda value: _is_map(value, (), _is_text),
    "fit": lambda value: _is_map(value, ("unseen", "fitted", "held_out"), _is_count),
    "quarantined": lambda value: (
        isinstance(value, list) and all(_is_map(v, ("path", "reason"), _is_text) for v in value)
    ),
    **_ESTIMATES,
    "ratios": lambda value: _is_map(value, RATIOS, _is_estimate("value")),
    "fooling_rate": _is_estimate("value"),
    "largest_wrong_label_share": _is_estimate("value"),
    "classes": lambda value: isinstance(value, list) and all(map(_is_class, value)),
}
