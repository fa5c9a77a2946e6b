"""Objectives: what the occluders minimise, one class per file.

An objective is an `Objective` in a file of this folder and a line in `OBJECTIVES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....export.registry import Table

if TYPE_CHECKING:
    from .base import Objective

OBJECTIVES: Table[Objective] = Table(
    "--objective",
    "gfo.objectives",
    __name__,
    {
        "pure": ".pure:Pure",
        "specific": ".specific:Specific",
        "agnostic": ".agnostic:Agnostic",
        "sink": ".sink:Sink",
    },
)
