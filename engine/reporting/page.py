"""The report's page, one HTML file with the tables, the figures and the facts of every RUN, and the notes on it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...export.files import atomic_path
from ..evaluation.results import ClassRow
from ..names import visible
from .figures import Drawn
from .rows import DASH, Row, short_hash
from .runs import RunFolder
from .tables import SOURCE, SOURCE_WEIGHTS, Table, comparable

_MOST_QUARANTINED: Final = 50


@dataclass(frozen=True)
class Card:
    """The facts of one RUN, ready to print: its heading, (name, value) pairs, its classes, its unreadable pictures."""

    heading: str
    facts: tuple[tuple[str, str], ...]
    classes: tuple[tuple[str, ...], ...]
    quarantined: tuple[tuple[str, str], ...]


def write(
    path: Path, rows: Sequence[Row], tables: Sequence[Table], figures: Sequence[Drawn], notes: Sequence[str]
) -> Path:
    """Write the page; it needs no other file and no network.

    Raises
    ------
    OSError
        `path` cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not what is marked as HTML
    )
    parts = environment.get_template("page.html.j2").generate(
        models=list(dict.fromkeys(row.facts.model for row in rows)),
        tables=tables,
        figures=figures,
        embedded=_embedded,
        notes=notes,
        cards=(_card(row, split, run) for row in rows for split, run in sorted(row.runs.items(), reverse=True)),
        dash=DASH,
    )
    # Part by part: the figures of many RUNs are not in memory together.
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(parts)
    return path


def _embedded(figure: Drawn) -> str:
    return f"data:image/png;base64,{base64.b64encode(figure.path.read_bytes()).decode()}"


def _card(row: Row, split: str, run: RunFolder) -> Card:
    s = run.summary
    crop = s.preprocessing
    per_class = f", at most {s.per_class} a class" if s.per_class else ""
    preserved = f", {len(s.preserved_classes)} classes preserved" if s.preserved_classes else ""
    rate = f"{s.pairs_per_second:,.0f} pairs/s" if s.pairs_per_second else DASH
    facts = {
        "weights": f"{s.weights} ({short_hash(s.weights_hash)})",
        "bank": f"{s.bank} ({short_hash(s.bank_hash)}), {len(s.class_ids)} occluders{preserved}",
        "ε": f"{row.epsilon} pixel units, norm {s.norm}",
        "engine": f"{s.engine} on {s.device}, {s.precision}",
        "input": f"{crop.input_size} px, short side {crop.resize}, {crop.interpolation}",
        "data": f"{s.data_root}, split {split}, loader {s.loader}",
        "pictures": f"{s.read:,} read ({s.pictures}{per_class}), {s.quarantined_count} quarantined",
        "used before": row.covers(split),
        "speed": f"{rate} ({s.pairs:,} pairs in {s.seconds:,.1f} s)",
        "seed, version": f"{s.seed}, gfo {s.gfo_version}",
        "folder": str(run.directory),
    }
    quarantined = tuple((entry.path, entry.reason) for entry in s.quarantined[:_MOST_QUARANTINED])
    classes = tuple(_class_line(run, entry) for entry in s.classes)
    return Card(f"{row.label}, ε = {row.epsilon}, {split}", tuple(facts.items()), classes, quarantined)


def _class_line(run: RunFolder, entry: ClassRow) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return DASH if value is None else f"{value:.4f}"

    wilson, wrong = entry.matched_wilson95, entry.top_wrong_label
    return (
        run.name(entry.class_id),
        str(entry.pictures),
        number(entry.clean),
        number(entry.matched) + (" [{:.3f}, {:.3f}]".format(*wilson) if wilson else ""),
        number(entry.unmatched_by_occluder),
        f"{wrong.name} ({wrong.share:.2f})" if wrong else DASH,
    )


def notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Collect what a reader must know beside the tables, one sentence each."""
    found = [_source_note(rows)]
    if len({frozenset(row.facts.class_ids) for row in rows}) > 1:
        found.append("The rows do not all cover the same classes, so compare them with care.")
    for run in (run for row in rows for run in row.runs.values()):
        if run.summary.quarantined_count:
            found.append(
                f"{run.directory}: pictures quarantined as unreadable: {run.summary.quarantined_count}; they count "
                "in no accuracy, and summary.json lists them."
            )
        if (sample := run.summary.sample) is not None:
            cells = [cell for cell in sample.cells if "/" not in cell.cell and cell.cell != "clean"]
            drawn = ", ".join(f"{cell.pairs:,} of {cell.total:,} {cell.cell} ones" for cell in cells)
            found.append(
                f"{run.directory}: pairs were drawn at random ({drawn}); ± is the 95% half-width over those that were "
                "not drawn, and numbers of single classes are what a regression expects."
            )
            found += [f"{run.directory}: claim {one.claim}: {one.decision}." for one in sample.claims]
        if (certificate := run.summary.certificate) is not None:
            cells = [f"{cell.cell} {cell.value:.4f} ± {cell.half_width:.4f}" for cell in certificate.cells]
            found.append(
                f"{run.directory}: in fp32 its cells would be {', '.join(cells)}: 95% half-widths over the pairs that "
                f"engine {certificate.engine} did not evaluate in fp32; the tables have {run.summary.precision}."
            )
        used = run.summary.fit.used
        if run.summary.split == "val" and used:
            found.append(
                f"{run.directory}: {used} val pictures were used for fitting, choosing or preserving; test is not "
                "unseen here."
            )
    return tuple(found)


def _source_note(rows: Sequence[Row]) -> str:
    ours = {True: [], False: []}
    for row in rows:
        ours[comparable(row)].append(f"{row.facts.model} with {Path(row.facts.weights).name}")
    strange = ", ".join(dict.fromkeys(ours[False]))
    if not ours[True]:
        return (
            f"No numbers of the source are shown: it reports torchvision's ResNet-50, GoogLeNet and VGG-16 with "
            f"{SOURCE_WEIGHTS} weights, and here is {strange}."
        )
    classes = sorted({len(row.facts.class_ids) for row in rows if comparable(row)})
    note = (
        f"Rows of the source: {SOURCE}; here {' and '.join(map(str, classes))} classes, so read them beside the clean "
        "accuracies; its ratio is worked out from its two numbers."
    )
    return note + (f" None is shown for {strange}: other networks or weights." if strange else "")
