"""Inference engines, one file each, with one lifecycle (`base.Engine`).

An engine is a subclass of `Engine` in a file of this folder and a line in `ENGINES`; see CONTRIBUTING.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...export.registry import Table

if TYPE_CHECKING:
    from .base import Engine

ENGINES: Table[Engine] = Table(
    "--engine",
    "gfo.engines",
    __name__,
    {
        "torch": ".torch:TorchEngine",
        "onnxruntime": ".onnxruntime:OnnxRuntimeEngine",
        "openvino": ".openvino:OpenVinoEngine",
        "trt": ".trt.engine:TrtEngine",
    },
)
