"""An ONNX graph compiled to a TensorRT engine file, a plan.

`tensorrt`, for data-centre GPUs, builds on the GPU that the plan is for. `tensorrt_rtx`, for GeForce and RTX, builds
anywhere, for the compute capabilities asked for. Networks are strongly typed: a plan has the types of its graph.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..classifier import INT8
from ..errors import InputError
from ..files import ScratchFolder, atomic_path
from ..onnx_graph import BANK, INPUTS, NETWORK_INPUT, bare_network, save_graph
from ..quantised_graph import signed
from .library import (
    RTX,
    Log,
    capability_here,
    choose_targets,
    one_line,
    rtx_targets,
    tensorrt_library,
    tensorrt_log,
)

if TYPE_CHECKING:
    import onnx

    from ..classifier import FrozenClassifier

Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]
"""Smallest, best and largest shape of every network input."""

PLAN_VERSION = 1
"""Raised when this file makes another plan of the same graph, so that cached ones are not used any more."""

# The products of an int8 network are between conversions, which are layers of their own: they are parsed as float32.
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", INT8: "FLOAT"}
_ARITHMETIC = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
# From this number of elements on a tensor's offsets overflow inside kernels, silently (NVIDIA/TensorRT#4123).
_TOO_MANY = 2**31
# Bytes of scratch that a plan may use, activations among them; only what is used is allocated.
_WORKSPACE = 32 << 30


@dataclass(frozen=True)
class PlanReport:
    """A plan that was built.

    Attributes
    ----------
    library, library_version
        `tensorrt` or `tensorrt_rtx`; the plan runs on no other version.
    compute_capabilities
        Those of the GPUs that it is for, as `8.9`.
    layer_types
        Number of layer outputs of each type (`HALF`, `FLOAT`, `INT64`, …), as the parser reports them.
    """

    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    layer_types: dict[str, int]


# ---- profiles


def self_contained_profile(size: int, batch_size: int, rows: tuple[int, int] | None) -> Profile:
    """Return the profile of an `occluded_graph`: B and P from 1 to `batch_size`, best at `batch_size`.

    Parameters
    ----------
    size
        Side of the input in pixels.
    batch_size
        Largest number of pairs, and of pictures.
    rows
        Smallest, which is also the best, and largest number of rows of `bank` with the clean one; None where the bank
        is embedded.
    """
    picture = (size, size, 3)
    images, first, second = INPUTS
    profile: dict[str, tuple[Shape, Shape, Shape]] = {
        images: ((1, *picture), (batch_size, *picture), (batch_size, *picture)),
        first: ((1,), (batch_size,), (batch_size,)),
        second: ((1,), (batch_size,), (batch_size,)),
    }
    if rows is not None:
        fewest, most = rows
        profile[BANK] = ((fewest, *picture), (fewest, *picture), (most, *picture))
    return profile


def bare_graph(
    classifier: FrozenClassifier, precision: str, *, network: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """Return a `bare_network` that takes `pictures` as [P, S, S, 3], the memory order that `occlude` writes.

    TensorRT reads an input's memory in the order of its dimensions, whatever a tensor's strides are. `network` is what
    `bare_network` returned, and is changed; made here if None.
    """
    model = bare_network(classifier, precision) if network is None else network
    import onnx

    graph, inner = model.graph, f"{NETWORK_INPUT}_channels_first"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == NETWORK_INPUT:
                node.input[place] = inner
    transpose = onnx.helper.make_node("Transpose", [NETWORK_INPUT], [inner], perm=[0, 3, 1, 2])
    graph.node.insert(0, transpose)
    (source,), size = graph.input, classifier.preprocessing.input_size
    kind = source.type.tensor_type.elem_type
    source.CopyFrom(onnx.helper.make_tensor_value_info(NETWORK_INPUT, kind, ["P", size, size, 3]))
    return model


def bare_profile(size: int, pairs: int) -> Profile:
    """Return the profile of a `bare_graph` that always takes `pairs` pairs."""
    shape = (pairs, size, size, 3)
    return {NETWORK_INPUT: (shape, shape, shape)}


# ---- building


def tensorrt_from_onnx(
    source: Path,
    target: Path,
    precision: str,
    profile: Profile,
    *,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
) -> PlanReport:
    """Compile an ONNX file to the file `target`, after checking inputs, types and sizes of the parsed network.

    Parameters
    ----------
    precision
        The precision of the network in the graph: `fp32` (never TF32), `fp16`, `bf16` or `int8`.
    profile
        Sizes to build for.
    compute_capabilities
        See `choose_targets`.
    timing_cache
        A file in which `tensorrt` remembers how fast kernels were on this GPU; TensorRT for RTX measures none.

    Raises
    ------
    InputError
        A graph that TensorRT does not take, with its reason; a graph of another precision or with other inputs; a
        profile that lets a tensor grow to 2³¹ elements, with the number of pairs that fits; see also `choose_targets`.
    EngineUnavailable
        No TensorRT is installed; see also `choose_targets`.
    """
    trt, library, version = tensorrt_library()
    targets = choose_targets(trt, library, compute_capabilities, capability_here())
    log = tensorrt_log(trt)
    builder = trt.Builder(log.native)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.native)  # owns the weights: it must outlive the build
    if precision == INT8:
        with ScratchFolder() as scratch:
            _parse(parser, _signed_copy(source, Path(scratch)), log)
    else:
        _parse(parser, source, log)
    _check_inputs(network, profile, source)
    types = _checked_types(network, precision, source)
    _check_sizes(network, profile, source)
    config = _config(trt, builder, profile, log)
    if library == RTX:
        _aim(config, rtx_targets(trt), targets, log)
    timing = None if library == RTX or timing_cache is None else _timing(config, timing_cache, log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"{source.name}: TensorRT cannot build it for {', '.join(targets)} ({log.taken()})")
    with atomic_path(target) as partial:
        partial.write_bytes(memoryview(plan))
    if timing is not None and timing_cache is not None:
        with atomic_path(timing_cache) as partial:
            partial.write_bytes(memoryview(timing.serialize()))
    return PlanReport(library, version, targets, types)


def _signed_copy(source: Path, folder: Path) -> Path:
    """Return a file of the graph whose 8-bit numbers all are signed."""
    import onnx

    graph = onnx.load(source)
    signed(graph)
    save_graph(graph, folder / source.name)
    return folder / source.name


def _parse(parser: Any, source: Path, log: Log) -> None:
    log.taken()  # drop the errors of an earlier call
    if parser.parse_from_file(str(source)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = "; ".join(f"{one_line(e.desc())}{f' ({e.node_operator()})' if e.node_operator() else ''}" for e in errors)
    # The gather of bytes is part of the exported graph, and can be avoided.
    hint = "; gather pictures as float32 for it" if "UINT8" in said else ""
    raise InputError(f"{source.name}: TensorRT does not take it ({said or log.taken()}){hint}")


def _inputs(network: Any) -> dict[str, Any]:
    return {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}


def _check_inputs(network: Any, profile: Profile, source: Path) -> None:
    inputs = {name: tuple(tensor.shape) for name, tensor in _inputs(network).items()}
    if set(inputs) != set(profile):
        raise InputError(f"{source.name}: takes {', '.join(inputs)}, and the profile names {', '.join(profile)}")
    for name, shapes in profile.items():
        fixed = [size != -1 for size in inputs[name]]
        for shape in shapes:
            if len(shape) != len(fixed) or any(
                f and a != b for f, a, b in zip(fixed, shape, inputs[name], strict=True)
            ):
                raise InputError(f"{source.name}: {name} is {list(inputs[name])}, and the profile has {list(shape)}")
        if not all(1 <= low <= best <= high for low, best, high in zip(*shapes, strict=True)):
            raise InputError(f"{source.name}: {name}: the profile's {', '.join(map(str, shapes))} are not in order")


def _outputs(network: Any) -> list[tuple[Any, Any]]:
    """Return every layer with each of its outputs."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [(layer, layer.get_output(j)) for layer in layers for j in range(layer.num_outputs)]


def _checked_types(network: Any, precision: str, source: Path) -> dict[str, int]:
    """Return the number of outputs of each type; raise `InputError` unless the arithmetic has the precision's."""
    outputs = [(layer.type.name, tensor.dtype.name) for layer, tensor in _outputs(network)]
    found = Counter(dtype for kind, dtype in outputs if kind in _ARITHMETIC)
    if set(found) != {_TYPES[precision]}:
        listed = ", ".join(f"{count} {dtype}" for dtype, count in found.items()) or "none"
        raise InputError(
            f"--precision {precision}: {source.name} should have every convolution and product in "
            f"{_TYPES[precision]}, and TensorRT finds {listed}; export it again at that precision"
        )
    types = dict(Counter(dtype for _, dtype in outputs))
    if (precision == INT8) != (types.get("INT8", 0) > 0):
        raise InputError(
            f"--precision {precision}: {source.name} has {types.get('INT8', 0)} conversions to int8; export it again "
            "at that precision"
        )
    return types


def _check_sizes(network: Any, profile: Profile, source: Path) -> None:
    """Raise unless every tensor stays below 2³¹ elements at the profile's largest shapes.

    With its inputs at those shapes the network reports how large its tensors are. Inputs that a profile fixes stay
    fixed: what follows from their shapes is then computed while building, and not in every pass.
    """
    inputs = _inputs(network)
    dynamic = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    for name, tensor in inputs.items():
        tensor.shape = profile[name][2]
    shapes = [tuple(tensor.shape) for tensor in inputs.values()] + [tuple(t.shape) for _, t in _outputs(network)]
    for name, (low, _, high) in profile.items():
        if low != high:
            inputs[name].shape = dynamic[name]
    pairs = max(largest[0] for name, (_, _, largest) in profile.items() if name != BANK)
    grown = [shape for shape in shapes if math.prod(shape) >= _TOO_MANY]
    if not grown:
        return
    fits = min((_TOO_MANY - 1) // math.prod(shape[1:]) for shape in grown)
    largest = max(grown, key=math.prod)
    if any(shape[0] != pairs for shape in grown) or fits == 0:
        raise InputError(
            f"{source.name}: a tensor {list(largest)} has 2³¹ elements or more; use a smaller --input-size"
        )
    raise InputError(
        f"--batch-size {pairs}: a tensor {list(largest)} of {source.name} has 2³¹ elements or more, which TensorRT "
        f"cannot address; use --batch-size {fits} or less"
    )


def _config(trt: Any, builder: Any, profile: Profile, log: Log) -> Any:
    config, shapes = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means float32
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _workspace())
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets an inspector report the types that run
    for name, (low, best, high) in profile.items():
        shapes.set_shape(name, low, best, high)
    if config.add_optimization_profile(shapes) < 0:
        raise InputError(f"TensorRT does not take the profile {dict(profile)} ({log.taken()})")
    return config


def _workspace() -> int:
    """Return bytes of workspace: the memory of this GPU; without one, a large GPU's."""
    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else _WORKSPACE


def _aim(config: Any, supported: Mapping[str, Any], targets: Sequence[str], log: Log) -> None:
    config.num_compute_capabilities = len(targets)
    for place, target in enumerate(targets):
        log.must(config.set_compute_capability(supported[target], place), f"set_compute_capability {target}")


def _timing(config: Any, path: Path, log: Log) -> Any:
    """Set and return the remembered timings; empty ones where none fit this GPU and version."""
    create: Callable[[bytes], Any] = config.create_timing_cache
    timing = create(path.read_bytes() if path.is_file() else b"")
    if timing is not None and config.set_timing_cache(timing, False):
        return timing
    timing = create(b"")
    log.must(timing is not None and config.set_timing_cache(timing, False), "set_timing_cache")
    return timing
