"""Names on figures: never read as formulas, in whichever installed fonts have their letters, cut to what fits."""

from __future__ import annotations

import contextlib
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from ..names import escaped, visible

_BUNDLED: Final = "DejaVu Sans"  # it comes with matplotlib
_PLACEHOLDERS: Final = ("Last Resort", "LastResort", "Adobe Blank")  # a box, or nothing, for every character
_PLAIN: Final = 400


@dataclass(frozen=True)
class Lettering:
    """What the names of a figure are drawn with: font families in their order, and the characters that none has."""

    families: tuple[str, ...]
    missing: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Lettering:
        """Choose families for these names: the default ones, then as few further installed ones as are needed."""
        return _chosen(frozenset("".join(map(visible, names))))

    @property
    def escapes(self) -> list[str]:
        """The characters that are shown as escapes."""
        return sorted(character for character in self.missing if not _shapeless(character))

    @property
    def style(self) -> dict[str, Any]:
        """Properties of a matplotlib `Text`."""
        return {"fontfamily": list(self.families), "parse_math": False, "usetex": False}

    def drawn(self, name: str) -> str:
        r"""Return a name as it can be drawn: a character that no font has is an escape, `\u732b`."""
        return "".join(self._parts(name))

    def short(self, name: str, most: int = 22) -> str:
        """Return a name as it can be drawn, cut to the width of `most` Latin letters."""
        parts = list(self._parts(name))
        if sum(map(_width, parts)) <= most:
            return "".join(parts)
        kept, room = "", most - 1
        for part in parts:
            room -= _width(part)
            if room < 0:
                break
            kept += part
        return f"{kept}…"

    def lines(self, text: str, inches: float) -> str:
        """Break a title of 10 points into at most three lines that fit into a width."""
        return "\n".join(textwrap.wrap(self.drawn(text), int(inches * 12), max_lines=3, placeholder="…"))

    def _parts(self, name: str) -> Iterator[str]:
        for character in visible(name):
            if character not in self.missing:
                yield character
            elif not _shapeless(character):
                yield escaped(character)


def _shapeless(character: str) -> bool:
    """Return whether a character only joins or selects others."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _width(part: str) -> int:
    """Return the columns that a character or its escape takes."""
    return 2 if unicodedata.east_asian_width(part[0]) in "WF" else len(part)


@lru_cache
def _chosen(characters: frozenset[str]) -> Lettering:
    families, missing = list[str](), characters
    for family in (*mpl.rcParams["font.family"], _BUNDLED):
        with contextlib.suppress(ValueError):  # a default that is not installed
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
            missing = _missing(path, getattr(path, "face_index", 0), missing)
            families.append(family)
    # The plain face of a family first: it is the one that is drawn.
    further = sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != _PLAIN, font.name))
    for font in further:
        if not missing:
            break
        if font.name in families or font.name.startswith(_PLACEHOLDERS):
            continue
        left = _missing(font.fname, getattr(font, "index", 0), missing)
        if left != missing:
            families.append(font.name)
        missing = left
    return Lettering(tuple(families), missing)


def _missing(path: str, face: int, characters: frozenset[str]) -> frozenset[str]:
    """Return which characters a font lacks; `face` is its place in a collection, which older matplotlib do not read."""
    options: dict[str, Any] = {"face_index": face} if face else {}
    try:
        font = FT2Font(path, **options)
        return frozenset(character for character in characters if not _has(font, character))
    except (OSError, RuntimeError):  # gone since matplotlib listed it, or damaged
        return characters


def _has(font: FT2Font, character: str) -> bool:
    """Return whether a font draws a character; one of colours has an empty outline."""
    if not font.get_char_index(ord(character)):
        return False
    return character.isspace() or font.load_char(ord(character)).width > 0
