"""What the throughput figure says, whatever engines and models are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gfo.bench import plot
from gfo.export.classifier import FrozenClassifier


@pytest.mark.parametrize("model", ["python:gfo_tiny:network", "$\\frac{$", "猫"])
def test_the_figure_names_model_and_engines(
    model: str, tiny_classifier: FrozenClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure) or figure.canvas.draw())
    points = [(1, 2.0), (4, 5.0)]
    curves: plot.Curves = {name: {"occluders": points, "batch": points} for name in ("torch fp32", "$x$ fp32")}
    plot._draw(curves, replace(tiny_classifier, model=model), tmp_path / "plot.png")
    plot._draw({}, tiny_classifier, tmp_path / "plot.png")  # no engine could run
    (figure, _) = drawn
    title = figure.get_suptitle()
    assert title.endswith(", 16²")
    assert title.startswith(model) or "猫" in model  # with or without a font
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["torch fp32", "$x$ fp32"]
