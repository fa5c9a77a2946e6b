"""The occluded classifier as OpenVINO's own format, `model.xml` and `model.bin`."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..optional import optional


def openvino_from_onnx(source: Path, target: Path) -> list[str]:
    """Convert an ONNX file; types stay as they are in it.

    Returns
    -------
    list of str
        The names of the files written: `target`'s first.

    Raises
    ------
    EngineUnavailable
        openvino is not installed.
    InputError
        OpenVINO does not take the graph; its first words.
    """
    openvino = optional("openvino", "--format openvino", "openvino")
    try:
        model = openvino.Core().read_model(source)
    except RuntimeError as error:
        raise InputError(
            f"{source.name}: OpenVINO does not take it ({openvino_words(error)}); export it as ONNX"
        ) from error
    # Its default would round the weights of a float32 network to half precision.
    openvino.save_model(model, target, compress_to_fp16=False)
    return [target.name, target.with_suffix(".bin").name]


def openvino_words(error: Exception) -> str:
    """What went wrong, without the lines before it that say where in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(error).__name__])[0]
