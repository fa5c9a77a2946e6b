"""Tables S1 and S2 and the controls: one set of records for the terminal, CSV, Markdown, LaTeX and the page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ...export.errors import InputError
from . import Run

DASH: Final = "–"
SPLITS: Final = ("train", "val")
SOURCE: Final = "Wu et al., CVPR 2020, supplementary material, Tables S1 and S2; 100 random ImageNet classes"
SOURCE_WEIGHTS: Final = "IMAGENET1K_V1"
# Top-1 accuracy, (train, test).
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
_ROW_KEY: Final = ("model", "weights_hash", "bank_hash", "epsilon", "norm", "precision", "engine")
_TELLS_APART: Final = ("weights_hash", "engine", "precision", "bank_hash")
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


@dataclass(frozen=True)
class Row:
    """One model, weights, bank, norm, precision and engine, with its RUNs by split ("train", "val"; at least one)."""

    label: str
    slug: str
    runs: Mapping[str, Run]

    @property
    def facts(self) -> dict[str, Any]:
        """A summary whose key fields hold for every RUN of the row; the val RUN's where there is one."""
        return self.preferred.summary

    @property
    def preferred(self) -> Run:
        """The val RUN, else the train RUN."""
        return self.runs.get("val") or self.runs["train"]

    @property
    def epsilon(self) -> str:
        """The occluders' bound as shown, pixel units; the norm is named where it is not the l∞ of the source."""
        norm = self.facts["norm"]
        return f"{self.facts['epsilon']:g}" + ("" if norm == "linf" else f" ({norm})")

    def estimate(self, split: str, *keys: str) -> Estimate | None:
        """The number under `keys` of the split's summary; None where there is no such RUN or no picture for it."""
        run = self.runs.get(split)
        found: Any = run.summary if run else None
        for key in keys:
            found = found and found[key]
        return Estimate.read(found) if found else None

    def covers(self, split: str) -> str:
        """Which pictures the split's numbers rest on, counted by what they were used for before."""
        names = {"fitted": "fitted", "held_out": "held out", "unseen": "unseen"}
        counts = self.fit(split)
        used = [f"{counts[f'{split}_{key}']} {name}" for key, name in names.items() if counts.get(f"{split}_{key}")]
        return ", ".join(used) or DASH

    def fit(self, split: str) -> dict[str, int]:
        """`train_fitted` and the like → count of pictures; empty where there is no such RUN."""
        run = self.runs.get(split)
        return {f"{split}_{key}": count for key, count in run.summary["fit"].items()} if run else {}


@dataclass(frozen=True)
class Estimate:
    """A rate in 0 … 1 (a ratio in 0 … ∞), how many pictures it rests on, and its two 95% intervals."""

    value: float
    pictures: int | None = None
    ci95_pictures: tuple[float, float] | None = None
    ci95_classes: tuple[float, float] | None = None

    @classmethod
    def read(cls, cell: Mapping[str, Any]) -> Estimate:
        """From a checked cell of `summary.json`."""
        value = cell["accuracy"] if "accuracy" in cell else cell["value"]
        intervals = {name: cell.get(name) and tuple(cell[name]) for name in ("ci95_pictures", "ci95_classes")}
        return cls(value, cell.get("pictures"), **intervals)

    @property
    def text(self) -> str:
        """Four decimals, as the source prints."""
        return f"{self.value:.4f}"

    @property
    def interval(self) -> str:
        """The interval over classes in brackets, empty where there is none."""
        return "[{:.3f}, {:.3f}]".format(*self.ci95_classes) if self.ci95_classes else ""

    def columns(self) -> dict[str, float | int | None]:
        """Suffix → value, every digit kept: the CSV's columns of this number."""
        pictures, classes = self.ci95_pictures or (None, None), self.ci95_classes or (None, None)
        return {
            "": self.value,
            "_pictures": self.pictures,
            **{f"_ci95_pictures_{end}": bound for end, bound in zip(("low", "high"), pictures, strict=True)},
            **{f"_ci95_classes_{end}": bound for end, bound in zip(("low", "high"), classes, strict=True)},
        }


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
        """Every digit, both intervals as columns of their own; a number that was not measured is empty."""
        frame = pd.DataFrame([self._csv_line(line) for line in self.lines])
        counts = [name for name in frame if str(name).endswith("_pictures") or str(name).startswith("train_")]
        return frame.astype(dict.fromkeys(counts, "Int64"))  # whole numbers also beside empty cells

    def _csv_line(self, line: Line) -> dict[str, Any]:
        numbers = {
            column.replace(" ", "_").replace("/", "_over_") + suffix: value
            for column, cell in zip(self.columns, line.cells, strict=True)
            for suffix, value in (cell.columns() if cell else dict.fromkeys(_SUFFIXES)).items()
        }
        return {"model": line.heads[0], **line.facts, **numbers}

    def shown(self) -> pd.DataFrame:
        """The text of every cell."""
        texts = [(*line.heads, *(_shown(cell) for cell in line.cells), *line.tails) for line in self.lines]
        return pd.DataFrame(texts, columns=[*self.heads, *self.columns, *self.tails])

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(
            title=self.title, caption=self.legend, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        table.title_justify = table.caption_justify = "left"
        for column in (*self.heads, *self.columns, *self.tails):
            table.add_column(column, justify="right" if column in self.columns else "left", overflow="fold")
        for column in table.columns:  # two short lines rather than one wide column
            column.header = str(column.header).replace("/clean ", "\n/clean ").replace(" label ", " label\n")
        for texts in self.shown().itertuples(index=False):
            table.add_row(*(Text(str(text).replace(" [", "\n[")) for text in texts))
        return table


_SUFFIXES: Final = tuple(Estimate(0.0).columns())


def _shown(cell: Estimate | None) -> str:
    return f"{cell.text} {cell.interval}".rstrip() if cell else DASH


def join(runs: Sequence[Run]) -> tuple[Row, ...]:
    """Put the RUNs of one bank under one engine and precision into one row; models in the order given, then by ε.

    Raises
    ------
    InputError
        Two RUNs for the same row and split.
    """
    groups: dict[tuple[Any, ...], dict[str, Run]] = {}
    for run in runs:
        row = groups.setdefault(tuple(run.summary[key] for key in _ROW_KEY), {})
        other = row.setdefault(run.summary["split"], run)
        if other is not run:
            raise InputError(
                f"{other.directory} and {run.directory}: both hold the {run.summary['split']} split of one model, "
                "bank, engine and precision; give one of them"
            )
    rows = [Row(next(iter(row.values())).summary["model"], "", row) for row in groups.values()]
    models = list(dict.fromkeys(row.label for row in rows))
    rows.sort(key=lambda row: (models.index(row.label), row.facts["norm"], row.facts["epsilon"]))
    return _named(rows)


def _named(rows: list[Row]) -> tuple[Row, ...]:
    """Give rows that would read the same what tells them apart, and every row a file name of its own."""
    named: list[Row] = []
    taken: Counter[str] = Counter()
    for row in rows:
        alike = [other for other in rows if (other.label, other.epsilon) == (row.label, row.epsilon)]
        differ = [key for key in _TELLS_APART if len({other.facts[key] for other in alike}) > 1]
        extra = " ".join(_short(key, row.facts[key]) for key in differ)
        label = f"{row.label} ({extra})" if extra else row.label
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", f"{label}-eps{row.epsilon}").strip("-")
        taken[slug] += 1
        named.append(Row(label, slug if taken[slug] == 1 else f"{slug}-{taken[slug]}", row.runs))
    return tuple(named)


def _short(key: str, value: str) -> str:
    return f"{key.removesuffix('_hash')} {short_hash(value)}" if key.endswith("_hash") else value


def short_hash(value: str) -> str:
    """The first eight digits of `sha256:…`."""
    return value.rpartition(":")[2][:8]


def comparable(row: Row) -> bool:
    """Whether the source's numbers are about the same network: model and weights both."""
    return row.facts["model"] in SOURCE_NUMBERS and row.facts["weights"] == SOURCE_WEIGHTS


def build(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Tables S1 and S2 and the controls."""
    s1 = _accuracies("S1", "matched", "each occluder on pictures of its own class", rows)
    s2 = _accuracies("S2", "unmatched", "each occluder on pictures of the bank's other classes", rows)
    return s1, s2, _controls(rows)


def _accuracies(name: str, measure: str, meaning: str, rows: Sequence[Row]) -> Table:
    cells = [(key, split) for key in ("clean", measure) for split in SPLITS]
    words = {"train": "train", "val": "test"}
    columns = (*(f"{key} {words[split]}" for key, split in cells), f"{measure}/clean test")
    lines: list[Line] = []
    for index, row in enumerate(rows):
        numbers = (
            *(row.estimate(split, key) for key, split in cells),
            row.estimate("val", "ratios", f"{measure}/clean"),
        )
        facts = {**_facts(row), **row.fit("train")}
        lines.append(Line((row.label, row.epsilon), numbers, (row.covers("train"),), facts))
        last = not any(other.facts["model"] == row.facts["model"] for other in rows[index + 1 :])
        if last and any(comparable(other) for other in rows if other.facts["model"] == row.facts["model"]):
            lines.append(_source_line(row.facts["model"], measure))
    title = f"Table {name}. {measure.capitalize()}: {meaning}"
    return Table(name, title, _LEGEND, ("model", "ε"), columns, ("train pictures",), tuple(lines))


def _source_line(model: str, measure: str) -> Line:
    name, numbers = SOURCE_NUMBERS[model]
    values = (*numbers["clean"], *numbers[measure], numbers[measure][1] / numbers["clean"][1])
    return Line(
        (f"{name}, Wu et al. 2020", DASH), tuple(map(Estimate, values)), (DASH,), {"origin": SOURCE}, ours=False
    )


def _facts(row: Row) -> dict[str, Any]:
    keys = ("weights", "weights_hash", "bank_hash", "epsilon", "norm", "engine", "precision")
    return {"origin": "measured", **{key: row.facts[key] for key in keys}}


def _controls(rows: Sequence[Row]) -> Table:
    columns = {"noise": ("noise",), "permuted": ("permuted",)}
    others = {"clean, other classes": ("clean_other",), "unmatched, other classes": ("unmatched_other",)}
    if any(row.estimate(split, "clean_other") for row in rows for split in row.runs):
        columns |= others
    columns |= {"fooling rate": ("fooling_rate",), "largest wrong label share": ("largest_wrong_label_share",)}
    lines = tuple(
        _control_line(row, split, columns.values()) for row in rows for split in ("val", "train") if split in row.runs
    )
    tails = ("pictures read", "quarantined")
    return Table("controls", "Controls", _CONTROLS_LEGEND, ("model", "ε", "split"), tuple(columns), tails, lines)


def _control_line(row: Row, split: str, columns: Iterable[tuple[str, ...]]) -> Line:
    summary = row.runs[split].summary
    counts = {"read": summary["read"], "quarantined": summary["quarantined_count"]}
    cells = tuple(row.estimate(split, *keys) for keys in columns)
    facts = {**_facts(row), "split": split, **counts}
    return Line((row.label, row.epsilon, split), cells, tuple(map(str, counts.values())), facts)


def write(tables: Iterable[Table], folder: Path) -> tuple[Path, ...]:
    """Each table as `NAME.csv`, `NAME.md` and `NAME.tex`."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for table in tables:
        shown, base = table.shown(), folder / table.name
        table.csv().to_csv(base.with_suffix(".csv"), index=False)
        markdown = shown.to_markdown(index=False, disable_numparse=True)
        base.with_suffix(".md").write_text(f"**{table.title}**\n\n{markdown}\n\n{table.legend}\n", encoding="utf-8")
        base.with_suffix(".tex").write_text(_latex(table, shown), encoding="utf-8")
        written += [base.with_suffix(suffix) for suffix in (".csv", ".md", ".tex")]
    return tuple(written)


def _latex(table: Table, shown: pd.DataFrame) -> str:
    """A booktabs table; Greek and dashes as pdfLaTeX wants them."""
    layout = "l" * len(table.heads) + "r" * len(table.columns) + "l" * len(table.tails)
    caption = f"{table.title}. {table.legend}"
    label = f"tab:{table.name}"
    latex = shown.to_latex(index=False, escape=True, caption=caption, label=label, column_format=layout)
    for character, command in {"ε": r"$\varepsilon$", "±": r"$\pm$", "%": r"\%", DASH: "--"}.items():
        # Cells come escaped, the caption does not.
        latex = re.sub(rf"(?<!\\){character}", lambda _, command=command: command, latex)
    return latex
