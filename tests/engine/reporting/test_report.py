"""From RUN folders made by hand to the tables, the page and the command: what is shown is what the RUNs say."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image
from rich.console import Console

from gfo.engine.commands import report as command
from gfo.engine.data.files import PictureFiles
from gfo.engine.reporting import ReportFiles, page, read_run, report, tables
from gfo.engine.reporting.figure_s1 import Moved, figure_blocks
from gfo.engine.reporting.rows import join
from gfo.export.artefact import Artefact
from gfo.export.bank import OccluderBank
from gfo.export.bank_header import BankHeader
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing

IDS, PER_CLASS, SIDE = (5, 2, 7, 0), 4, 12
NAMES = {"5": "tabby, cat", "2": "<b>dog</b>", "7": "$eel$", "0": "owl"}
PREPROCESSING = Preprocessing(input_size=SIDE, resize=SIDE)
MEASURES = ("clean", "matched", "unmatched", "permuted", "noise")


def make_bank(path: Path, epsilon: float = 8.0) -> OccluderBank:
    signs = torch.randint(0, 2, (len(IDS), SIDE, SIDE, 3), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
    folders = tuple(f"f{i}" for i in IDS)
    header = BankHeader("m", "w", "sha256:w", PREPROCESSING, epsilon, "linf", IDS, folders, gfo_version="0.1.0")
    bank = OccluderBank(signs * epsilon, header)
    bank.save(path)
    return bank


def answers() -> np.ndarray:
    """int32 [N, K + 2]; class 7 is never right when clean, of the others the first picture is wrong when clean."""
    labels = np.repeat(IDS, PER_CLASS)
    predictions = np.repeat(labels[:, None], len(IDS) + 2, axis=1).astype(np.int32)
    predictions[::PER_CLASS, 0] = 8
    predictions[labels == 7, 0] = 1
    for row, class_id in enumerate(IDS):
        predictions[np.flatnonzero(labels == class_id)[:3], row + 1] = 3
    return predictions


def write_store(run: Path, attributes: dict[str, Any], paths: list[str]) -> None:
    group = zarr.open_group(run / "predictions.zarr", mode="w", zarr_format=3)
    predictions = answers()
    for name, values in (("prediction", predictions), ("rank", predictions), ("margin", predictions.astype("f4"))):
        group.create_array(name, data=values, chunks=(8, values.shape[1]), dimension_names=("image", "occluder"))
    for name, values in (("label", np.repeat(IDS, PER_CLASS).astype("i4")), ("fit", np.zeros(len(paths), "i1"))):
        group.create_array(name, data=values, dimension_names=("image",))
    group.create_array("occluder", data=np.array([-1, *IDS, -2], "i4"), dimension_names=("occluder",))
    path = group.create_array("path", shape=(len(paths),), dtype=str, dimension_names=("image",))
    path[:] = np.array(paths, dtype=object)
    group.attrs.update({"run": attributes, "data_root": attributes["data_root"]})


def estimate(rng: np.random.Generator, key: str, *, pictured: bool = True) -> dict[str, Any]:
    """Numbers that nothing can guess: what is shown must come from here."""
    value = rng.uniform(0.1, 0.9)
    spread = rng.uniform(0.01, 0.09, size=4)
    pictures, classes = [value - spread[0], value + spread[1]], [value - spread[2], value + spread[3]]
    counted = {key: value, "pictures": int(rng.integers(9, 999)), "ci95_pictures": pictures, "ci95_classes": classes}
    return {name: value for name, value in counted.items() if pictured or name != "pictures"}


def make_run(folder: Path, seed: int, split: str = "val", epsilon: float = 8.0, **changes: Any) -> Path:
    """A RUN with its bank and pictures beside it; `changes` go into its summary."""
    rng = np.random.default_rng(seed)
    data = folder.parent / "data"
    paths = [f"{split}/f{i}/{n}.png" for i in IDS for n in range(PER_CLASS)]
    for n, path in enumerate(paths):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(n).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(data / path)
    bank_path = folder.parent / f"bank-{epsilon:g}.safetensors"
    bank = make_bank(bank_path, epsilon)
    right = answers()[:, 0].reshape(len(IDS), PER_CLASS) == np.array(IDS)[:, None]
    facts = {"gfo_version": "0.1.0", "model": "m", "num_classes": 9, "weights": "w.pth", "weights_hash": "sha256:w"}
    facts |= {"bank": str(bank_path), "bank_hash": bank.hash, "epsilon": epsilon, "norm": "linf", "split": split}
    facts |= {"engine": "torch", "device": "cpu", "precision": "fp32", "loader": "pillow", "seed": 0}
    facts |= {"data_root": str(data), "preprocessing": PREPROCESSING.to_dict(), "class_ids": list(IDS)}
    facts |= {"class_names": NAMES, "folders": {str(i): f"f{i}" for i in IDS}, "pictures": "all", "per_class": None}
    summary = {"schema": 1, "complete": True, **facts, "read": 16, "quarantined_count": 0, "quarantined": []}
    summary |= {"fit": {"unseen": 16, "fitted": 0, "held_out": 0}, "clean_other": None, "unmatched_other": None}
    summary |= {name: estimate(rng, "accuracy") for name in MEASURES}
    summary |= {
        "ratios": {f"{name}/clean": estimate(rng, "value", pictured=False) for name in ("matched", "unmatched")}
    }
    summary |= {"fooling_rate": estimate(rng, "value"), "largest_wrong_label_share": {"value": 0.5, "classes": 4}}
    shared = {"pictures": PER_CLASS, "matched": 0.25, "unmatched_by_occluder": 1.0, "matched_wilson95": [0.1, 0.7]}
    shared |= {"top_wrong_label": {"class_id": 3, "name": "three", "share": 1.0}}
    names = [{"class_id": i, "folder": f"f{i}", "name": NAMES[str(i)]} for i in IDS]
    summary["classes"] = [{**n, **shared, "clean": float(r.mean())} for n, r in zip(names, right, strict=True)]
    summary |= {"pairs": 96, "seconds": 2.0, "pairs_per_second": 48.0, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    write_store(folder, facts, paths)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


class Page(HTMLParser):
    """The page as a reader sees it: cells of each table by its id, pictures, text, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[bytes] = []
        self.links: list[str] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self._in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag == "table":
            self._rows = self.tables.setdefault(found.get("id", ""), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True
        self.links += [found[key] for key in ("src", "href") if key in found]
        if tag == "img":
            kind, _, data = found["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.images.append(base64.b64decode(data))

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self._rows[-1][-1] += data


def printed(files: ReportFiles, width: int = 220) -> str:
    console = Console(width=width, file=io.StringIO())
    for table in files.printable:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, ReportFiles]:
    """One row from a train and a val RUN: (val, train, files)."""
    base = tmp_path_factory.mktemp("joined")
    val = make_run(base / "val-run", seed=1)
    fit = {"unseen": 0, "fitted": 12, "held_out": 4}
    bad = [{"path": "train/f5/<x>.png", "reason": "truncated & gone"}]
    train = make_run(base / "train-run", 2, "train", fit=fit, quarantined_count=1, quarantined=bad, pictures="fitted")
    return val, train, report([train, val], base / "out", figure_classes=3, figure_pictures=2)


@pytest.mark.parametrize(("table", "measure"), [("S1", "matched"), ("S2", "unmatched")])
def test_csv_holds_every_digit_of_the_summaries(joined: Any, table: str, measure: str) -> None:
    val, train, files = joined
    frame = pd.read_csv(files.page.parent / "tables" / f"{table}.csv")
    (row,) = frame.to_dict("records")
    sources = {"train": summary_of(train), "test": summary_of(val)}
    cells = {f"{key}_{word}": found[key] for word, found in sources.items() for key in ("clean", measure)}
    cells[f"{measure}_over_clean_test"] = sources["test"]["ratios"][f"{measure}/clean"]
    for name, cell in cells.items():
        assert row[name] == cell.get("accuracy", cell.get("value"))
        if "pictures" in cell:  # not in a ratio
            assert row[f"{name}_pictures"] == cell["pictures"]
        for interval in ("ci95_pictures", "ci95_classes"):
            assert [row[f"{name}_{interval}_low"], row[f"{name}_{interval}_high"]] == cell[interval]
    assert (row["train_fitted"], row["train_held_out"]) == (12, 4)
    assert row["bank_hash"] == sources["test"]["bank_hash"]


def test_page_terminal_markdown_and_latex_show_the_same_numbers(joined: Any) -> None:
    val, train, files = joined
    shown, terminal = Page(files.page), printed(files)
    for table, measure in (("S1", "matched"), ("S2", "unmatched")):
        sources = {"train": summary_of(train), "val": summary_of(val)}
        cells = [sources[split][key] for key in ("clean", measure) for split in ("train", "val")]
        cells.append(sources["val"]["ratios"][f"{measure}/clean"])
        values = [f"{cell.get('accuracy', cell.get('value')):.4f}" for cell in cells]
        intervals = ["[{:.3f}, {:.3f}]".format(*cell["ci95_classes"]) for cell in cells]
        wanted = [f"{value} {interval}" for value, interval in zip(values, intervals, strict=True)]
        assert shown.tables[table][1] == ["m", "8", *wanted, "12 fitted, 4 held out"]
        folder = files.page.parent / "tables"
        for text in ((folder / f"{table}.md").read_text(), (folder / f"{table}.tex").read_text()):
            assert all(cell in text for cell in wanted)
        assert all(part in terminal for part in (*values, *intervals))
    assert r"$\varepsilon$" in (files.page.parent / "tables" / "S1.tex").read_text()


def test_controls_and_quarantine_are_shown_for_each_split(joined: Any) -> None:
    val, train, files = joined
    rows = Page(files.page).tables["controls"]
    assert rows[0][:7] == ["model", "ε", "split", "noise", "permuted", "fooling rate", "largest wrong label share"]
    for cells, run, split in ((rows[1], val, "val"), (rows[2], train, "train")):
        summary = summary_of(run)
        assert cells[2] == split
        assert cells[3].startswith(f"{summary['noise']['accuracy']:.4f} [")
        assert cells[4].startswith(f"{summary['permuted']['accuracy']:.4f} [")
        assert cells[5].startswith(f"{summary['fooling_rate']['value']:.4f} [")
        assert cells[6:] == ["0.5000", "16", str(summary["quarantined_count"])]
    assert any("quarantined as unreadable: 1" in note and str(train) in note for note in files.notes)
    assert "train/f5/<x>.png" in Page(files.page).text


def test_page_is_self_contained_and_escaped(joined: Any) -> None:
    _, _, files = joined
    shown = Page(files.page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in shown.links)
    assert "<b>dog</b>" in shown.text
    assert shown.images == [figure.read_bytes() for figure in files.figures]
    assert all(note in shown.text for note in files.notes)
    for word in ("torch on cpu, fp32", "48 pairs/s", "12 fitted, 4 held out", "ci95_pictures", "ci95_classes"):
        assert word in shown.text


def test_figures_are_pictures_of_a_sensible_size(joined: Any) -> None:
    _, _, files = joined
    names = [figure.name for figure in files.figures]
    assert names == ["figure-S1-m-eps8.png", "matrix-m-eps8-val.png", "matrix-m-eps8-train.png"]
    for figure in files.figures:
        with Image.open(figure) as picture:
            assert picture.format == "PNG"
            assert 400 < picture.width < 2500
            assert 400 < picture.height < 2500
            assert np.asarray(picture.convert("L")).std() > 10


def test_figure_blocks_are_what_the_store_the_bank_and_the_pictures_say(joined: Any) -> None:
    val, _, _ = joined
    run = read_run(val)
    bank = OccluderBank.load(run.summary.bank)
    blocks = figure_blocks(run, classes=2, pictures=2)
    assert [block.name for block in blocks] == ["tabby, cat", "owl"]  # the ends of (5, 2, 0): class 7 is never right
    for block, row in zip(blocks, (0, 3), strict=True):
        assert block.factor == pytest.approx(127.5 / 8)
        np.testing.assert_array_equal(block.occluder, np.where(bank.occluders[row].numpy() > 0, 255, 0))
        assert [(p.clean_name, p.occluded_name, p.occluded_right) for p in block.pictures] == [
            (NAMES[str(IDS[row])], "3", False),
            (NAMES[str(IDS[row])], "3", False),
        ]
        for n, picture in enumerate(block.pictures, start=1):  # picture 0 is wrong when clean
            with Image.open(Path(run.summary.data_root) / f"val/f{IDS[row]}/{n}.png") as file:
                clean = np.asarray(file)
            np.testing.assert_array_equal(picture.clean, clean)
            wanted = np.clip(clean.astype(float) + bank.occluders[row].numpy(), 0, 255)
            np.testing.assert_array_equal(picture.occluded, wanted)
    assert [p.occluded_right for p in figure_blocks(run, classes=1, pictures=9)[0].pictures] == [False, False, True]


def test_figure_blocks_of_a_run_over_tar_files_are_those_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", 1)
    wanted = figure_blocks(read_run(run), classes=2, pictures=2)
    data = Path(summary_of(run)["data_root"])
    with tarfile.open(data / "val/0000.tar", "w:") as tar:
        for i in IDS:
            tar.add(data / f"val/f{i}", f"f{i}")
    attributes: Any = zarr.open_group(run / "predictions.zarr", mode="r").attrs["run"]
    write_store(run, attributes, [f"val/0000.tar/f{i}/{n}.png" for i in IDS for n in range(PER_CLASS)])
    opened, parse = list[Path](), tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, mode: opened.append(path) or parse(path, mode))
    found = figure_blocks(read_run(run), classes=2, pictures=2)
    for block, other in zip(found, wanted, strict=True):
        for picture, same in zip(block.pictures, other.pictures, strict=True):
            np.testing.assert_array_equal(picture.clean, same.clean)
    assert opened == [data / "val/0000.tar"]


def test_figure_blocks_of_a_run_of_an_artefact_show_the_occluders_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", 1)
    wanted = figure_blocks(read_run(run), classes=1, pictures=1)
    bank, other = OccluderBank.load(summary_of(run)["bank"]), make_bank(tmp_path / "other", epsilon=9.0)
    edited(run, artefact="key", bank=str(tmp_path))
    artefact = SimpleNamespace(read_bank=lambda: bank)
    monkeypatch.setattr(Artefact, "load", lambda folder: artefact if folder == tmp_path else None)
    (block,) = figure_blocks(read_run(run), classes=1, pictures=1)
    np.testing.assert_array_equal(block.occluder, wanted[0].occluder)
    artefact.read_bank = lambda: other
    with pytest.raises(Moved, match="is another bank by now"):
        figure_blocks(read_run(run), classes=1, pictures=1)


def test_figure_blocks_show_the_occluders_at_the_strength_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    bank = OccluderBank.load(summary_of(run)["bank"])
    edited(run, strength=0.5, epsilon=4.0)
    (block,) = figure_blocks(read_run(run), classes=1, pictures=1)
    assert block.factor == pytest.approx(127.5 / 4)
    wanted = np.clip(block.pictures[0].clean + 0.5 * bank.occluders[0].numpy(), 0, 255)
    np.testing.assert_array_equal(block.pictures[0].occluded, wanted)


def test_a_missing_split_is_a_dash_and_an_empty_csv_cell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3, unmatched=None, ratios={"matched/clean": None, "unmatched/clean": None})
    files = report([run], tmp_path / "out", figure_classes=1, figure_pictures=1)
    shown = Page(files.page)
    assert shown.tables["S1"][1][2] == shown.tables["S1"][1][4] == shown.tables["S1"][1][6] == "–"
    assert shown.tables["S2"][1][5] == "–"
    assert "| –" in (tmp_path / "out/tables/S1.md").read_text()
    assert "& --" in (tmp_path / "out/tables/S1.tex").read_text()
    frame = pd.read_csv(tmp_path / "out/tables/S1.csv")
    assert np.isnan(frame["clean_train"].to_numpy(float)).all()
    assert np.isfinite(frame["clean_test"].to_numpy(float)).all()


def test_other_classes_get_columns_of_their_own(tmp_path: Path) -> None:
    other = {"accuracy": 0.4321, "pictures": 7, "ci95_pictures": [0.4, 0.5], "ci95_classes": None}
    run = make_run(tmp_path / "run", 3, clean_other=other, unmatched_other=other)
    files = report([run], tmp_path / "out", figure_classes=1, figure_pictures=1)
    table = Page(files.page).tables["controls"]
    assert [table[1][table[0].index(f"{name}, other classes")] for name in ("clean", "unmatched")] == ["0.4321"] * 2


def test_preserved_classes_get_a_table_of_their_own_and_marks(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    cells = {
        f"{what}_{which}": estimate(rng, "accuracy")
        for what in ("clean", "unmatched")
        for which in ("preserved", "unseen")
    }
    names = ("matched", "unmatched", "unmatched_preserved", "unmatched_unseen")
    ratios = {f"{name}/clean": estimate(rng, "value", pictured=False) for name in names}
    fit = {"unseen": 10, "fitted": 0, "held_out": 0, "preserved": 6}
    runs = [make_run(tmp_path / "run", 3, ratios=ratios, preserved_classes=[2, 800], fit=fit)]
    edited(runs[0], **cells)
    runs.append(make_run(tmp_path / "older", 4, epsilon=2.0))
    files = report(runs, tmp_path / "out", figure_classes=1, figure_pictures=1)
    shown = Page(files.page)
    assert len(shown.tables["controls"]) == 3
    head, line = shown.tables["preserved"]
    for which, words in (("preserved", "preserved"), ("unseen", "never preserved")):
        for what in ("clean", "unmatched"):
            place = head.index(f"{what}, {words}")
            assert line[place].startswith(f"{cells[f'{what}_{which}']['accuracy']:.4f} [")
        place = head.index(f"unmatched/clean, {words}")
        assert line[place].startswith(f"{ratios[f'unmatched_{which}/clean']['value']:.4f} [")
    assert "6 preserved, 10 unseen" in shown.text
    assert "6 val pictures were used for fitting, choosing or preserving" in shown.text
    assert shown.text.count("† marks classes of which training preserved pictures") == 1
    assert "2 classes preserved" in shown.text


# The supplementary's numbers: clean train, clean test, matched (or unmatched) train, test.
SOURCE = {
    "torchvision/resnet50": ((0.8771, 0.7756, 0.0973, 0.1662), (0.8771, 0.7756, 0.6063, 0.5586)),
    "torchvision/googlenet": ((0.8115, 0.7494, 0.0907, 0.2606), (0.8115, 0.7494, 0.5893, 0.5662)),
    "torchvision/vgg16": ((0.8095, 0.7358, 0.1001, 0.1616), (0.8095, 0.7358, 0.5392, 0.5035)),
}


def test_the_source_stands_beside_comparable_rows_only(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{n}", n, model=model, weights="IMAGENET1K_V1") for n, model in enumerate(SOURCE)]
    runs.append(make_run(tmp_path / "v2", 9, model="torchvision/resnet50", weights="IMAGENET1K_V2", weights_hash="x:2"))
    runs.append(make_run(tmp_path / "mine", 10, model="mine"))
    rows = join([read_run(run) for run in runs])
    for table, which in zip(tables.build(rows), (0, 1), strict=False):
        shown, csv = table.shown(), table.csv()
        theirs = shown[shown["model"].str.contains("Wu et al.")]
        assert theirs.iloc[:, 2:6].astype(float).to_numpy().tolist() == [
            list(found[which]) for found in SOURCE.values()
        ]
        assert shown["model"].tolist().index("ResNet-50, Wu et al. 2020") == 2  # after both rows of ResNet-50
        assert csv["origin"].value_counts().tolist() == [5, 3]
    assert "None is shown for torchvision/resnet50 with IMAGENET1K_V2, mine with w.pth" in page.notes(rows)[0]


def test_without_a_comparable_row_one_sentence_says_why(joined: Any) -> None:
    _, _, files = joined
    assert "Wu et al. 2020" not in printed(files)
    assert any(note.startswith("No numbers of the source are shown") and "m with w.pth" in note for note in files.notes)


def test_two_runs_for_one_cell_are_refused_by_name(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "one", 1), make_run(tmp_path / "other", 2)
    with pytest.raises(InputError, match=f"{re.escape(str(one))} and {re.escape(str(other))}: both hold the val split"):
        report([one, other], tmp_path / "out")


def test_rows_that_would_read_the_same_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, n, precision=name) for n, name in enumerate(("fp32", "bf16"))]
    runs.append(make_run(tmp_path / "l2", 5, norm="l2"))
    runs.append(make_run(tmp_path / "slug", 6, model="m (bf16)", weights_hash="sha256:other"))
    rows = join([read_run(run) for run in runs])
    shown = [(row.label, row.epsilon) for row in rows]
    assert shown == [("m", "8 (l2)"), ("m (fp32)", "8"), ("m (bf16)", "8"), ("m (bf16)", "8")]
    assert len({row.slug for row in rows}) == 4  # or one row's figures would lie over another's


def test_two_epsilons_make_a_curve(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"e{epsilon}", n, epsilon=epsilon) for n, epsilon in enumerate((8.0, 2.5))]
    files = report(runs, tmp_path / "out", figure_classes=1, figure_pictures=1)
    assert [row[1] for row in Page(files.page).tables["S1"][1:]] == ["2.5", "8"]
    assert [figure.name for figure in files.figures if "trade-off" in figure.name] == ["trade-off-m-eps2.5.png"]


def test_strengths_of_several_banks_are_rows_of_their_own(tmp_path: Path) -> None:
    marks = {"0.2": None, "0.3": estimate(np.random.default_rng(7), "value", pictured=False), "0.4": None}
    frontier = {"strengths": [0.5, 1.0], "unmatched": marks, "unmatched_unseen": marks}
    runs, scaled = list[Path](), {}
    for bank in (8.0, 6.0):
        for strength in (1.0, 0.75):
            runs.append(make_run(tmp_path / f"{bank:g} {strength:g}", len(runs), epsilon=bank))
            edited(runs[-1], strength=strength, epsilon=strength * bank, frontier=frontier)
            scaled[runs[-1]] = summary_of(runs[-1])["matched"]["accuracy"]
    files = report(runs, tmp_path / "out", figure_classes=1, figure_pictures=1)
    rows = [row[:2] for row in Page(files.page).tables["S1"][1:]]
    assert rows == [
        ["m (bank bank-6)", "4.5 (strength 0.75)"],
        ["m (bank bank-6)", "6"],
        ["m (bank bank-8)", "6 (strength 0.75)"],
        ["m (bank bank-8)", "8"],
    ]
    frame = pd.read_csv(tmp_path / "out/tables/S1.csv")
    assert frame["strength"].tolist() == [0.75, 1.0, 0.75, 1.0]
    assert frame["matched_test"].tolist() == [scaled[runs[i]] for i in (3, 2, 1, 0)]
    drawn = [figure.name for figure in files.figures if "S1" not in figure.name and "matrix" not in figure.name]
    # The two as trained, then each over its strengths; one frontier for both.
    assert drawn == [
        "trade-off-m-bank-bank-6-eps6.png",
        "trade-off-m-bank-bank-6-eps4.5-strength-0.75.png",
        "trade-off-m-bank-bank-8-eps6-strength-0.75.png",
        "frontier-m-bank-bank-6-eps4.5-strength-0.75.png",
    ]
    assert len(set(files.figures)) == len(files.figures)


def test_names_are_text_in_every_file(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)|<script>x</script>\n$ _%", "[*a](b) 猫", "M" * 3000, "m" * 3000]
    runs = [make_run(tmp_path / f"r{n}", n, model=name, weights="-w.pth") for n, name in enumerate(names)]
    rows = join([read_run(run) for run in runs])
    built = tables.build(rows)
    tables.write(built, tmp_path)
    with (tmp_path / "S1.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [line["model"] for line in found] == [rf"'{names[0]}".replace("\n", r"\n"), *names[1:]]
    assert {line["weights"] for line in found} == {"'-w.pth"}
    assert [line["clean_test"] for line in found] == [str(summary_of(run)["clean"]["accuracy"]) for run in runs]
    lines = (tmp_path / "S1.md").read_text(encoding="utf-8").splitlines()[4:8]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}  # eight cells
    assert "<script>" not in "".join(lines)
    latex = (tmp_path / "S1.tex").read_text(encoding="utf-8")
    assert r"=HYPERLINK(1)|<script>x</script>\textbackslash n\$ \_\% & 8" in latex
    assert "\n{}[*a](b) U+732B & 8" in latex
    html = Page(page.write(tmp_path / "report.html", rows, built, (), ()))
    assert [line[0] for line in html.tables["S1"][1:]] == [names[0].replace("\n", r"\n"), *names[1:]]
    slugs = [row.slug.casefold() for row in rows]
    assert len(set(slugs)) == 4
    assert max(map(len, slugs)) < 150
    text = printed(ReportFiles(tmp_path, (), (), (), tuple(table.rich() for table in built)))
    assert r"=HYPERLINK(1)|<script>x</script>\n$" in text


def moved_bank(run: Path) -> None:
    Path(summary_of(run)["bank"]).unlink()


def other_bank(run: Path) -> None:
    make_bank(Path(summary_of(run)["bank"]), epsilon=9.0)


def first_shown(run: Path) -> Path:
    return Path(summary_of(run)["data_root"]) / "val/f5/1.png"


def moved_picture(run: Path) -> None:
    first_shown(run).unlink()


def no_picture(run: Path) -> None:
    first_shown(run).write_bytes(b"text")


def other_picture(run: Path) -> None:
    data = Path(summary_of(run)["data_root"])
    group = zarr.open_group(run / "predictions.zarr", mode="r+")
    stamps = np.array([PictureFiles(data).stamp(str(path)) for path in group["path"][:]])  # type: ignore[index, union-attr]
    group.create_array("stamp", data=stamps)
    first_shown(run).write_bytes((data / "val/f2/1.png").read_bytes())


def moved_artefact(run: Path) -> None:
    edited(run, artefact="key", bank=str(run / "nowhere"))


def no_artefact(run: Path) -> None:
    edited(run, artefact="key", bank=str(run))


def never_right(run: Path) -> None:
    summary = summary_of(run)
    classes = [{**entry, "clean": 0.0} for entry in summary["classes"]]
    (run / "summary.json").write_text(json.dumps({**summary, "classes": classes}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (moved_bank, "bank not found"),
        (other_bank, "is another bank by now"),
        (moved_artefact, "nowhere is not there any more"),
        (no_artefact, "manifest.json: no such file; --artefact takes a folder that gfo-export wrote"),
        (moved_picture, "1.png cannot be read any more (FileNotFoundError)"),
        (no_picture, "1.png is no picture any more (UnidentifiedImageError: cannot identify image file)"),
        (other_picture, "1.png has changed since it was evaluated"),
        (never_right, "gets no clean picture"),
    ],
)
def test_figure_s1_is_not_made_of_what_the_run_did_not_read(tmp_path: Path, change: Any, reason: str) -> None:
    run = make_run(tmp_path / "run", 1)
    change(run)
    with pytest.raises(Moved, match=re.escape(reason)):
        figure_blocks(read_run(run), classes=1, pictures=1)


def test_figure_s1_is_left_out_with_a_reason(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    moved_bank(run)
    files = report([run], tmp_path / "out", figure_classes=1, figure_pictures=1)
    (note,) = [note for note in files.notes if note.startswith("Figure S1 of m, ε = 8, is left out")]
    assert "bank not found" in note
    assert note in Page(files.page).text
    assert not list((tmp_path / "out").glob("figure-S1*"))
    assert (tmp_path / "out/matrix-m-eps8-val.png").is_file()


def run_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["gfo-report", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    return exit_.value.code if isinstance(exit_.value.code, int) else 0


def test_command_prints_the_tables_and_where_the_files_are(
    joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    val, train, files = joined
    monkeypatch.setenv("COLUMNS", "220")
    options = ["--out", str(tmp_path / "a/b"), "--figure-classes", "3", "--figure-pictures", "2"]
    assert run_command([str(val), str(train), *options], monkeypatch) == 0  # the fixture's RUNs in another order
    for file in (files.page, *files.tables, *files.figures):
        assert (tmp_path / "a/b" / file.relative_to(files.page.parent)).read_bytes() == file.read_bytes()
    out = capsys.readouterr().out
    assert f"{summary_of(val)['matched']['accuracy']:.4f}" in out
    assert str(tmp_path / "a/b/report.html") in out
    assert all(note in out for note in files.notes)


def edited(run: Path, **changes: Any) -> None:
    (run / "summary.json").write_text(json.dumps({**summary_of(run), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run.rename(run.parent / "gone"), "RUN folder not found"),
        (lambda run: (run / "summary.json").unlink(), "the evaluation did not end; rerun the same gfo-eval"),
        (lambda run: (run / "summary.json").write_text('{"schema": 1,'), "summary.json: Invalid JSON"),
        (lambda run: (run / "summary.json").write_bytes(b"\xff\xfe"), "summary.json: Invalid JSON"),
        (lambda run: (run / "summary.json").write_text("[1]"), "summary.json: Input should be an object"),
        (lambda run: edited(run, schema=2), "schema: Input should be 1, got 2"),
        (lambda run: edited(run, complete=False), "complete is False; rerun the same gfo-eval"),
        (lambda run: edited(run, matched={"accuracy": "0.5"}), "matched.accuracy: Input should be a valid number"),
        (lambda run: edited(run, clean={"accuracy": float("nan")}), "clean.accuracy: Input should be a finite number"),
        (lambda run: edited(run, split="test"), "split: Input should be 'train' or 'val', got 'test'"),
        (lambda run: edited(run, read=-1), "read: Input should be greater than or equal to 0, got -1"),
        (lambda run: edited(run, bank=""), "bank: "),
        (
            lambda run: edited(run, preprocessing={"input_size": 9, "resize": 8}),
            "preprocessing: expected 1 ≤ input size",
        ),
        (lambda run: edited(run, classes=[{"class_id": 1}]), "classes.0.folder: Field required"),
        (lambda run: (run / "predictions.zarr").rename(run / "moved"), "predictions.zarr: no such store"),
    ],
)
def test_a_bad_run_is_one_line_and_exit_code_2(
    tmp_path: Path, spoil: Any, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", 1)
    spoil(run)
    assert run_command([str(run), "--out", str(tmp_path / "out")], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(run) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("key", ["model", "bank_hash", "fit", "ratios", "noise", "classes", "num_classes"])
def test_a_summary_that_lacks_a_field_is_refused_by_its_name(tmp_path: Path, key: str) -> None:
    run = make_run(tmp_path / "run", 1)
    summary = summary_of(run)
    del summary[key]
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=f"summary.json: {key}: Field required; rerun"):
        read_run(run)


def test_a_folder_that_is_no_run_and_bad_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = make_run(tmp_path / "run", 1)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty")], "not a RUN, it has no summary.json"),
        ([str(tmp_path)], f"not a RUN, it holds several; give these, as {tmp_path}/*"),
        ([str(run), "--figure-classes", "0"], "figure-classes"),
        ([], "RUN"),
    ):
        assert run_command([*arguments, "--out", str(tmp_path / "out")], monkeypatch) == 2
        assert message in capsys.readouterr().err
    assert run_command([str(run), "--out", str(tmp_path / "file" / "out")], monkeypatch) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    with pytest.raises(InputError, match="at least 1 RUN"):
        report([], tmp_path / "out")


def loaded(code: str, heavy: set[str], *arguments: str) -> str:
    """Run code in a process of its own, and return which of the modules it has imported at the end."""
    check = f"import sys\n{code}\nprint(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", check, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_report_loads_nothing_heavy() -> None:
    assert loaded("import gfo.engine.reporting", {"torch", "pandas", "matplotlib", "jinja2", "rich"}) == "[]"


def test_a_report_of_a_run_without_its_bank_is_made_without_pytorch(tmp_path: Path) -> None:
    """Which would be most of its memory, and half of its time."""
    run = make_run(tmp_path / "run", 1)
    moved_bank(run)
    code = "from gfo.engine.reporting import report\nreport(sys.argv[1:2], sys.argv[2])"
    assert loaded(code, {"torch", "scipy.stats"}, str(run), str(tmp_path / "out")) == "[]"
    assert (tmp_path / "out/report.html").is_file()
