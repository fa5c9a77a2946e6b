"""What is ONNX Runtime's own; what every engine promises is in test_engines.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime")

from gfo.engine.engines.graphs import Graph
from gfo.engine.engines.onnxruntime import provider_options

GPU = torch.device("cuda:1")


def test_tensorrts_provider_keeps_engines_of_other_graphs_apart(tmp_path: Path) -> None:
    """It would take one for the other: graphs of other weights have the same file name and the same structure."""
    graphs = [Graph(tmp_path / name / "model.onnx", tmp_path / name) for name in ("one", "other")]
    one, other = (provider_options("tensorrt", "fp32", GPU, graph) for graph in graphs)
    assert Path(one["trt_engine_cache_path"]).is_relative_to(tmp_path / "one")
    assert Path(other["trt_engine_cache_path"]).is_relative_to(tmp_path / "other")
    own = provider_options("tensorrt", "fp32", GPU, Graph(tmp_path / "model.onnx", None))
    assert own == {"device_id": 1}  # the code of a user's own network may change under the same name


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", 0), ("fp16", 1)])
def test_fp32_on_cuda_is_float32(precision: str, tf32: int, tmp_path: Path) -> None:
    graph = Graph(tmp_path / "model.onnx", None)
    assert provider_options("cuda", precision, GPU, graph) == {"device_id": 1, "use_tf32": tf32, "prefer_nhwc": 1}
