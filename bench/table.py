"""How rows are printed: the machine, a table of what was measured, and a line for what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.names import terminal_cell, visible
from ..engine.terminal import print_table
from .rows import KEYS, NO_ENGINE, BenchRow, Facts, flat

if TYPE_CHECKING:
    from rich.console import Console


def print_environment(environment: Mapping[str, Any], console: Console) -> None:
    """Print the machine, the versions and the load, from a document's environment."""
    cpu = environment["cpu"]
    gpus = "; ".join(gpu.get("name", "") for gpu in environment["gpus"]) or "none"
    versions = {name: found for name, found in environment["packages"].items() if found}
    lines = [
        f"CPU {cpu['model']}, {cpu['cores']} cores, {environment['threads']} threads; GPU {gpus}",
        ", ".join(f"{name} {found}" for name, found in versions.items()),
        f"gfo {environment['gfo']}, commit {environment['commit'] or 'unknown'}",
    ]
    if environment["load_average"] is not None:
        lines.append(f"load average before it began: {environment['load_average']:.1f}")
    for line in lines:
        console.print(visible(line), markup=False)


def print_rows(rows: Sequence[BenchRow[Facts]], title: str, console: Console) -> None:
    """Print a table of what was measured, then a line for each wrong row and for each reason not to run here."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = [flat(row) for row in rows if row.available]
    further = dict.fromkeys(key for row in shown for key in row if key not in KEYS)
    columns = {**_COLUMNS, **{key: _plain(key) for key in further}}
    filled = {name: cells for name, cell in columns.items() if any(cells := [cell(row) for row in shown])}
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in filled:
        table.add_column(name, overflow="fold", justify="right" if name in _NUMBERS else "left")
    for cells in zip(*filled.values(), strict=True):
        table.add_row(*(terminal_cell(cell or "–") for cell in cells))
    print_table(console, table)
    for line in _remarks(rows):
        console.print(visible(line), markup=False, soft_wrap=True)


def _remarks(rows: Sequence[BenchRow[Facts]]) -> list[str]:
    """Return lines on what is wrong, what is doubtful, and what could not run."""
    lines = []
    for row in rows:
        if row.passed is False:
            section = row.stage if row.engine == NO_ENGINE else None
            what = (section, flat(row)["kernel"], row.model, row.precision, row.engine, row.device)
            lines.append(f"{' '.join(filter(None, what))}: {row.reason}")
    doubts = dict.fromkeys((row.engine, row.reason) for row in rows if row.available and row.reason)
    lines += [f"{engine}: {reason}" for engine, reason in doubts]
    absent = Counter(row.reason for row in rows if not row.available and row.passed is None)
    for reason, count in absent.items():
        engines = ", ".join(dict.fromkeys(row.engine for row in rows if row.reason == reason))
        lines.append(f"{count} {'row' if count == 1 else 'rows'} ({engines}): {reason}")
    return lines


# ---- cells, from a flat row

Cell = Callable[[Mapping[str, Any]], str]


def _text(key: str) -> Cell:
    return lambda row: str(row[key] or "")


def _plain(key: str) -> Cell:
    return lambda row: "" if row.get(key) is None else str(row[key])


def _number(key: str, form: str) -> Cell:
    return lambda row: "" if row[key] is None else format(row[key], form)


def _file_name(key: str) -> Cell:
    return lambda row: Path(row[key]).name if row[key] else ""


def _rate(key: str) -> Cell:
    def cell(row: Mapping[str, Any]) -> str:
        rate = row[key]
        return "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"

    return cell


def _ratio(key: str, named: bool) -> Cell:
    def cell(row: Mapping[str, Any]) -> str:
        ratio = row[key]
        if ratio is None:
            return ""
        to = f" {ratio['to']}" if named else ""
        interval = "" if ratio["low"] is None else f" ({ratio['low']:.2f}–{ratio['high']:.2f})"
        return f"{ratio['median']:.2f}{to}{interval}"

    return cell


def _reached(row: Mapping[str, Any]) -> str:
    return "" if row["reached"] is None else f"{row['reached']} of {row['occluders']}"


def _not_of_kernels(cell: Cell) -> Cell:
    """Return the cell, empty for kernels: they have it in `sizes`."""
    return lambda row: "" if row["kernel"] else cell(row)


_COLUMNS: Mapping[str, Cell] = {
    "stage": _not_of_kernels(_text("stage")),
    "kernel": _text("kernel"),
    "sizes": _text("sizes"),
    "model": _text("model"),
    "weights": _file_name("weights"),
    "data": _not_of_kernels(_file_name("data")),
    "pictures": _not_of_kernels(_text("pictures")),
    "K": _not_of_kernels(_text("occluders")),
    "decoding": _number("workers", "d"),
    "device": _text("device"),
    "cores": _text("cores"),
    "precision": _text("precision"),
    "engine": _text("engine"),
    "p20": _rate("p20"),
    "p50": _rate("p50"),
    "p80": _rate("p80"),
    "unit": _text("unit"),
    "ratio to (95%)": _ratio("ratio", named=True),
    "to the plain loop": _ratio("to_plain", named=False),
    "of ceiling": _number("ceiling_share", ".0%"),
    "of copy": _number("bandwidth_share", ".0%"),
    "MiB a call": _number("extra_mb", ".1f"),
    "max error": _number("max_error", ".1e"),
    "allowed": _number("allowed_error", ".1e"),
    "agreement": _number("agreement", ".4f"),
    "max diff": _number("max_difference", "d"),
    "mean diff": _number("mean_difference", ".4f"),
    "clean": _number("clean_accuracy", ".3f"),
    "target": _number("target", "g"),
    "reached": _reached,
    "left": _number("accuracy", ".3f"),
    "image-steps": _number("image_steps", ",d"),
    "seconds": _number("seconds", ",.1f"),
    "files": _number("files", ",d"),
    "bytes a pair": _number("bytes_per_pair", ".2f"),
    "cell": _text("cell"),
    "±": _number("half_width", "g"),
    "coverage": _number("coverage", ".1%"),
    "bias": _number("bias", "+.5f"),
    "drawn": _number("drawn", ",.0f"),
    "simple": _number("simple", ",d"),
    "total": _number("total", ",d"),
}
_NUMBERS = (
    *("pictures", "K", "cores", "p20", "p50", "p80"),
    *("of ceiling", "of copy", "MiB a call", "max error", "allowed", "agreement", "max diff", "mean diff"),
    *("clean", "target", "reached", "left", "image-steps", "seconds", "files", "bytes a pair"),
    *("±", "coverage", "bias", "drawn", "simple", "total"),
)
