"""Model families: where a network, its weights and its preprocessing come from, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import Table

if TYPE_CHECKING:
    from .base import Family

FAMILIES: Table[Family] = Table(
    "--model",
    "gfo.models",
    __name__,
    {
        "torchvision": ".torchvision:Torchvision",
        "timm": ".timm:Timm",
        "gfo": ".digits:Digits",
        "python": ".python:UserFunction",
    },
)


def model_forms() -> str:
    """Return what `--model` takes, as `torchvision/<name>, timm/<name> or …`, without loading other packages."""
    added = FAMILIES.names[len(FAMILIES.own) :]
    *rest, last = (
        *(form for family in FAMILIES.by_name(FAMILIES.own).values() for form in family.forms),
        *(f"{name}/<name>" for name in added),
    )
    return f"{', '.join(rest)} or {last}"
