"""The ONNX graph against the formula, run by ONNX Runtime and by onnx's own reference; what is refused on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from gfo.export import onnx_graph
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.onnx_check import check_graph
from gfo.export.onnx_graph import bare_network, occluded_graph, save_graph
from gfo.export.preprocessing import Preprocessing

G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=G)
BANK = torch.randn(2, 16, 16, 3, generator=G) * 60
PAIRS = torch.tensor([[2, 0, 1, 2], [0, 1, 2, 1]])


def given(bank: Tensor | None) -> dict[str, np.ndarray]:
    inputs = {"images": IMAGES.numpy(), "image_index": PAIRS[0].numpy(), "occluder_index": PAIRS[1].numpy()}
    return inputs if bank is None else inputs | {"bank": torch.cat([torch.zeros_like(bank[:1]), bank]).numpy()}


def by_hand(classifier: FrozenClassifier) -> Tensor:
    """Float64, from the formula."""
    rows = torch.cat([torch.zeros_like(BANK[:1]), BANK]).double()
    occluded = (IMAGES[PAIRS[0]].double() + rows[PAIRS[1]]).clamp(0, 255) / 255
    mean, std = (torch.tensor(v).double() for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
    return classifier.network_as("fp32").double()(((occluded - mean) / std).permute(0, 3, 1, 2))


@pytest.mark.parametrize("gather", onnx_graph.GATHERS)
@pytest.mark.parametrize("embedded", [True, False])
def test_the_standards_own_reference_computes_the_formula(
    gather: Any, embedded: bool, tiny_classifier: FrozenClassifier
) -> None:
    model = occluded_graph(tiny_classifier, "fp32", BANK if embedded else None, gather=gather)
    (logits,) = ReferenceEvaluator(model).run(None, given(None if embedded else BANK))
    torch.testing.assert_close(torch.tensor(logits).double(), by_hand(tiny_classifier), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "opset", "dtype"),
    [("fp32", 20, TensorProto.FLOAT), ("fp16", 20, TensorProto.FLOAT16), ("bf16", 22, TensorProto.BFLOAT16)],
)
def test_the_network_has_the_precisions_dtype_and_its_surroundings_float32(
    precision: str, opset: int, dtype: int, tiny_classifier: FrozenClassifier, tmp_path: Path
) -> None:
    model = occluded_graph(tiny_classifier, precision, BANK, metadata={"gfo.model": "tiny"})
    assert save_graph(model, tmp_path / "model.onnx") == ["model.onnx"]
    found = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx"))
    assert found.opset_import[0].version == opset
    types = {value.name: value.type.tensor_type.elem_type for value in found.graph.value_info}
    outputs = {op: {types[n.output[0]] for n in found.graph.node if n.op_type == op} for op in ("Conv", "Gemm", "Clip")}
    assert outputs == {"Conv": {dtype}, "Gemm": {dtype}, "Clip": {TensorProto.FLOAT}}
    assert found.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {entry.key: entry.value for entry in found.metadata_props} == {"gfo.model": "tiny"}


def test_sizes_are_open_and_named(tiny_classifier: FrozenClassifier) -> None:
    graph = occluded_graph(tiny_classifier, "fp32", None).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "images": ["B", 16, 16, 3],
        "image_index": ["P"],
        "occluder_index": ["P"],
        "bank": ["rows", 16, 16, 3],
        "logits": ["P", 5],
    }


def test_a_network_whose_parameters_are_called_like_the_inputs() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Linear(3 * 16 * 16, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.bank(images.flatten(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = FrozenClassifier.from_module(Clash(), Preprocessing(16, 16))
    (logits,) = ReferenceEvaluator(occluded_graph(classifier, "fp32", BANK)).run(None, given(None))
    torch.testing.assert_close(torch.tensor(logits).double(), by_hand(classifier), rtol=1e-4, atol=1e-5)


def test_a_large_bank_lies_beside_the_graph(
    tiny_classifier: FrozenClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_BYTES", 4096)
    assert save_graph(occluded_graph(tiny_classifier, "fp32", BANK), tmp_path / "m.onnx") == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size >= 3 * BANK[0].nbytes
    assert (tmp_path / "m.onnx.data").stat().st_mode == (tmp_path / "m.onnx").stat().st_mode  # others may read it
    check_graph(tmp_path / "m.onnx", 16, 5, 3, ["m.onnx.data"])
    for rows, data in ((4, ["m.onnx.data"]), (None, ["m.onnx.data"]), (3, ["m.onnx"])):
        with pytest.raises(InputError):
            check_graph(tmp_path / "m.onnx", 16, 5, rows, data)
    (logits,) = ReferenceEvaluator(str(tmp_path / "m.onnx")).run(None, given(None))
    torch.testing.assert_close(torch.tensor(logits).double(), by_hand(tiny_classifier), rtol=1e-4, atol=1e-5)


def test_a_network_that_torch_cannot_trace_is_named() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : 2 + int(x.sum() > 1e9)]

    classifier = FrozenClassifier.from_module(Counts(), Preprocessing(16, 16), model="counts")
    with pytest.raises(InputError, match="counts: cannot be exported to ONNX"):
        bare_network(classifier, "fp32")


# ---- what is refused


@pytest.fixture
def graph_file(tiny_classifier: FrozenClassifier, tmp_path: Path) -> Path:
    save_graph(occluded_graph(tiny_classifier, "fp32", None), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_files_that_are_no_graph_or_another(graph_file: Path) -> None:
    check_graph(graph_file, 16, 5, None, ["model.onnx"])
    for size, classes, rows in ((17, 5, None), (16, 6, None), (16, 5, 3)):
        with pytest.raises(InputError, match="inputs and outputs are"):
            check_graph(graph_file, size, classes, rows, [])
    whole = graph_file.read_bytes()
    for spoiled in (whole[:-100], b"", b"not a graph at all"):
        graph_file.write_bytes(spoiled)
        with pytest.raises(InputError, match=r"not a valid ONNX file|inputs and outputs are"):
            check_graph(graph_file, 16, 5, None, ["model.onnx"])


@pytest.mark.parametrize("place", ["/etc/passwd", "../outside", "sub/inside"])
@pytest.mark.parametrize("inside", [False, True])
def test_data_outside_of_the_folder_are_refused(place: str, inside: bool, graph_file: Path) -> None:
    model = onnx.load(graph_file)
    array = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    array.external_data.add(key="location", value=place)
    if inside:  # in a node, not among the graph's own
        model.graph.node.append(helper.make_node("Constant", [], ["far"], value=array))
    else:
        model.graph.initializer.append(array)
    graph_file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="none of its own files"):
        check_graph(graph_file, 16, 5, None, ["model.onnx"])
