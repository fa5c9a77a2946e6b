"""A TensorRT plan at work on this GPU: loaded, and bound to PyTorch's memory.

TensorRT reports a failure by the value that a call returns, so every result is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....export.errors import EngineUnavailable, InputError
from ....export.files import atomic_path
from ....export.formats.base import Limits
from ....export.tensorrt.library import LIBRARIES, RTX, tensorrt_library, tensorrt_log
from ....export.tensorrt.plan import PLAN_VERSION
from ..graphs import is_as_noted, note_file

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "UINT8": torch.uint8,
    "INT64": torch.int64,
}


# ---- checks before anything native is loaded


def plan_stem(library: str, version: str, gpu: str, capability: str) -> str:
    """Return the beginning of the names of files that only this library on this GPU can use."""
    return f"{library}-{version}-{re.sub('[^A-Za-z0-9]+', '_', gpu)}-sm{capability}-v{PLAN_VERSION}"


def preferred(limits: Limits | None) -> tuple[str, ...]:
    """Return the libraries in the order in which to look for them: first the one of an artefact's plan."""
    return tuple(sorted(LIBRARIES, key=lambda name: limits is None or name != limits.library))


def check_built_for(folder: Path, limits: Limits | None, library: str, version: str, capability: str) -> Limits:
    """Return the limits of an artefact's plan if it was built for this library and GPU; a plan runs on no other.

    Raises
    ------
    InputError
        The manifest does not say what the plan was built for.
    EngineUnavailable
        The plan was built for another library, version or GPU.
    """
    if limits is None:
        raise InputError(f"{folder}: its manifest does not say what the plan was built for; export again")
    if (limits.library, limits.library_version) != (library, version):
        raise EngineUnavailable(
            f"{folder}: built by {limits.library} {limits.library_version}, and {library} {version} is installed here; "
            f"export again, or pip install {limits.library.replace('_', '-')}=={limits.library_version}"
        )
    if capability not in limits.compute_capabilities:
        raise EngineUnavailable(
            f"{folder}: built for GPUs of compute capability {', '.join(limits.compute_capabilities)}, and this one "
            f"has {capability}; export again here or with --compute-capability {capability}"
        )
    return limits


def pairs_within(folder: Path, limits: Limits, asked: int | None) -> int:
    """Return the number of pairs in a pass: as many as asked for, up to the plan's maximum.

    Each pair brings its own picture, so the plan's maximum of pictures counts too. Raises `InputError` for fewer pairs
    than the plan's minimum.
    """
    fewest = max(limits.pairs[0], limits.pictures[0])
    most = min(limits.pairs[2], limits.pictures[2])
    pairs = most if asked is None else min(asked, most)
    if pairs < fewest:
        raise InputError(f"--batch-size {pairs}: {folder} takes {fewest} to {most} pairs in a pass")
    return pairs


def check_rows(folder: Path, limits: Limits, occluders: int) -> None:
    """Raise `InputError` for a bank with fewer or more occluders than the plan takes."""
    if limits.rows is None:
        raise InputError(f"{folder}: embeds its bank, and takes no other; export with --bank-input")
    fewest, _, most = limits.rows
    if not fewest <= occluders + 1 <= most:  # the clean row is one
        raise InputError(f"{folder}: takes banks of {fewest - 1} to {most - 1} occluders, and this one has {occluders}")


# ---- on the GPU


class Plan:
    """A loaded plan with its one output, on PyTorch's current GPU; for one stream and one thread at a time.

    Parameters
    ----------
    library
        One of `LIBRARIES`.
    device
        The current GPU, with its number.
    jit
        File in which TensorRT for RTX keeps the kernels that it compiles on this machine; None keeps none.

    Raises
    ------
    EngineUnavailable
        The plan does not load here, or does not fit into the memory; with TensorRT's message.
    """

    _runtime: Any
    _engine: Any
    _config: Any
    _context: Any
    _compiled: Any

    def __init__(self, library: str, path: Path, device: torch.device, jit: Path | None = None) -> None:
        self._trt, _, version = tensorrt_library([library])
        self._log = tensorrt_log(self._trt)
        self._log.taken()
        self._runtime = self._trt.Runtime(self._log.native)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineUnavailable(f"{path}: {library} {version} cannot load it ({self._log.taken()}); remove it")
        self._device, self._jit, self._compiled, self._kept = device, jit, None, b""
        self._config = self._rtx_config() if library == RTX else None
        make = self._engine.create_execution_context
        self._context = make() if self._config is None else make(self._config)
        if self._context is None:
            raise EngineUnavailable(
                f"{path.name}: {library} {version} cannot run it here ({self._log.taken()}); a smaller --batch-size "
                "takes less memory"
            )
        self._dtypes = {name: self._dtype(name) for name in map(self._engine.get_tensor_name, self._places())}
        input_mode = self._trt.TensorIOMode.INPUT
        self._inputs = {name for name in self._dtypes if self._engine.get_tensor_mode(name) == input_mode}
        (self._output,) = set(self._dtypes) - self._inputs
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._result: Tensor | None = None

    def _places(self) -> range:
        return range(self._engine.num_io_tensors)

    def _dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self._engine.get_tensor_dtype(name).name]

    def _rtx_config(self) -> Any:
        config = self._engine.create_runtime_config()
        # Otherwise the first passes run other kernels than later ones, and a captured graph keeps the first.
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if self._jit is not None:
            self._compiled = config.create_runtime_cache()
            if is_as_noted(self._jit):
                self._kept = self._jit.read_bytes()
                self._compiled.deserialize(self._kept)  # False: another driver's, the cache starts empty
            self._log.must(config.set_runtime_cache(self._compiled), "set_runtime_cache")
        return config

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Start a pass on PyTorch's current stream; its inputs must stay alive until the stream has reached its end.

        Parameters
        ----------
        inputs
            Contiguous tensors by name: TensorRT reads memory and ignores strides.

        Returns
        -------
        Tensor
            In the same memory each time, as long as the shapes stay the same.

        Raises
        ------
        ValueError
            Names or dtypes differ from the plan's, or memory is not contiguous.
        RuntimeError
            A call of TensorRT failed; the message names it.
        """
        if set(inputs) != self._inputs:
            raise ValueError(f"the plan takes {sorted(self._inputs)}, got {sorted(inputs)}")
        for name, tensor in inputs.items():
            if tensor.dtype != self._dtypes[name] or not tensor.is_contiguous() or tensor.device != self._device:
                raise ValueError(
                    f"{name}: expected contiguous {self._dtypes[name]} on {self._device}, got {tensor.dtype} on "
                    f"{tensor.device} with strides {tensor.stride()}"
                )
        self._shape({name: tuple(tensor.shape) for name, tensor in inputs.items()})
        assert self._result is not None
        for name, tensor in {**inputs, self._output: self._result}.items():
            self._log.must(self._context.set_tensor_address(name, tensor.data_ptr()), f"set_tensor_address {name}")
        self._log.must(self._context.execute_async_v3(self._stream()), "execute_async_v3")
        return self._result

    def _shape(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Set the shapes of the inputs where they changed, and allocate the output."""
        if shapes == self._shapes:
            return
        for name, shape in shapes.items():
            self._log.must(self._context.set_input_shape(name, shape), f"set_input_shape {name} {list(shape)}")
        missing = self._context.infer_shapes()
        self._log.must(not missing, f"infer_shapes, which lacks {missing},")
        shape = tuple(self._context.get_tensor_shape(self._output))
        self._result = torch.empty(shape, dtype=self._dtypes[self._output], device=self._device)
        self._shapes = shapes

    def capturable(self) -> bool:
        """Return whether a pass can be captured as a CUDA graph, at the shapes of the last pass."""
        ask = getattr(self._context, "is_stream_capturable", None)  # only TensorRT for RTX has it
        return ask is None or bool(ask(self._stream()))

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream

    def layers(self) -> str:
        """Return what TensorRT's inspector reports about the layers that run, types included, as JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)

    def close(self) -> None:
        """Keep compiled kernels, and release the memory."""
        if self._compiled is not None and self._jit is not None:
            compiled = self._compiled.serialize()
            if compiled is not None and bytes(memoryview(compiled)) != self._kept:
                with atomic_path(self._jit) as partial:
                    partial.write_bytes(memoryview(compiled))
                note_file(self._jit)
        # In the order in which they hold references to each other.
        self._context = self._config = self._compiled = self._engine = self._runtime = self._result = None
