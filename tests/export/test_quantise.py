"""Quantisation of the tiny network: what is in 8 bits, what is not and why, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from gfo.export.bank import OccluderBank
from gfo.export.calibration import Calibration
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.onnx_graph import bare_network
from gfo.export.quantise import quantise
from gfo.export.quantised_graph import check_scales, conversions_counted, in_float32, signed, squared, weighted

pytest.importorskip("nncf")
onnxruntime = pytest.importorskip("onnxruntime")

IMAGES = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def calibration(make_bank: Callable[..., OccluderBank]) -> Calibration:
    return Calibration.draw(IMAGES, make_bank().occluders, "noise", 3)


def logits(graph: onnx.ModelProto, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph says, node by node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"pictures": pictures})[0]


def noise(count: int = 20) -> NDArray[np.float32]:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5)).numpy()


def test_every_other_picture_is_occluded_by_the_formula(
    calibration: Calibration, tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank]
) -> None:
    assert (calibration.facts.pictures, calibration.facts.occluded, calibration.facts.seed) == (12, 6, 3)
    assert (calibration.occluder_index[::2] == 0).all()
    assert (calibration.occluder_index[1::2] > 0).all()
    mean, std = (torch.tensor(v) for v in (tiny_classifier.preprocessing.mean, tiny_classifier.preprocessing.std))
    rows = torch.cat([torch.zeros(1, 16, 16, 3), make_bank().occluders])[calibration.occluder_index]
    wanted = (((calibration.images + rows).clamp(0, 255) / 255 - mean) / std).permute(0, 3, 1, 2)
    found = torch.from_numpy(np.concatenate(list(calibration.batches(tiny_classifier.preprocessing))))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    again = Calibration.draw(IMAGES, make_bank().occluders, "noise", 3)
    assert again.facts == calibration.facts
    assert (
        Calibration.draw(IMAGES, make_bank().occluders, "noise", 4).facts.pictures_hash
        != calibration.facts.pictures_hash
    )


def test_the_facts_count_the_graph_and_the_error_is_that_of_the_logits(int8_classifier: FrozenClassifier) -> None:
    made = int8_classifier.int8_network()
    facts = made.facts
    assert sum(facts.layers.values()) + len(facts.kept) == 3
    assert facts.errors["written"] <= facts.errors["all"]
    truth = logits(bare_network(int8_classifier, "fp32"), noise())
    off = logits(made.graph, noise()) - truth
    centred = [np.sqrt(((part - part.mean(axis=0)) ** 2).mean()) for part in (off, truth)]
    assert 0 < centred[0] / centred[1] < 0.2
    assert made.graph is not bare_network(int8_classifier, "int8")


def test_weights_are_int8_by_channel_and_activations_8_bits_by_tensor(int8_classifier: FrozenClassifier) -> None:
    graph = int8_classifier.int8_network().graph.graph
    arrays = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    assert weights
    for node in weights:
        (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
        values, scale = arrays[node.input[0]], arrays[node.input[1]]
        assert values.dtype == np.int8
        assert scale.shape == (values.shape[axis],)
        assert not arrays[node.input[2]].any()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert arrays[node.input[1]].size == 1
            assert not arrays[node.input[2]].any()


def test_all_layers_back_in_float32_are_the_network(
    tiny_classifier: FrozenClassifier, calibration: Calibration
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(100, 5))
    made = quantise(frozen(network, tiny_classifier), calibration)
    original, graph = bare_network(made, "fp32"), bare_network(made, "int8")
    assert len(weighted(original)) == 3
    assert np.abs(logits(graph, noise()) - logits(original, noise())).max() > 1e-4
    for name in weighted(original):
        if name not in made.int8_network().facts.kept:
            graph = in_float32(graph, original, name)
    onnx.checker.check_model(graph, full_check=True)
    assert not any("Linear" in node.op_type for node in graph.graph.node)
    np.testing.assert_allclose(logits(graph, noise()), logits(original, noise()), rtol=0, atol=1e-6)


def test_signed_numbers_stand_for_the_same_range(int8_classifier: FrozenClassifier) -> None:
    before, changed = bare_network(int8_classifier, "int8"), bare_network(int8_classifier, "int8")
    signed(changed)
    onnx.checker.check_model(changed, full_check=True)

    def ranges(model: onnx.ModelProto) -> dict[str, float]:
        arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
        quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        return {n.name: float(arrays[n.input[1]] * np.iinfo(arrays[n.input[2]].dtype).max) for n in quantisers}

    assert ranges(changed) == pytest.approx(ranges(before), rel=1e-6)
    kinds = {array.data_type for array in changed.graph.initializer}
    assert onnx.TensorProto.UINT8 not in kinds
    assert onnx.TensorProto.UINT8 in {array.data_type for array in before.graph.initializer}
    off = np.abs(logits(changed, noise()) - logits(before, noise())).max()
    assert 0 < off < 0.1 * np.ptp(logits(before, noise()))


def frozen(network: nn.Module, like: FrozenClassifier) -> FrozenClassifier:
    """Keep the name and the hash that the bank was made for."""
    made = FrozenClassifier.from_module(network, like.preprocessing, model="python:own:network")
    return replace(made, weights_hash=like.weights_hash)


class Squares(nn.Module):
    """A convolution, PyTorch's normalisation by neighbouring channels, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(512, 5)
        self.norm = nn.LocalResponseNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(x).relu()).flatten(1))


class Sums(nn.Module):
    """Nothing that has weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=3).flatten(1)[:, :5].softmax(dim=1)


def test_sums_of_squares_stay_in_float32_and_are_named(
    tiny_classifier: FrozenClassifier, calibration: Calibration
) -> None:
    made = quantise(frozen(Squares(), tiny_classifier), calibration).int8_network()
    (name,) = squared(made.graph)
    assert "squares" in made.facts.kept[name]
    assert any(name in line and "squares" in line for line in made.facts.lines())
    counted, others, left = conversions_counted(made.graph)
    assert name in left
    assert counted == made.facts.layers
    assert {"Mul", "Sqrt"} <= set(others)


def test_a_network_without_anything_to_quantise_is_refused_with_what_it_has(
    tiny_classifier: FrozenClassifier, calibration: Calibration
) -> None:
    with pytest.raises(
        InputError, match=r"none of its operations can be quantised \(it has .*Softmax.*\); use .* bf16"
    ):
        quantise(frozen(Sums(), tiny_classifier), calibration)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_scales_that_are_no_positive_numbers_are_refused(scale: float, int8_classifier: FrozenClassifier) -> None:
    graph = bare_network(int8_classifier, "int8")
    check_scales(graph, "m")
    node = next(node for node in graph.graph.node if node.op_type == "QuantizeLinear")
    array = next(array for array in graph.graph.initializer if array.name == node.input[1])
    array.CopyFrom(numpy_helper.from_array(np.array(scale, np.float32), array.name))
    with pytest.raises(InputError, match=rf"m: the scale of {node.name} is {scale:g} after calibration"):
        check_scales(graph, "m")


def test_a_classifier_without_pictures_has_no_int8(tiny_classifier: FrozenClassifier) -> None:
    with pytest.raises(InputError, match=r"--precision int8: .* no int8 form .* gfo-export --precision int8"):
        bare_network(tiny_classifier, "int8")
