"""Graphs with explicit conversions to 8 bits: what in them is quantised, and putting a layer back into float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .onnx_graph import import_onnx

if TYPE_CHECKING:
    import onnx

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_DOWN, _UP = "QuantizeLinear", "DequantizeLinear"
# They only move or clip values: what is exact in 8 bits before them is so behind them.
_PASSING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Relu", "Clip", "MaxPool", "Concat")
# What lies between layers with weights and runs in 8 bits, too, where engines can.
_BETWEEN = ("Add", "AveragePool", "GlobalAveragePool", "ReduceMean")
_SQUARES = "sums squares, whose range 8 bits do not span"


def weighted(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes with weights, in the order in which they run."""
    constants = {array.name for array in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in _WEIGHTED and n.input[1] in constants]


def squared(model: onnx.ModelProto) -> dict[str, str]:
    """Return the nodes with weights that sum squares, as `ResponseNorm` does, and why they stay in float32."""
    sources = _sources(model)
    found = {n.name: sources.get(n.input[0]) for n in model.graph.node if n.op_type in _WEIGHTED}
    return {
        name: _SQUARES
        for name, node in found.items()
        if node is not None and node.op_type == "Mul" and node.input[0] == node.input[1]
    }


def not_converted(model: onnx.ModelProto) -> list[str]:
    """Return the types of the nodes that stay in float32: roots, products of activations and the like gain no speed."""
    converted = {*_WEIGHTED, *_PASSING, *_BETWEEN}
    return sorted({node.op_type for node in model.graph.node} - converted)


def positive_axes(model: onnx.ModelProto) -> None:
    """Count the axes of weights from the front, as TensorRT wants them."""
    ranks = {array.name: len(array.dims) for array in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == _UP and attribute.name == "axis" and attribute.i < 0 and node.input[0] in ranks:
                attribute.i += ranks[node.input[0]]


def check_scales(model: onnx.ModelProto, name: str) -> None:
    """Raise `InputError` unless the scale of every conversion is a positive number."""
    for node, scale in _scales(model):
        if not (np.isfinite(scale) & (scale > 0)).all():
            bad = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
            raise InputError(
                f"{name}: the scale of {node.name} is {bad:g} after calibration, expected a positive number; check the "
                "weights and the calibration pictures, or use --precision bf16"
            )


def _scales(model: onnx.ModelProto) -> Iterator[tuple[Any, Any]]:
    helper, arrays = import_onnx().numpy_helper, {array.name: array for array in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (_DOWN, _UP) and node.input[1] in arrays:
            yield node, helper.to_array(arrays[node.input[1]])


def conversions_counted(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Count the nodes that multiply 8-bit numbers, and the others that compute; name those with weights among these.

    Nodes that only move or clip values compute nothing. One without weights whose inputs all are 8-bit numbers is left
    out: some engines run it in 8 bits, others not.
    """
    sources, eight, others = _sources(model), Counter[str](), Counter[str]()
    left = list[str]()
    for node in model.graph.node:
        if node.op_type in (_DOWN, _UP, *_PASSING):
            continue
        inputs = [name for name in node.input if name in sources]
        if node.op_type in _WEIGHTED and all(_is_eight(sources, name) for name in node.input[:2]):
            eight[node.op_type] += 1
        elif node.op_type in _WEIGHTED:
            left.append(node.name)
        elif not (inputs and all(_is_eight(sources, name) for name in inputs)):
            others[node.op_type] += 1
    return dict(eight), dict(others), left


def _is_eight(sources: dict[str, Any], name: str) -> bool:
    """Return whether a value is one of 8 bits, or several that were only moved or clipped since."""
    node = sources.get(name)
    if node is None or node.op_type not in _PASSING:
        return node is not None and node.op_type == _UP
    return all(_is_eight(sources, each) for each in (node.input if node.op_type == "Concat" else node.input[:1]))


def in_float32(model: onnx.ModelProto, original: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a quantised graph with one node as it was: its input not rounded, its own weights and bias.

    Parameters
    ----------
    original
        The graph that was quantised; names of nodes are the same.
    """
    changed = import_onnx().ModelProto()
    changed.CopyFrom(model)
    before = next(node for node in original.graph.node if node.name == name)
    node = next(node for node in changed.graph.node if node.name == name)
    constants = {array.name: array for array in original.graph.initializer}
    for place, constant in enumerate(before.input[1:], 1):
        array = changed.graph.initializer.add()
        array.CopyFrom(constants[constant])
        array.name = node.input[place] = f"{name}.float32.{place}"
    sources = _sources(changed)
    while (above := sources.get(node.input[0])) is not None:
        if above.op_type == _UP:
            node.input[0] = sources[above.input[0]].input[0]
            break
        alone = sum(above.output[0] in other.input for other in changed.graph.node) == 1
        if above.op_type not in _PASSING or not alone:
            break
        node = above
    _drop_unused(changed)
    return changed


def _sources(model: onnx.ModelProto) -> dict[str, Any]:
    return {name: node for node in model.graph.node for name in node.output}


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and arrays that no output needs."""
    needed = {value.name for value in model.graph.output}
    nodes = list[Any]()
    for node in reversed(model.graph.node):  # each stands behind what it needs
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.insert(0, node)
    arrays = [array for array in model.graph.initializer if array.name in needed]
    parts: list[tuple[Any, list[Any]]] = [(model.graph.node, nodes), (model.graph.initializer, arrays)]
    for field, kept in parts:
        copies = [type(one)() for one in kept]
        for copy, one in zip(copies, kept, strict=True):
            copy.CopyFrom(one)
        del field[:]
        field.extend(copies)


def signed(model: onnx.ModelProto) -> None:
    """Make all 8-bit numbers signed, for TensorRT, which has no others: unsigned activations lose a bit."""
    helper, arrays = import_onnx().numpy_helper, {array.name: array for array in model.graph.initializer}
    done = set[str]()
    for node in model.graph.node:
        if node.op_type not in (_DOWN, _UP) or len(node.input) < 3 or node.input[2] in done:
            continue
        zero = helper.to_array(arrays[node.input[2]])
        if zero.dtype != np.uint8:
            continue
        pairs = [n for n in model.graph.node if n.op_type in (_DOWN, _UP) and node.input[2] in n.input[2:]]
        for name in {n.input[1] for n in pairs}:
            scale = helper.to_array(arrays[name]) * np.float32(255 / 127)
            arrays[name].CopyFrom(helper.from_array(scale.astype(np.float32), name))
        arrays[node.input[2]].CopyFrom(helper.from_array(zero.astype(np.int8), node.input[2]))
        done.add(node.input[2])
