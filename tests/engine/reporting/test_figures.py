"""The figures by themselves: what is drawn, at which place, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gfo.engine.evaluation.results import PENDING, Frontier, Ratio, Ratios
from gfo.engine.evaluation.summary import SCHEMA, Fit, Run, Summary
from gfo.engine.reporting import figures
from gfo.engine.reporting.figure_frontier import frontier_figure, frontier_lines
from gfo.engine.reporting.figure_s1 import magnified, occluded
from gfo.engine.reporting.figures import curve_figure, matrix_figure
from gfo.engine.reporting.rows import join
from gfo.engine.reporting.runs import RunFolder


@pytest.fixture
def summary(run_record: Run) -> Summary:
    """Without a number, to be changed with `replace`."""
    return Summary(
        schema=SCHEMA,
        complete=True,
        **vars(run_record),
        read=0,
        quarantined_count=0,
        quarantined=(),
        fit=Fit(unseen=0, fitted=0, held_out=0),
        **vars(PENDING),
        pairs=0,
        seconds=0.0,
        pairs_per_second=None,
    )


def named_run(summary: Summary, classes: int, others: int = 0) -> RunFolder:
    names = {str(i): f"class {i}" for i in range(classes + others)}
    return RunFolder(Path("run"), replace(summary, class_ids=tuple(range(classes)), class_names=names))


def draw(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_magnified_stretches_to_the_natural_range() -> None:
    d = torch.randn(6, 6, 3, generator=torch.Generator().manual_seed(0)) * 3
    wanted = np.round((d.numpy().astype(np.float64) / np.abs(d.numpy()).max() + 1) * 127.5)
    got = magnified(d)
    assert got.dtype == np.uint8
    assert np.abs(got - wanted).max() <= 1  # a tie may round either way in float32
    assert {int(got.min()), int(got.max())} & {0, 255}


def test_a_zero_occluder_is_grey_not_a_division_by_zero() -> None:
    assert set(magnified(torch.zeros(2, 2, 3)).ravel().tolist()) == {128}


def test_occluded_is_the_clamped_sum() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture[0], picture[1] = 0, 255
    d = rng.integers(-40, 41, (9, 9, 3)).astype(np.float32)
    wanted = np.clip(picture.astype(int) + d.astype(int), 0, 255)
    np.testing.assert_array_equal(occluded(picture, torch.from_numpy(d)), wanted)


@pytest.mark.parametrize(("classes", "others"), [(1, 0), (10, 0), (60, 0), (61, 0), (1000, 0), (20, 980)])
def test_matrix_names_no_more_classes_than_fit(summary: Summary, classes: int, others: int) -> None:
    matrix = np.full((classes + 2, classes + others), 0.5)
    figure = matrix_figure(named_run(summary, classes, others), matrix, range(classes + others), "title")
    clean, middle, noise = figure.axes[:3]
    for axis, count in ((middle.yaxis, classes), (noise.xaxis, classes + others)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert 0 < len(labels) <= 60
        assert len(labels) == count or count > 60
        assert labels == [f"class {round(place)}" for place in axis.get_ticklocs()]
    assert [t.get_text() for axis in (clean, noise) for t in axis.get_yticklabels()] == ["clean", "noise"]
    assert max(figure.get_size_inches()) <= 15


def test_matrix_marks_the_columns_of_preserved_classes(summary: Summary) -> None:
    run = named_run(replace(summary, preserved_classes=(1, 3, 77)), 3, 1)
    figure = matrix_figure(run, np.full((5, 4), 0.5), range(4), "title")
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == ["class 0", "† class 1", "class 2", "† class 3"]
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["class 0", "class 1", "class 2"]


def test_matrix_shows_every_cell_at_its_place(summary: Summary) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.uniform(size=(5, 4))
    matrix[2, 3] = np.nan
    figure = matrix_figure(named_run(summary, 3, 1), matrix, range(4), "title")
    shown = np.concatenate([np.asarray(axis.images[0].get_array()) for axis in figure.axes[:3]])
    np.testing.assert_array_equal(shown[..., 3], np.where(np.isnan(matrix), 0, 255))
    known = np.isfinite(matrix)
    wanted = [colormaps["viridis"](int(value * 256)) for value in matrix[known]]  # a map of 256 colours
    np.testing.assert_allclose(shown[known], 255 * np.array(wanted), atol=1)  # whole numbers
    texts = {t.get_text() for axis in figure.axes[:3] for t in axis.texts}
    assert texts == {f"{v:.2f}" for v in matrix[np.isfinite(matrix)]}
    pixels = draw(figure)
    assert pixels.std() > 0


def ratio_run(
    summary: Summary, folder: str, epsilon: float, split: Literal["train", "val"], matched: float | None
) -> RunFolder:
    found = None if matched is None else Ratio(matched, (0.1, 0.6), (0.05, 0.7))
    ratios: Ratios = {"matched/clean": found, "unmatched/clean": Ratio(0.9, (0.1, 0.6), None)}
    changed = replace(summary, bank_hash=f"b{epsilon}", epsilon=epsilon, split=split, ratios=ratios)
    return RunFolder(Path(folder), changed)


def test_curve_goes_through_the_ratios_in_order_of_epsilon(summary: Summary) -> None:
    runs = [ratio_run(summary, "c", 6, "val", 0.2), ratio_run(summary, "a", 2, "val", 0.5)]
    runs += [ratio_run(summary, "d", 6, "train", 0.1), ratio_run(summary, "b", 4, "val", None)]
    rows = join(runs)
    figure = curve_figure(rows)
    axis = figure.axes[0]
    lines = {str(line.get_label()): line for line in axis.get_lines()}
    assert set(lines) == {
        "matched/clean, test",
        "matched/clean, train",
        "unmatched/clean, test",
        "unmatched/clean, train",
    }
    matched = lines["matched/clean, test"]
    np.testing.assert_allclose(np.asarray(matched.get_xdata(), float), [2, 6], atol=0.05)  # ε = 4 has no ratio
    assert np.asarray(matched.get_ydata()).tolist() == [0.5, 0.2]
    assert np.asarray(lines["unmatched/clean, test"].get_ydata()).tolist() == [0.9, 0.9, 0.9]
    colours = {name: to_hex(str(line.get_color())) for name, line in lines.items()}
    assert colours["matched/clean, test"] == colours["matched/clean, train"] != colours["unmatched/clean, test"]
    assert draw(figure).std() > 0


def dialled(
    summary: Summary, bank: str, strength: float, matched: float | None, unmatched: float, unseen: float, **changes: Any
) -> RunFolder:
    values = {"matched": matched, "unmatched": unmatched, "unmatched_unseen": unseen}
    ratios: Any = {
        f"{name}/clean": None if value is None else Ratio(value, None, None) for name, value in values.items()
    }
    facts = {"bank": f"/banks/{bank}.safetensors", "bank_hash": f"sha256:{bank}", "epsilon": 8 * strength}
    changed = replace(summary, **facts, strength=strength, ratios=ratios, **changes)
    return RunFolder(Path(f"{bank}/{strength:g}"), changed)


def test_frontier_has_a_line_for_each_bank_from_strength_0(summary: Summary) -> None:
    marks: Any = {"0.2": None, "0.3": Ratio(0.61, (0.6, 0.62), (0.5, 0.7)), "0.4": Ratio(0.7, None, None)}
    frontier = Frontier((0.5, 1.0), marks, marks)
    preserved: Any = {"preserved_classes": (5,)}
    further = {**preserved, "frontier": frontier}
    runs = [dialled(summary, "pure", 1.0, 0.25, 0.5, 0.5), dialled(summary, "pure", 0.5, 0.6, 0.8, 0.8)]
    runs += [dialled(summary, "kept", s, m, 0.9, u, **further) for s, m, u in ((0.5, 0.5, 0.85), (1.0, 0.3, 0.6))]
    runs += [dialled(summary, "kept", 2.0, None, 0.9, 0.9, **preserved), dialled(summary, "single", 1.0, 0.2, 0.4, 0.4)]
    (lines,) = frontier_lines(join(runs))
    assert [line.label for line in lines] == ["pure, ε = 8", "kept, ε = 8"]
    figure = frontier_figure(lines)
    axis = figure.axes[0]
    drawn = {str(line.get_label()): np.column_stack(line.get_data()).tolist() for line in axis.get_lines()}
    curves = {label: points for label, points in drawn.items() if label.endswith(("test", "preserved"))}
    assert curves == {
        "pure, ε = 8, test": [[1, 1], [0.6, 0.8], [0.25, 0.5]],
        "kept, ε = 8, test": [[1, 1], [0.5, 0.9], [0.3, 0.9]],
        "kept, ε = 8, test, classes never preserved": [[1, 1], [0.5, 0.85], [0.3, 0.6]],
    }
    ticks = [np.concatenate(line.get_data()).tolist() for line in axis.get_lines() if line.get_marker() == "_"]
    np.testing.assert_allclose(ticks, [(0.3, 0.61), (0.4, 0.7)] * 2, atol=0.03)
    assert {text.get_text() for text in axis.texts} == {"0", "0.5", "1"}
    assert draw(figure).std() > 0


def test_the_source_is_a_star_beside_its_networks_only(summary: Summary) -> None:
    ours = replace(summary, model="torchvision/vgg16", weights="IMAGENET1K_V1")
    for base, stars in ((ours, ["VGG-16, Wu et al. 2020, test"]), (replace(ours, weights="mine"), [])):
        runs = [dialled(base, "b", strength, 0.5, 0.9, 0.9) for strength in (0.5, 1.0)]
        (lines,) = frontier_lines(join(runs))
        found = [line for line in frontier_figure(lines).axes[0].get_lines() if line.get_marker() == "*"]
        assert [line.get_label() for line in found] == stars
        for line in found:
            assert np.concatenate(line.get_data()).tolist() == pytest.approx([0.1616 / 0.7358, 0.5035 / 0.7358])


def test_banks_at_several_strengths_share_no_trade_off_curve(
    summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[tuple[str, float]]] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: path)
    monkeypatch.setattr(
        figures, "curve_figure", lambda rows: drawn.append([(r.facts.bank_hash, r.facts.strength) for r in rows])
    )
    runs = [dialled(summary, bank, strength, 0.5, 0.9, 0.9) for bank in ("a", "b") for strength in (0.5, 1.0)]
    found = figures._draw_curves(join(runs), tmp_path)
    assert drawn == [[(f"sha256:{bank}", 0.5), (f"sha256:{bank}", 1.0)] for bank in ("a", "b")]
    assert all("one bank at several strengths" in figure.caption for figure in found)
