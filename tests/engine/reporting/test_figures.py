"""The figures by themselves: what is drawn, at which place, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gfo.engine.evaluation.results import PENDING, Ratio, Ratios
from gfo.engine.evaluation.summary import SCHEMA, Fit, Run, Summary
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


def test_matrix_shows_every_cell_at_its_place(summary: Summary) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.uniform(size=(5, 4))
    matrix[2, 3] = np.nan
    figure = matrix_figure(named_run(summary, 3, 1), matrix, range(4), "title")
    shown = np.concatenate(
        [np.ma.filled(np.ma.asarray(axis.images[0].get_array()), np.nan) for axis in figure.axes[:3]]
    )
    np.testing.assert_array_equal(shown, matrix)
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
