"""Checks of an ONNX file before an engine opens it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputError
from .onnx_graph import BANK, import_onnx, ports


def check_graph(path: Path, size: int, classes: int, rows: int | None, data: Collection[str]) -> None:
    """Raise `InputError` unless a file is a graph of `occluded_graph`'s form whose data lie where they should.

    To be called before a native library opens the file: not every library refuses a damaged or foreign one cleanly.

    Parameters
    ----------
    size, classes
        S and C.
    rows
        K + 1 of the bank inside; None where it is an input.
    data
        Names of the files beside it that the graph may read.
    """
    onnx = import_onnx()
    try:
        model = onnx.load(path, load_external_data=False)
        _check_places(model, path, data)
        onnx.checker.check_model(str(path))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a valid ONNX file ({reason}); export again") from error
    banks = {array.name: array for array in model.graph.initializer if array.name == BANK}
    found = {value.name: _described(value) for value in (*model.graph.input, *model.graph.output)}
    found |= {name: (onnx.TensorProto.DataType.Name(array.data_type), [*array.dims]) for name, array in banks.items()}
    wanted = ports(size, classes, rows)
    if found != wanted:
        raise InputError(f"{path}: inputs and outputs are {found}, expected {wanted}; export again")


def _check_places(model: Any, path: Path, data: Collection[str]) -> None:
    """Raise `InputError` where the model reads data from other files than `data`."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for array in (*model.graph.initializer, *_arrays(nodes)):
        for entry in array.external_data:
            if entry.key == "location" and entry.value not in data:
                raise InputError(f"{path}: keeps data at {entry.value}, which is none of its own files; export again")


def _arrays(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield the arrays that nodes hold as attributes, those of graphs inside them too."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from (*graph.initializer, *_arrays(graph.node))


def _described(value: Any) -> tuple[str, list[int | None]]:
    kind = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return import_onnx().TensorProto.DataType.Name(kind.elem_type), sizes
