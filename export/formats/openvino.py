"""OpenVINO's own format."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import InputError
from ..optional import optional
from .base import Format, Written, onnx_file

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from ..classifier import FrozenClassifier
    from .base import ExportConfig


class OpenVino(Format):
    """`model.xml` and `model.bin`, with the types of the ONNX graph."""

    first: ClassVar[str] = "model.xml"
    beside: ClassVar[tuple[str, ...]] = ("model.bin",)

    def write(
        self, graph: onnx.ModelProto, folder: Path, classifier: FrozenClassifier, config: ExportConfig
    ) -> Written:
        """See `Format.write`."""
        with onnx_file(graph, folder) as source:
            openvino_from_onnx(source, folder / self.first)
        return Written([self.first, *self.beside], {"openvino": version("openvino")})

    def bank(self, path: Path) -> NDArray[np.float32]:
        """See `Format.bank`."""
        import numpy as np

        from ..onnx_graph import BANK

        openvino = optional("openvino", "--format openvino", "openvino")
        try:
            nodes = openvino.Core().read_model(path).get_ops()
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO does not read it ({openvino_reason(error)}); export again") from error
        for node in nodes:
            if (node.get_type_name(), node.get_friendly_name()) == ("Constant", BANK):
                return np.array(node.data)
        raise InputError(f"{path}: holds no bank; export again")


def openvino_from_onnx(source: Path, target: Path) -> None:
    """Convert an ONNX file to `target`, an `.xml` file, and a `.bin` file beside it; types stay as they are.

    Raises
    ------
    EngineUnavailable
        openvino is not installed.
    InputError
        OpenVINO does not take the graph; the message has its reason.
    """
    openvino = optional("openvino", "--format openvino", "openvino")
    try:
        model = openvino.Core().read_model(source)
    except RuntimeError as error:
        raise InputError(
            f"{source.name}: OpenVINO does not take it ({openvino_reason(error)}); export it as ONNX"
        ) from error
    # The default would round the weights of a float32 network to half precision.
    openvino.save_model(model, target, compress_to_fp16=False)


def openvino_reason(error: Exception) -> str:
    """Return the reason from one of OpenVINO's errors, without the lines that name places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(("Exception from", "Caught exception: ", "Check '"))]
    return (reasons or lines or [type(error).__name__])[0]
