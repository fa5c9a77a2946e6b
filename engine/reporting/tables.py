"""Tables S1, S2 and the controls: the same records for the terminal, CSV, Markdown, LaTeX and the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ...export.files import atomic_path
from ..evaluation.results import RatioName
from ..names import csv_cell, latex_text, markdown_cell, terminal_cell, visible
from .rows import DASH, SPLITS, Estimate, Measure, Row, ratio_of

SOURCE: Final = "Wu et al., CVPR 2020, supplementary material, Tables S1 and S2; 100 random ImageNet classes"
SOURCE_WEIGHTS: Final = "IMAGENET1K_V1"
# Top-1 accuracies (train, test) as the source reports them.
SOURCE_NUMBERS: Final = {
    "torchvision/resnet50": (
        "ResNet-50",
        {"clean": (0.8771, 0.7756), "matched": (0.0973, 0.1662), "unmatched": (0.6063, 0.5586)},
    ),
    "torchvision/googlenet": (
        "GoogLeNet",
        {"clean": (0.8115, 0.7494), "matched": (0.0907, 0.2606), "unmatched": (0.5893, 0.5662)},
    ),
    "torchvision/vgg16": (
        "VGG-16",
        {"clean": (0.8095, 0.7358), "matched": (0.1001, 0.1616), "unmatched": (0.5392, 0.5035)},
    ),
}
_LEGEND: Final = (
    "Top-1 accuracy; in brackets the 95% interval over classes. Train is the data's train split, test its val split; "
    f"{DASH} is not measured."
)
_CONTROLS_LEGEND: Final = (
    "Noise: one picture of random signs, as strong as the occluders, on every class. Permuted: the bank's rows given "
    "to the wrong classes. Fooling rate: of the pictures right when clean, the share that the matched occluder turns "
    "wrong. Largest wrong label share: of the wrong matched answers of a class, the share of the most frequent label, "
    "averaged over classes."
)
_PRESERVED_LEGEND: Final = (
    "Preserved: classes of which training preserved pictures; never preserved: the other classes evaluated, the bank's "
    "own among them. Each occluder on those that are not its own."
)


@dataclass(frozen=True)
class Line:
    """One line of a table; `facts` are the columns that only the CSV has."""

    heads: tuple[str, ...]
    cells: tuple[Estimate | None, ...]
    tails: tuple[str, ...]
    facts: Mapping[str, Any]
    ours: bool = True


@dataclass(frozen=True)
class Table:
    """Records with their headings: text columns `heads`, numbers `columns`, text columns `tails`."""

    name: str
    title: str
    legend: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    tails: tuple[str, ...]
    lines: tuple[Line, ...]

    def csv(self) -> pd.DataFrame:
        """Return every digit, with the intervals in columns of their own; empty where nothing was measured."""
        frame = pd.DataFrame([self._csv_line(line) for line in self.lines])
        counts = [name for name in frame if str(name).endswith("_pictures") or str(name).startswith("train_")]
        return frame.astype(dict.fromkeys(counts, "Int64"))  # whole numbers also beside empty cells

    def _csv_line(self, line: Line) -> dict[str, Any]:
        numbers = {
            column.replace(" ", "_").replace("/", "_over_") + suffix: value
            for column, cell in zip(self.columns, line.cells, strict=True)
            for suffix, value in (cell.columns() if cell else dict.fromkeys(_SUFFIXES)).items()
        }
        texts = {"model": line.heads[0], **line.facts}
        return {k: csv_cell(v) if isinstance(v, str) else v for k, v in texts.items()} | numbers

    def shown(self, text: Callable[[str], str] = visible) -> pd.DataFrame:
        """Return every cell; what is no number as `text` returns it."""
        lines = [
            (*map(text, line.heads), *(_shown(cell) for cell in line.cells), *map(text, line.tails))
            for line in self.lines
        ]
        return pd.DataFrame(lines, columns=[*self.heads, *self.columns, *self.tails])

    def rich(self) -> RichTable:
        """Return the table for the terminal."""
        table = RichTable(
            title=self.title, caption=self.legend, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        table.title_justify = table.caption_justify = "left"
        for column in (*self.heads, *self.columns, *self.tails):
            table.add_column(column, justify="right" if column in self.columns else "left", overflow="fold")
        for column in table.columns:  # two short lines rather than one wide column
            column.header = re.sub("/clean(?=[ ,])", "\n/clean", str(column.header)).replace(" label ", " label\n")
        for line in self.lines:
            numbers = (_shown(cell).replace(" [", "\n[") for cell in line.cells)
            table.add_row(*map(terminal_cell, line.heads), *map(Text, numbers), *map(terminal_cell, line.tails))
        return table


_SUFFIXES: Final = tuple(Estimate(0.0).columns())


def _shown(cell: Estimate | None) -> str:
    return f"{cell.text} {cell.interval}".rstrip() if cell else DASH


def comparable(row: Row) -> bool:
    """Return whether the source's numbers are about the row's network: the same model and weights."""
    return row.facts.model in SOURCE_NUMBERS and row.facts.weights == SOURCE_WEIGHTS


def build(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Build Tables S1 and S2, the controls, and where a bank preserved classes, a table of these and of the others."""
    s1 = _accuracies("S1", "matched", "each occluder on pictures of its own class", rows)
    s2 = _accuracies("S2", "unmatched", "each occluder on pictures of the bank's other classes", rows)
    preserving = [row for row in rows if row.facts.preserved_classes]
    return s1, s2, _controls(rows), *([_preserved(preserving)] if preserving else [])


def _accuracies(name: str, measure: str, meaning: str, rows: Sequence[Row]) -> Table:
    ratio: RatioName = "matched/clean" if measure == "matched" else "unmatched/clean"
    cells = [(key, split) for key in ("clean", measure) for split in SPLITS]
    words = {"train": "train", "val": "test"}
    columns = (*(f"{key} {words[split]}" for key, split in cells), f"{ratio} test")
    lines: list[Line] = []
    for index, row in enumerate(rows):
        numbers = (
            *(row.estimate(split, attrgetter(key)) for key, split in cells),
            row.estimate("val", ratio_of(ratio)),
        )
        facts = {**_facts(row), **row.fit("train")}
        lines.append(Line((row.label, row.epsilon), numbers, (row.covers("train"),), facts))
        last = not any(other.facts.model == row.facts.model for other in rows[index + 1 :])
        if last and any(comparable(other) for other in rows if other.facts.model == row.facts.model):
            lines.append(_source_line(row.facts.model, measure))
    title = f"Table {name}. {measure.capitalize()}: {meaning}"
    return Table(name, title, _LEGEND, ("model", "ε"), columns, ("train pictures",), tuple(lines))


def _source_line(model: str, measure: str) -> Line:
    name, numbers = SOURCE_NUMBERS[model]
    values = (*numbers["clean"], *numbers[measure], numbers[measure][1] / numbers["clean"][1])
    return Line(
        (f"{name}, Wu et al. 2020", DASH), tuple(map(Estimate, values)), (DASH,), {"origin": SOURCE}, ours=False
    )


def _facts(row: Row) -> dict[str, Any]:
    keys = ("weights", "weights_hash", "bank_hash", "strength", "epsilon", "norm", "engine", "precision")
    return {"origin": "measured", **{key: getattr(row.facts, key) for key in keys}}


def _controls(rows: Sequence[Row]) -> Table:
    columns: dict[str, Measure] = {"noise": lambda s: s.noise, "permuted": lambda s: s.permuted}
    if any(row.estimate(split, lambda s: s.clean_other) for row in rows for split in row.runs):
        columns["clean, other classes"] = lambda s: s.clean_other
        columns["unmatched, other classes"] = lambda s: s.unmatched_other
    columns["fooling rate"] = lambda s: s.fooling_rate
    columns["largest wrong label share"] = lambda s: s.largest_wrong_label_share
    lines = tuple(
        _control_line(row, split, columns.values()) for row in rows for split in ("val", "train") if split in row.runs
    )
    tails = ("pictures read", "quarantined")
    return Table("controls", "Controls", _CONTROLS_LEGEND, ("model", "ε", "split"), tuple(columns), tails, lines)


def _preserved(rows: Sequence[Row]) -> Table:
    columns: dict[str, Measure] = {}
    ratios: tuple[RatioName, ...] = ("unmatched_preserved/clean", "unmatched_unseen/clean")
    for which, words, ratio in zip(("preserved", "unseen"), ("preserved", "never preserved"), ratios, strict=True):
        columns[f"clean, {words}"] = attrgetter(f"clean_{which}")
        columns[f"unmatched, {words}"] = attrgetter(f"unmatched_{which}")
        columns[f"unmatched/clean, {words}"] = ratio_of(ratio)
    title = "Unmatched on classes that training preserved, and on those that it never did"
    found = [(row, split) for row in rows for split in ("val", "train") if split in row.runs]
    lines = tuple(replace(_control_line(row, split, columns.values()), tails=()) for row, split in found)
    return Table("preserved", title, _PRESERVED_LEGEND, ("model", "ε", "split"), tuple(columns), (), lines)


def _control_line(row: Row, split: str, columns: Iterable[Measure]) -> Line:
    summary = row.runs[split].summary
    counts = {"read": summary.read, "quarantined": summary.quarantined_count}
    cells = tuple(row.estimate(split, measure) for measure in columns)
    facts = {**_facts(row), "split": split, **counts}
    return Line((row.label, row.epsilon, split), cells, tuple(map(str, counts.values())), facts)


def write(tables: Iterable[Table], folder: Path) -> tuple[Path, ...]:
    """Write each table as `NAME.csv`, `NAME.md` and `NAME.tex`. Raises `OSError` where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for table in tables:
        base = folder / table.name
        markdown = table.shown(markdown_cell).to_markdown(index=False, disable_numparse=True)
        texts = {
            ".csv": table.csv().to_csv(index=False),
            ".md": f"**{table.title}**\n\n{markdown}\n\n{table.legend}\n",
            ".tex": _latex(table),
        }
        for suffix, text in texts.items():
            with atomic_path(base.with_suffix(suffix)) as partial:
                partial.write_text(text, encoding="utf-8", newline="")
        written += map(base.with_suffix, texts)
    return tuple(written)


def _latex(table: Table) -> str:
    """Return a booktabs table, with Greek letters and dashes as pdfLaTeX takes them."""
    shown = table.shown(latex_text)
    layout = "l" * len(table.heads) + "r" * len(table.columns) + "l" * len(table.tails)
    caption = f"{table.title}. {table.legend}"
    label = f"tab:{table.name}"
    latex = shown.to_latex(index=False, escape=True, caption=caption, label=label, column_format=layout)
    for character, command in {"ε": r"$\varepsilon$", "±": r"$\pm$", "%": r"\%", DASH: "--"}.items():
        # Cells come escaped, the caption does not.
        latex = re.sub(rf"(?<!\\){character}", lambda _, command=command: command, latex)
    return re.sub(r"^(?=[\[*])", "{}", latex, flags=re.MULTILINE)  # after a line's end, they would be its arguments
