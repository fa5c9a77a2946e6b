"""Export formats: what the occluded classifier is written as, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import Table

if TYPE_CHECKING:
    from .base import Format

FORMATS: Table[Format] = Table(
    "--format",
    "gfo.formats",
    __name__,
    {"onnx": ".onnx:Onnx", "openvino": ".openvino:OpenVino", "trt": ".tensorrt:TensorRt"},
)
