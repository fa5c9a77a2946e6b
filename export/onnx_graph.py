"""The portable form: one ONNX graph that holds preprocessing, occlusion and the frozen network.

    images uint8 [B, S, S, 3], image_index int64 [P], occluder_index int64 [P]  →  logits float32 [P, C]

`bank`, float32 [K + 1, S, S, 3] with row 0 zeros for the clean picture, is embedded or a fourth input; B, P and K are
dynamic. Occlusion and logits are float32; the network in between has the dtype of its precision, so that the precision
is a property of the graph and not of whoever runs it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .classifier import DTYPES, FrozenClassifier
from .errors import InputError
from .files import usual_mode

if TYPE_CHECKING:
    import onnx

Gather = Literal["uint8", "float32"]
GATHERS: tuple[Gather, ...] = get_args(Gather)

# bfloat16 convolutions are in the standard since 22.
OPSETS: Mapping[str, int] = {"fp32": 20, "fp16": 20, "bf16": 22}
INPUTS = ("images", "image_index", "occluder_index")
BANK, LOGITS = "bank", "logits"
NETWORK_INPUT, NETWORK_OUTPUT = "pictures", "logits"

# A protobuf file may not reach 2 GiB, and one near it is slow to copy and to check: from here on the weights and the
# bank lie beside the graph.
EXTERNAL_BYTES = 512 << 20
EXTERNAL_SUFFIX = ".data"

GRAPH_VERSION = 2
"""Goes up when this file makes another graph of the same classifier: cached ones are then not used any more."""

_PREFIX = "network/"


def _onnx() -> Any:
    """Imported where it is used: it takes a while, and most commands do without."""
    import onnx
    import onnx.compose
    import onnx.helper
    import onnx.numpy_helper

    return onnx


def bare_network(classifier: FrozenClassifier, precision: str) -> onnx.ModelProto:
    """The network alone: `pictures`, normalised [P, 3, S, S] in the precision's dtype → `logits` [P, C] in the same.

    Raises
    ------
    InputError
        The network cannot be exported; the first line of why.
    """
    network, size = classifier.network_as(precision), classifier.preprocessing.input_size
    example = torch.zeros(2, 3, size, size, dtype=DTYPES[precision]).to(memory_format=torch.channels_last)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("P")},),
                opset_version=OPSETS[precision],
                input_names=[NETWORK_INPUT],
                output_names=[NETWORK_OUTPUT],
                verbose=False,
            )
    except Exception as error:
        raise InputError(
            f"{classifier.model}: cannot be exported to ONNX ({_cause(error)}); torch.export must be able to trace it "
            "for any number of pictures; the engine torch runs it without"
        ) from error
    assert program is not None
    return program.model_proto


def _cause(error: BaseException) -> str:
    """The first line of what began it: around that the exporter puts a banner in colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and warns about its own insides; what goes wrong it raises."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def with_clean_row(occluders: Tensor) -> Tensor:
    """float32 [K, S, S, 3] → [K + 1, S, S, 3] as the graph's `bank` wants it, row 0 zeros."""
    return torch.cat([torch.zeros_like(occluders[:1]), occluders])


def occluded_graph(
    classifier: FrozenClassifier,
    precision: str,
    bank: Tensor | None,
    *,
    network: onnx.ModelProto | None = None,
    gather: Gather = "uint8",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The occluded classifier as one graph.

    Parameters
    ----------
    bank
        float32 [K, S, S, 3] in pixel units, to be embedded behind a row of zeros; None makes `bank` an input.
    network
        What `bare_network` gave for this classifier and precision; made here if None.
    gather
        In which dtype pictures are repeated for their pairs: as bytes, which is a quarter of the memory, or, for
        TensorRT, which has no gather of bytes, after the cast to float32.
    metadata
        Written into the model; see `manifest`.
    """
    onnx = _onnx()
    helper, types = onnx.helper, onnx.TensorProto
    network = bare_network(classifier, precision) if network is None else network
    model = onnx.compose.add_prefix(network, _PREFIX)
    graph, size = model.graph, classifier.preprocessing.input_size
    (source,), (result,) = graph.input, graph.output
    constants = {
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
        "scale": np.tile(np.array(classifier.preprocessing.scale, np.float32), size),
        "shift": np.tile(np.array(classifier.preprocessing.shift, np.float32), size),
        "lines": np.array([0, size, size * 3], np.int64),
        "pixels": np.array([0, size, size, 3], np.int64),
    }
    if bank is not None:
        constants[BANK] = with_clean_row(bank).numpy()
    half = source.type.tensor_type.elem_type
    node = helper.make_node
    pick, cast = ("images", "image_index"), {"to": types.FLOAT}
    before = (
        [node("Gather", pick, ["bytes"]), node("Cast", ["bytes"], ["picked"], **cast)]
        if gather == "uint8"
        else [node("Cast", ["images"], ["floats"], **cast), node("Gather", ["floats", "image_index"], ["picked"])]
    )
    # Occluded line by line: with three channels innermost OpenVINO's loop over them would be three long.
    before += [
        node("Gather", [BANK, "occluder_index"], ["added"]),
        node("Reshape", ["picked", "lines"], ["x"]),
        node("Reshape", ["added", "lines"], ["d"]),
        node("Add", ["x", "d"], ["sum"]),
        node("Clip", ["sum", "low", "high"], ["occluded"]),
        node("Mul", ["occluded", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["normalised"]),
    ]
    last = "normalised"
    if half != types.FLOAT:
        before.append(node("Cast", [last], ["halved"], to=half))
        last = "halved"
    before.append(node("Reshape", [last, "pixels"], ["channels_last"]))
    before.append(node("Transpose", ["channels_last"], [source.name], perm=[0, 3, 1, 2]))
    # A cast to the dtype that it has already is taken out by every engine, and keeps the name free.
    after = [node("Cast", [result.name], [LOGITS], **cast)]
    picture, pairs = ["B", size, size, 3], ["P"]
    inputs = [
        helper.make_tensor_value_info("images", types.UINT8, picture),
        helper.make_tensor_value_info("image_index", types.INT64, pairs),
        helper.make_tensor_value_info("occluder_index", types.INT64, pairs),
    ]
    if bank is None:
        inputs.append(helper.make_tensor_value_info(BANK, types.FLOAT, ["rows", size, size, 3]))
    outputs = [helper.make_tensor_value_info(LOGITS, types.FLOAT, ["P", classifier.num_classes])]
    joined = helper.make_graph(
        [*before, *graph.node, *after],
        "occluded_classifier",
        inputs,
        outputs,
        [*graph.initializer, *(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    made = helper.make_model(
        joined, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )
    made.producer_name = "gfo"
    helper.set_model_props(made, dict(metadata or {}))
    return made


def save_graph(model: onnx.ModelProto, path: Path) -> list[str]:
    """Write a graph, large weights and banks beside it, and have it checked in full.

    Returns
    -------
    list of str
        The names of the files written, `path`'s first. What `model` held of large arrays may now be in the file alone.
    """
    onnx = _onnx()
    large = sum(len(array.raw_data) for array in model.graph.initializer) > EXTERNAL_BYTES
    data = path.name + EXTERNAL_SUFFIX
    onnx.save_model(model, path, save_as_external_data=large, location=data if large else None)
    onnx.checker.check_model(str(path), full_check=True)
    names = [path.name, data] if large else [path.name]
    for name in names:
        usual_mode(path.with_name(name))
    return names


def check_graph(path: Path, size: int, classes: int, rows: int | None, data: Collection[str]) -> None:
    """Raise `InputError` unless a file is a graph of `occluded_graph`'s form whose data lie where they should.

    Read before a native library opens it: one that is cut off, or foreign, may not be refused there as politely.

    Parameters
    ----------
    size, classes
        S and C.
    rows
        K + 1 of the bank inside; None where it is an input.
    data
        Names of the files beside it that it may read.
    """
    onnx = _onnx()
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
        raise InputError(f"{path}: takes and gives {found}, not {wanted}; export again")


def ports(size: int, classes: int, rows: int | None) -> dict[str, tuple[str, list[int | None]]]:
    """Type and shape of what the graph takes and gives, and of the bank; None is any size. Arguments as above."""
    return {
        "images": ("UINT8", [None, size, size, 3]),
        "image_index": ("INT64", [None]),
        "occluder_index": ("INT64", [None]),
        BANK: ("FLOAT", [rows, size, size, 3]),
        LOGITS: ("FLOAT", [None, classes]),
    }


def _check_places(model: Any, path: Path, data: Collection[str]) -> None:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for array in (*model.graph.initializer, *_arrays(nodes)):
        for entry in array.external_data:
            if entry.key == "location" and entry.value not in data:
                raise InputError(f"{path}: keeps data at {entry.value}, which is none of its own files; export again")


def _arrays(nodes: Iterable[Any]) -> Iterator[Any]:
    """Arrays that nodes hold as attributes, those of graphs inside them too."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from (*graph.initializer, *_arrays(graph.node))


def _described(value: Any) -> tuple[str, list[int | None]]:
    kind = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return _onnx().TensorProto.DataType.Name(kind.elem_type), sizes
