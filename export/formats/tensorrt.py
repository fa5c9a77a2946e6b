"""A TensorRT engine file, a plan, of the whole graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .base import Format, Written, onnx_file

if TYPE_CHECKING:
    import onnx

    from ..classifier import FrozenClassifier
    from ..onnx_graph import Gather
    from .base import ExportConfig


class TensorRt(Format):
    """`model.plan`, for the TensorRT version that built it and the GPUs and sizes that it was built for."""

    first: ClassVar[str] = "model.plan"
    gather: ClassVar[Gather] = "float32"  # TensorRT has no gather of bytes
    for_gpus: ClassVar[bool] = True

    def write(
        self, graph: onnx.ModelProto, folder: Path, classifier: FrozenClassifier, config: ExportConfig
    ) -> Written:
        """See `Format.write`."""
        from ..tensorrt.plan import self_contained_profile, tensorrt_from_onnx
        from .base import Limits

        # The clean row, all classes, and the noise row of an evaluation.
        rows = (2, classifier.num_classes + 2) if config.bank_input else None
        profile = self_contained_profile(classifier.preprocessing.input_size, config.batch_size, rows)
        with onnx_file(graph, folder) as source:
            plan = tensorrt_from_onnx(
                source,
                folder / self.first,
                config.precision,
                profile,
                compute_capabilities=config.compute_capabilities,
            )
        most = config.batch_size
        limits = Limits(
            pairs=(1, most, most),
            pictures=(1, most, most),
            rows=None if rows is None else (rows[0], rows[0], rows[1]),
            library=plan.library,
            library_version=plan.library_version,
            compute_capabilities=plan.compute_capabilities,
        )
        return Written([self.first], {plan.library: plan.library_version}, limits, dict(plan.layer_types))
