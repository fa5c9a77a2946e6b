"""The occluded classifier as one ONNX graph, which holds normalisation, occlusion and the frozen network.

    images uint8 [B, S, S, 3], image_index int64 [P], occluder_index int64 [P]  →  logits float32 [P, C]

`bank`, float32 [K + 1, S, S, 3] with row 0 zeros for the clean picture, is embedded or a fourth input; B, P and K are
dynamic. Occlusion and logits are float32; the network in between has the dtype of its precision, so that the precision
is a property of the graph and not of the engine that runs it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .classifier import DTYPES, INT8, FrozenClassifier
from .errors import InputError
from .files import usual_mode
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

Gather = Literal["uint8", "float32"]
GATHERS: tuple[Gather, ...] = get_args(Gather)

# bfloat16 convolutions are in the standard since 22.
OPSETS: Mapping[str, int] = {"fp32": 20, "fp16": 20, "bf16": 22, INT8: 20}
INPUTS = ("images", "image_index", "occluder_index")
BANK, LOGITS = "bank", "logits"
NETWORK_INPUT, NETWORK_OUTPUT = "pictures", "logits"

EXTERNAL_BYTES = 512 << 20
"""From this size on weights and bank lie beside the graph: a protobuf file must stay below 2 GiB."""
EXTERNAL_SUFFIX = ".data"

GRAPH_VERSION = 3
"""Raised when another graph is made of the same classifier, here or by a rewrite: cached ones are not used any more."""

_PREFIX = "network/"


def import_onnx() -> Any:
    """Import onnx on use: it takes a while, and most commands do without."""
    import onnx
    import onnx.compose
    import onnx.helper
    import onnx.numpy_helper

    return onnx


def bare_network(classifier: FrozenClassifier, precision: str) -> onnx.ModelProto:
    """Return the network alone: `pictures`, normalised [P, 3, S, S] → `logits` [P, C], both in the precision's dtype.

    Raises
    ------
    InputError
        The network cannot be exported; the message has the first line of the reason. Or int8 of a classifier that has
        none.
    """
    if precision == INT8:
        copied = import_onnx().ModelProto()
        copied.CopyFrom(classifier.int8_network().graph)
        return copied
    size = classifier.preprocessing.input_size
    # In channels-last memory global average pooling is exported as arithmetic on shapes, which GPU runtimes refuse.
    network = classifier.network_as(precision).to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, 3, size, size, dtype=DTYPES[precision])
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
            "for any number of pictures; the engine torch runs it without an export"
        ) from error
    assert program is not None
    return program.model_proto


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost cause: the exporter wraps it in a banner in colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints its steps and warns about its internals; errors are raised."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def with_clean_row(occluders: Tensor) -> Tensor:
    """Put a row of zeros before the occluders: float32 [K, S, S, 3] → [K + 1, S, S, 3], the graph's `bank`."""
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
    """Return the occluded classifier as one graph.

    Parameters
    ----------
    classifier, precision
        The network, and the type that it runs in.
    bank
        float32 [K, S, S, 3] in pixel units, to be embedded behind a row of zeros; None makes `bank` an input.
    network
        What `bare_network` returned for this classifier and precision; made here if None.
    gather
        Type in which pictures are repeated for their pairs: bytes, which take a quarter of the memory, or float32 for
        engines that have no gather of bytes.
    metadata
        Written into the model.

    Raises
    ------
    InputError
        The network cannot be exported; see `bare_network`.
    """
    onnx = import_onnx()
    helper = onnx.helper
    network = bare_network(classifier, precision) if network is None else network
    model = onnx.compose.add_prefix(network, _PREFIX)
    graph, size = model.graph, classifier.preprocessing.input_size
    (source,), (result,) = graph.input, graph.output
    constants = _constants(classifier.preprocessing, bank)
    inputs, outputs = _ports(size, classifier.num_classes, bank is None)
    joined = helper.make_graph(
        [
            *_occlusion(gather, source),
            *graph.node,
            # Every engine removes a cast to the same dtype; the cast keeps the name of the output free.
            helper.make_node("Cast", [result.name], [LOGITS], to=onnx.TensorProto.FLOAT),
        ],
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


def _constants(preprocessing: Preprocessing, bank: Tensor | None) -> dict[str, NDArray[Any]]:
    """Return the arrays that `_occlusion` reads by name; `scale` and `shift` are those of a line, [S · 3]."""
    size = preprocessing.input_size
    constants = {
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
        "scale": np.tile(np.array(preprocessing.scale, np.float32), size),
        "shift": np.tile(np.array(preprocessing.shift, np.float32), size),
        "lines": np.array([0, size, size * 3], np.int64),
        "pixels": np.array([0, size, size, 3], np.int64),
    }
    return constants if bank is None else {**constants, BANK: with_clean_row(bank).numpy()}


def _occlusion(gather: Gather, network_input: Any) -> list[onnx.NodeProto]:
    """Return the nodes from images, pair list and bank to the network's input, NCHW in its type.

    Pictures are occluded line by line, [P, S, S · 3]: with three channels innermost OpenVINO's loop over them would be
    three long.
    """
    onnx = import_onnx()
    node, float32 = onnx.helper.make_node, onnx.TensorProto.FLOAT
    pick = (
        [node("Gather", ["images", "image_index"], ["bytes"]), node("Cast", ["bytes"], ["picked"], to=float32)]
        if gather == "uint8"
        else [node("Cast", ["images"], ["floats"], to=float32), node("Gather", ["floats", "image_index"], ["picked"])]
    )
    occlude = [
        node("Gather", [BANK, "occluder_index"], ["added"]),
        node("Reshape", ["picked", "lines"], ["x"]),
        node("Reshape", ["added", "lines"], ["d"]),
        node("Add", ["x", "d"], ["sum"]),
        node("Clip", ["sum", "low", "high"], ["occluded"]),
        node("Mul", ["occluded", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["normalised"]),
    ]
    kind, last = network_input.type.tensor_type.elem_type, "normalised"
    if kind != float32:
        occlude.append(node("Cast", [last], ["halved"], to=kind))
        last = "halved"
    arrange = [
        node("Reshape", [last, "pixels"], ["channels_last"]),
        node("Transpose", ["channels_last"], [network_input.name], perm=[0, 3, 1, 2]),
    ]
    return [*pick, *occlude, *arrange]


def _ports(size: int, classes: int, with_bank: bool) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the graph's inputs and outputs."""
    onnx, names = import_onnx(), {"images": "B", BANK: "rows"}
    infos = {
        port: onnx.helper.make_tensor_value_info(
            port, onnx.TensorProto.DataType.Value(kind), [names.get(port, "P") if dim is None else dim for dim in shape]
        )
        for port, (kind, shape) in ports(size, classes, None).items()
    }
    return [infos[port] for port in (*INPUTS, *((BANK,) if with_bank else ()))], [infos[LOGITS]]


def save_graph(model: onnx.ModelProto, path: Path) -> list[str]:
    """Write a graph and check it in full; large weights and banks go into a file beside it.

    Returns
    -------
    list of str
        Names of the files written, that of `path` first. Large arrays of `model` may have moved into the file.
    """
    onnx = import_onnx()
    large = sum(len(array.raw_data) for array in model.graph.initializer) > EXTERNAL_BYTES
    data = path.name + EXTERNAL_SUFFIX
    onnx.save_model(model, path, save_as_external_data=large, location=data if large else None)
    onnx.checker.check_model(str(path), full_check=True)
    names = [path.name, data] if large else [path.name]
    for name in names:
        usual_mode(path.with_name(name))
    return names


def read_bank(path: Path) -> NDArray[np.float32]:
    """Return the bank inside a graph's file that `check_graph` has found to hold one, and load nothing else of it.

    float32 [K + 1, S, S, 3], the first row zeros.
    """
    onnx = import_onnx()
    graph = onnx.load(path, load_external_data=False).graph
    bank = next(array for array in graph.initializer if array.name == BANK)
    return onnx.numpy_helper.to_array(bank, str(path.parent))


def ports(size: int, classes: int, rows: int | None) -> dict[str, tuple[str, list[int | None]]]:
    """Return type and shape of the graph's inputs, output and bank; None is any size.

    `size` is S, `classes` is C, `rows` is K + 1 of the bank inside or None where it is an input.
    """
    return {
        "images": ("UINT8", [None, size, size, 3]),
        "image_index": ("INT64", [None]),
        "occluder_index": ("INT64", [None]),
        BANK: ("FLOAT", [rows, size, size, 3]),
        LOGITS: ("FLOAT", [None, classes]),
    }
