"""The ONNX graph itself, for ONNX Runtime, OpenVINO and anything else that reads ONNX."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .base import ONNX_FILE, Format, Written

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from ..classifier import FrozenClassifier
    from .base import ExportConfig


class Onnx(Format):
    """`model.onnx`, with its weights and bank in `model.onnx.data` where they are large."""

    first: ClassVar[str] = ONNX_FILE
    optional: ClassVar[tuple[str, ...]] = (f"{ONNX_FILE}.data",)

    def write(
        self, graph: onnx.ModelProto, folder: Path, classifier: FrozenClassifier, config: ExportConfig
    ) -> Written:
        """See `Format.write`."""
        from ..onnx_graph import save_graph

        return Written(save_graph(graph, folder / ONNX_FILE))

    def check(self, path: Path, sizes: tuple[int, int, int | None], files: Collection[str]) -> None:
        """See `Format.check`."""
        from ..onnx_check import check_graph

        check_graph(path, *sizes, files)

    def bank(self, path: Path) -> NDArray[np.float32]:
        """See `Format.bank`."""
        from ..onnx_graph import read_bank

        return read_bank(path)
