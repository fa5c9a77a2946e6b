"""Optimizers: how occluders move against their gradient, one class per file.

An optimizer is an `Optimizer` in a file of this folder and a line in `OPTIMIZERS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....export.registry import Table

if TYPE_CHECKING:
    from .base import Optimizer

OPTIMIZERS: Table[Optimizer] = Table(
    "--optimizer", "gfo.optimizers", __name__, {"momentum": ".momentum:Momentum", "adam": ".adam:Adam"}
)
