"""Benchmark suites, the subcommands of `gfo-bench`: one file and one line of the table each.

A suite is a frozen dataclass whose fields are its options (`base.Suite`). Its file imports nothing heavy; what it
measures with is imported when it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...export.registry import Table

if TYPE_CHECKING:
    from .base import Suite

SUITES: Table[Suite[Any]] = Table(
    "gfo-bench",
    "gfo.suites",
    __name__,
    {
        "pairs": ".pairs:Pairs",
        "scaling": ".scaling:Scaling",
        "versus": ".versus:Versus",
        "loaders": ".loaders:Loaders",
        "train": ".train:Train",
        "kernels": ".kernels:Kernels",
        "compile": ".compile:Compile",
        "loop": ".loop:Loop",
        "store": ".store:Store",
        "cluster": ".cluster:Cluster",
        "replay": ".replay:Replay",
        "device": ".device:DeviceSuite",
        "sweep": ".sweep:SweepSuite",
    },
)
