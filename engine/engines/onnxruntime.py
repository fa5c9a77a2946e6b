"""ONNX Runtime: the occluded classifier as one graph, through its CPU, CUDA or TensorRT provider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...export.classifier import DTYPES, INT8
from ...export.errors import EngineUnavailable, InputError, in_short, lacks_gpu_memory
from ...export.files import ScratchFolder
from ...export.onnx_graph import (
    BANK,
    LOGITS,
    NETWORK_INPUT,
    NETWORK_OUTPUT,
    Gather,
    with_clean_row,
)
from ...export.optional import optional
from ...export.subject import Subject
from ..devices import checked_impl, device_name, resolve_device
from .base import Engine
from .graphs import Graph, bare_file, occluded_file

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# Its CPU provider has no half-precision convolutions, its CUDA provider none of int8: they would put casts and
# conversions around float32 ones and call that fp16 or int8.
_PRECISIONS = {"cpu": ("fp32", INT8), "cuda": ("fp32", "fp16"), "tensorrt": ("fp32", "fp16")}


def _onnxruntime() -> Any:
    return optional("onnxruntime", "--engine onnxruntime", "onnx")


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """Options of the onnxruntime engine."""

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = field(
        default="auto", metadata={"help": "execution provider: auto (CUDA where there is a GPU), cpu, cuda, tensorrt"}
    )
    literal: bool = field(
        default=False,
        metadata={"help": "run the graph node by node as it is written, fusing nothing: a slow reference"},
    )


class OnnxRuntimeEngine(Engine):
    """In graph: occlusion and network in one ONNX graph; bank, pictures and logits are bound without a copy."""

    name: ClassVar[str] = "onnxruntime"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime-gpu")
    rank: ClassVar = {"cpu": 2, "cuda": 3}
    Options: ClassVar[type[OnnxRuntimeOptions]] = OnnxRuntimeOptions
    options: OnnxRuntimeOptions

    def __init__(
        self,
        subject: Subject,
        precision: str,
        device: str = "auto",
        options: OnnxRuntimeOptions | None = None,
        pairs: int | None = None,
    ) -> None:
        provider = "auto" if options is None else options.provider
        self._provider, self.torch_device = _resolve(provider, device)
        super().__init__(subject, precision, device, options, pairs)
        if precision not in _PRECISIONS[self._provider]:
            listed = ", ".join(_PRECISIONS[self._provider])
            raise InputError(f"--precision {precision}: engine onnxruntime has {listed} through {self._provider}")
        self.device = device_name(self.torch_device)
        self.impl, _ = checked_impl("auto", self.torch_device)
        self.variant = self._provider
        self.how = f"provider {self._provider}"

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`."""
        return _PRECISIONS[_resolve("auto", device)[0]]

    @property
    def runs_ahead(self) -> bool:
        """See `Engine.runs_ahead`: ONNX Runtime has a stream of its own, and is waited for in every pass."""
        return False

    def open(self) -> None:
        """Load the graph and try it; a provider that does not start is an error, never replaced by another one."""
        self._bank: Any = None
        self._bare: dict[str, Any] = {}
        self._scratch = ScratchFolder()
        try:
            self._session = self._open_session(self._graph(Path(self._scratch.name)))
            if self._provider != "tensorrt":  # which would build an engine for passes of one pair
                self._try_one_pair()
        except BaseException:
            self._scratch.cleanup()
            raise

    def _graph(self, scratch: Path) -> Graph:
        gather: Gather = "float32" if self._provider == "tensorrt" else "uint8"
        return occluded_file(self.subject, self.precision, gather, self._sizes(), scratch)

    def _open_session(self, graph: Graph) -> Any:
        ort, path = _onnxruntime(), graph.path
        given = provider_options(self._provider, self.precision, self.torch_device, graph)
        options = ort.SessionOptions()
        # Spinning threads would take the cores from decoding, scoring and PyTorch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what is an error is raised
        if self.options.literal:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Without these a GPU provider that fails only warns, and the CPU does the work.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if self._provider == "cpu" else "1")
        try:
            session = ort.InferenceSession(path, options, providers=[(PROVIDERS[self._provider], given)])
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.subject.format is not None and self._provider == "cpu":
                raise InputError(f"{path}: ONNX Runtime cannot load it ({reason}); export again") from error
            raise EngineUnavailable(f"--engine onnxruntime: {self._provider} does not run here ({reason})") from error
        if session.get_providers()[0] != PROVIDERS[self._provider]:
            raise EngineUnavailable(
                f"--engine onnxruntime: expected {PROVIDERS[self._provider]}, got {session.get_providers()}; check "
                f"that the CUDA and cuDNN (and TensorRT 10) for onnxruntime {ort.__version__} are installed"
            )
        session.disable_fallback()
        return session

    def _load_bank(self, occluders: Tensor) -> None:
        self._bank = with_clean_row(occluders).to(self.torch_device)  # bound memory must stay alive

    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        given = {"images": images, "image_index": image_index, "occluder_index": occluder_index}
        if self.takes_bank:
            given[BANK] = self._bank
        tensors = {name: tensor.contiguous() for name, tensor in given.items()}
        logits = torch.empty(len(image_index), self.subject.num_classes, device=self.torch_device)
        if len(logits) == 0:  # not every kernel of every provider accepts empty input
            return logits
        binding, place = self._session.io_binding(), (self.torch_device.type, self.torch_device.index or 0)
        for name, tensor in tensors.items():
            binding.bind_input(name, *place, _numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(LOGITS, *place, _numpy_type(logits), tuple(logits.shape), logits.data_ptr())
        if self.torch_device.type == "cuda":  # it runs on its own stream
            torch.cuda.current_stream(self.torch_device).synchronize()
        self._run(self._session, binding)
        return logits

    def _run(self, session: Any, binding: Any) -> None:
        try:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # its own kinds of error have no other base
            if lacks_gpu_memory(error):
                raise torch.OutOfMemoryError(in_short(error)) from error
            raise InputError(
                f"{self.subject.name}: fails in ONNX Runtime ({in_short(error)}); use another --engine, or export again"
            ) from error

    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """See `Engine.bare`."""
        size, dtype = self._classifier().preprocessing.input_size, DTYPES[self.precision]
        shapes = {"NCHW": (3, size, size), "NHWC": (size, size, 3)}
        return {name: self._bare_call(name, torch.randn(batch, *shape).to(dtype)) for name, shape in shapes.items()}

    def _bare_call(self, layout: str, noise: Tensor) -> Callable[[], object]:
        if layout not in self._bare:
            graph = bare_file(self._classifier(), self.precision, layout, Path(self._scratch.name))
            self._bare[layout] = self._open_session(graph)
        session, pictures = self._bare[layout], noise.to(self.torch_device)
        logits = torch.empty(len(noise), self.subject.num_classes, device=self.torch_device, dtype=noise.dtype)
        binding, place = session.io_binding(), (self.torch_device.type, self.torch_device.index or 0)
        kind = _ONNX_TYPES[noise.dtype]  # ONNX's own numbers: numpy has no bfloat16
        binding.bind_input(NETWORK_INPUT, *place, kind, tuple(pictures.shape), pictures.data_ptr())
        binding.bind_output(NETWORK_OUTPUT, *place, kind, tuple(logits.shape), logits.data_ptr())

        def run() -> Tensor:
            if self.torch_device.type == "cuda":  # as in `_infer`: its stream is not PyTorch's
                torch.cuda.current_stream(self.torch_device).synchronize()
            self._run(session, binding)
            return logits if len(pictures) else pictures  # bound memory must stay alive

        return run

    def close(self) -> None:
        """Drop the session and the graph file."""
        del self._session, self._bare
        self._bank = None
        self._scratch.cleanup()


# TensorProto's FLOAT, FLOAT16, BFLOAT16.
_ONNX_TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}


def _numpy_type(tensor: Tensor) -> Any:
    import numpy as np

    return {torch.uint8: np.uint8, torch.int64: np.int64, torch.float32: np.float32}[tensor.dtype]


def provider_options(provider: str, precision: str, device: torch.device, graph: Graph) -> dict[str, Any]:
    """Return what an execution provider is given for a graph."""
    if provider == "cpu":
        return {}
    options: dict[str, Any] = {"device_id": device.index or 0}
    if provider == "cuda":
        return options | {"use_tf32": int(precision != "fp32"), "prefer_nhwc": 1}
    # The provider's own fp16 switch stays off: the graph has its types, and the switch would drop strong typing.
    if graph.compiled is None:
        return options
    # It names what it keeps by the graph's file name and structure, not by its weights: each graph has a folder.
    kept = str(graph.compiled / "onnxruntime-tensorrt")
    cached = {"trt_engine_cache_enable": 1, "trt_engine_cache_path": kept}
    return options | cached | {"trt_timing_cache_enable": 1, "trt_timing_cache_path": kept}


def _resolve(provider: str, device: str) -> tuple[str, torch.device]:
    """Resolve provider and device: `auto` is CUDA where there is a GPU; CUDA and TensorRT need one."""
    available = _onnxruntime().get_available_providers()
    if provider == "cpu":
        if device not in ("auto", "cpu"):
            raise InputError(f"--provider cpu: cannot run on --device {device}")
        return "cpu", torch.device("cpu")
    resolved = resolve_device("cuda" if provider != "auto" and device == "auto" else device)
    if resolved.type == "cpu" and provider != "auto":
        raise InputError(f"--provider {provider}: cannot run on --device cpu")
    chosen = provider if provider != "auto" else resolved.type
    if PROVIDERS[chosen] not in available:
        raise EngineUnavailable(
            f"--engine onnxruntime: the installed package has no {PROVIDERS[chosen]}; pip uninstall onnxruntime, then "
            "pip install gfo[onnx]"
        )
    return chosen, resolved
