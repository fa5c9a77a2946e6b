"""Pictures: which ones a data folder holds, and the loaders that read them, one file each.

A loader is a `Decoder` in a file of this folder and a line in `LOADERS`; see CONTRIBUTING.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...export.registry import Table

if TYPE_CHECKING:
    from .source import Decoder

LOADERS: Table[Decoder] = Table(
    "--loader", "gfo.loaders", __name__, {"dali": ".dali:DaliSource", "pillow": ".pillow:PillowSource"}
)
