"""Names on figures are drawn with installed fonts, as they are, and never warn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gfo.engine.reporting import lettering
from gfo.engine.reporting.lettering import Lettering

CAT, DOG, JOINER = "猫", "犬", "\u200d"
Install = Callable[[str, str], str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a font of squares for some characters, for one test, beside those that come with matplotlib."""
    bundled = [font for font in font_manager.fontManager.ttflist if "matplotlib" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)

    def install(family: str, characters: str) -> str:
        builder, path = FontBuilder(1000), tmp_path / f"{family}.ttf"
        names = {ord(character): f"u{ord(character):X}" for character in characters}
        pen = TTGlyphPen(None)
        for point in ((0, 0), (0, 900), (900, 900), (900, 0)):
            (pen.lineTo if point != (0, 0) else pen.moveTo)(point)
        pen.closePath()
        glyphs = dict.fromkeys([".notdef", *names.values()], pen.glyph())
        builder.setupGlyphOrder([*glyphs])
        builder.setupCharacterMap(names)
        builder.setupGlyf(glyphs)
        builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
        builder.setupHorizontalHeader(ascent=900, descent=-100)
        builder.setupNameTable({"familyName": family, "styleName": "Regular"})
        builder.setupOS2(usWeightClass=400)
        builder.setupPost()
        builder.save(path)
        font_manager.fontManager.addfont(path)
        lettering._chosen.cache_clear()
        return family

    lettering._chosen.cache_clear()
    yield install
    lettering._chosen.cache_clear()


def drawn(name: str) -> np.ndarray:
    """The pixels of a title; a warning would be an error."""
    figure, letters = Figure(figsize=(2, 1)), Lettering.of([name])
    figure.suptitle(letters.short(name), **letters.style)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("name", ["$\\frac{$", "$", "_%^&~#{}", "a\nb", "\ud800", "猫", "👩\u200d💻", "x" * 5000])
def test_names_are_drawn_as_they_are(name: str) -> None:
    assert drawn(name).std() > 0


def test_a_formula_is_only_text() -> None:
    assert not np.array_equal(drawn("$x$"), drawn("x"))


def test_characters_that_no_font_has_are_escapes(install: Install) -> None:
    letters = Lettering.of([CAT + JOINER, "abc ε"])
    assert letters.drawn(f"a{CAT}{JOINER}") == r"a\u732b"
    assert letters.escapes == [CAT]
    assert np.array_equal(drawn(CAT), drawn(r"\u732b"))


def test_further_fonts_are_chosen_by_what_they_have(install: Install) -> None:
    install("Last Resort X", CAT + DOG)  # such fonts have a box for everything
    cats = install("Cats", CAT)
    letters = Lettering.of([CAT, DOG])
    assert letters.families[-1] == cats
    assert letters.drawn(CAT + DOG) == CAT + r"\u72ac"
    assert not np.array_equal(drawn(CAT), drawn(r"\u732b"))


def test_names_are_cut_to_what_fits() -> None:
    letters = Lettering((), frozenset({DOG}))
    assert letters.short("x" * 22) == "x" * 22
    assert letters.short("x" * 99) == "x" * 21 + "…"
    assert letters.short(CAT * 99) == CAT * 10 + "…"  # twice as wide
    assert letters.short(DOG * 99) == r"\u72ac" * 3 + "…"  # no half of an escape
    assert letters.lines("word " * 99, 2) == "word word word word word\n" * 2 + "word word word word…"
