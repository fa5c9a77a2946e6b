"""OpenVINO on the CPU: the occluded classifier as one graph.

Precision is that of the graph: a bf16 graph runs its network in bfloat16 and its occlusion and logits in float32.
OpenVINO's own switch (`INFERENCE_PRECISION_HINT` bf16) would round pictures and occluders, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...export.classifier import DTYPES, INT8
from ...export.errors import InputError
from ...export.files import ScratchFolder
from ...export.formats.openvino import openvino_reason
from ...export.onnx_graph import BANK, LOGITS, ports, with_clean_row
from ...export.optional import optional
from ..machine import best_seconds, remember, remembered, worker_count
from .base import Engine
from .graphs import Graph, bare_file, occluded_file
from .kept_folder import private_copy

Hint = Literal["latency", "throughput"]
HINTS: tuple[Hint, ...] = get_args(Hint)
_TYPES = {"UINT8": "u8", "INT64": "i64", "FLOAT": "f32"}
_CAPABILITIES = {"FP32": "fp32", "BF16": "bf16", "FP16": "fp16", "INT8": INT8}
# Pairs in a call that measures a hint.
_TRIAL_PAIRS = 16


def _openvino() -> Any:
    return optional("openvino", "--engine openvino", "openvino")


@dataclass(frozen=True)
class OpenVinoOptions:
    """Options of the openvino engine.

    Attributes
    ----------
    hint
        How the work spreads over the cores: `latency` puts all of them to one list of pairs, `throughput` splits the
        list into one piece per stream; `auto` measures both once and remembers the faster one.
    streams
        Number of streams under `throughput`; None leaves it to OpenVINO.
    """

    hint: Literal["auto", "latency", "throughput"] = field(
        default="auto", metadata={"help": "spreading over cores: auto (measured once), latency, throughput"}
    )
    streams: int | None = field(default=None, metadata={"help": "pieces that run side by side; implies throughput"})

    def __post_init__(self) -> None:
        if self.streams is not None and (self.streams < 1 or self.hint == "latency"):
            raise ValueError("streams ≥ 1, with hint auto or throughput")


class OpenVinoEngine(Engine):
    """In graph, on the CPU; see `OpenVinoOptions`."""

    name: ClassVar[str] = "openvino"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    formats: ClassVar[tuple[str, ...]] = ("onnx", "openvino")
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    rank: ClassVar = {"cpu": 1}
    Options: ClassVar[type[OpenVinoOptions]] = OpenVinoOptions
    options: OpenVinoOptions
    impl = "reference"
    device = "cpu"

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`: the types that OpenVINO reports for this CPU."""
        core = _openvino().Core()
        if device not in ("auto", "cpu"):
            raise InputError(f"--device {device}: engine openvino runs on the CPU; use auto or cpu")
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(name for capability, name in _CAPABILITIES.items() if capability in capable)

    def open(self) -> None:
        """Compile the graph, or load what an earlier run compiled, and try it."""
        self._core = _openvino().Core()
        self._bank: Any = None
        self._bare: dict[str, list[Any]] = {}
        self._scratch = ScratchFolder()
        try:
            graph = occluded_file(self.subject, self.precision, "uint8", self._sizes(), Path(self._scratch.name))
            self._compile(graph)
            self._try_one_pair()
        except BaseException:
            self._scratch.cleanup()
            raise

    def _compile(self, graph: Graph) -> None:
        model = self._read(graph.path)
        if graph.compiled is None:
            self._choose(model, None)
            return
        version = _openvino().__version__.replace("/", "-")
        # OpenVINO reads and writes its cache unchecked and unlocked, and workers share ours.
        with private_copy(graph.compiled / f"openvino-{version}", Path(self._scratch.name) / "compiled") as kept:
            self._choose(model, kept)

    def _choose(self, model: Any, kept: Path | None) -> None:
        """Compile for the hint that is requested, remembered or measured."""
        note = None if kept is None else kept / "hint.json"
        hint, why = self._requested_hint(), "requested"
        if hint is None:
            hint, why = remembered(note, _hint_of), "measured before"
        if hint is not None:
            self._requests = self._made(model, hint, kept)
        else:
            trials: dict[Hint, list[Any]] = {name: self._made(model, name, kept) for name in HINTS}
            seconds = self._trials(trials)
            hint = min(seconds, key=seconds.__getitem__)
            self._requests = trials[hint]
            why = ", ".join(f"{name} {_TRIAL_PAIRS / taken:.0f} pairs/s" for name, taken in seconds.items())
            remember(note, {"hint": hint, "cores": worker_count()})
        self._chosen: Hint = hint
        self.how = f"{hint}, {len(self._requests)} streams ({why})"

    def _requested_hint(self) -> Hint | None:
        """Return the hint of the options; None where it is to be measured."""
        if self.options.streams is not None:
            return "throughput"
        return None if self.options.hint == "auto" else self.options.hint

    def _read(self, path: Path) -> Any:
        try:
            model = self._core.read_model(path)
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO cannot load it ({openvino_reason(error)}); export again") from error
        found = {name: _described(port) for port in (*model.inputs, *model.outputs) for name in port.names}
        wanted = {name: (_TYPES[kind], shape) for name, (kind, shape) in ports(*self._sizes()).items()}
        if not self.takes_bank:  # constants have lost their names; the bank is the only one of its size
            constants = [_described(op.output(0)) for op in model.get_ops() if op.get_type_name() == "Constant"]
            found |= {BANK: wanted[BANK]} if wanted[BANK] in constants else {}
        if found != wanted:
            raise InputError(f"{path}: inputs and outputs are {found}, expected {wanted}; export again")
        return model

    def _made(self, model: Any, hint: Hint, kept: Path | None) -> list[Any]:
        """Compile for a hint; return the requests that run side by side."""
        properties: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper(), "INFERENCE_PRECISION_HINT": "f32"}
        if self.options.streams is not None:
            properties["NUM_STREAMS"] = self.options.streams
        if kept is not None:
            properties["CACHE_DIR"] = str(kept)
        try:
            compiled = self._core.compile_model(model, "CPU", properties)
        except RuntimeError as error:
            raise InputError(
                f"{self.subject.name}: OpenVINO cannot compile it ({openvino_reason(error)}); use another --engine, or "
                "export again"
            ) from error
        count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if hint == "throughput" else 1
        return [compiled.create_infer_request() for _ in range(count)]

    def _trials(self, trials: dict[Hint, list[Any]]) -> dict[Hint, float]:
        """Return the seconds of a list of pairs of one black picture under one empty occluder."""
        size = self.subject.preprocessing.input_size
        images = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        index = torch.zeros(_TRIAL_PAIRS, dtype=torch.int64)
        bank = self._shared(torch.zeros(2, size, size, 3)) if self.takes_bank else None

        def run(requests: list[Any]) -> Callable[[], object]:
            return lambda: self._run(requests, bank, images, index, index)

        return best_seconds({name: run(requests) for name, requests in trials.items()}, self.torch_device)

    def _load_bank(self, occluders: Tensor) -> None:
        self._bank = self._shared(with_clean_row(occluders))

    @staticmethod
    def _shared(tensor: Tensor) -> Any:
        """Return a view of the same memory for OpenVINO; it keeps the tensor alive."""
        return _openvino().Tensor(tensor.contiguous().numpy(), shared_memory=True)

    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        if len(image_index) == 0:
            return torch.empty(0, self.subject.num_classes)
        return self._run(self._requests, self._bank, images, image_index, occluder_index)

    def _run(
        self, requests: list[Any], bank: Any, images: Tensor, image_index: Tensor, occluder_index: Tensor
    ) -> Tensor:
        given = {"images": self._shared(images)} | ({} if bank is None else {BANK: bank})
        pieces = list(
            zip(image_index.tensor_split(len(requests)), occluder_index.tensor_split(len(requests)), strict=True)
        )
        running = [(request, piece) for request, piece in zip(requests, pieces, strict=True) if len(piece[0])]
        with self._naming_failure():
            for request, (pictures, occluders) in running:
                request.start_async(
                    {**given, "image_index": self._shared(pictures), "occluder_index": self._shared(occluders)},
                    share_inputs=True,
                )
            parts = []
            for request, _ in running:
                request.wait()
                parts.append(torch.from_numpy(request.get_tensor(LOGITS).data.copy()))
        return torch.cat(parts)

    @contextlib.contextmanager
    def _naming_failure(self) -> Iterator[None]:
        """Turn what OpenVINO raises while it runs into one line."""
        try:
            yield
        except RuntimeError as error:
            raise InputError(
                f"{self.subject.name}: fails in OpenVINO ({openvino_reason(error)}); use another --engine, or "
                "export again"
            ) from error

    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """See `Engine.bare`: at the engine's hint, one piece of the batch per stream."""
        size = self._classifier().preprocessing.input_size
        shapes = {"NCHW": (3, size, size), "NHWC": (size, size, 3)}
        return {layout: self._bare_call(layout, batch, shape) for layout, shape in shapes.items()}

    def _bare_call(self, layout: str, batch: int, shape: tuple[int, ...]) -> Callable[[], object]:
        if layout not in self._bare:
            graph = bare_file(self._classifier(), self.precision, layout, Path(self._scratch.name))
            self._bare[layout] = self._made(self._core.read_model(graph.path), self._chosen, None)
        requests = self._bare[layout]
        pieces = [piece for piece in torch.randn(batch, *shape).tensor_split(len(requests)) if len(piece)]
        inputs = [self._typed(piece.to(DTYPES[self.precision])) for piece in pieces]

        def run() -> None:
            running = list(zip(requests, inputs, strict=False))
            with self._naming_failure():
                for request, given in running:
                    request.start_async([given], share_inputs=True)
                for request, _ in running:
                    request.wait()

        return run

    @staticmethod
    def _typed(tensor: Tensor) -> Any:
        """Convert a tensor of any precision for OpenVINO; NumPy has no bfloat16, so its bits are passed."""
        ov = _openvino()
        if tensor.dtype != torch.bfloat16:
            return ov.Tensor(tensor.contiguous().numpy())
        given = ov.Tensor(ov.Type.bf16, ov.Shape(tensor.shape))
        given.data.view(np.int16)[:] = tensor.contiguous().view(torch.int16).numpy()
        return given

    def close(self) -> None:
        """Drop the compiled graph and the graph file."""
        del self._requests, self._core, self._bare
        self._bank = None
        self._scratch.cleanup()


def _hint_of(facts: Any) -> Hint | None:
    """Return the hint that an earlier run measured as faster; None for another number of cores."""
    return next((hint for hint in HINTS if hint == facts["hint"] and facts["cores"] == worker_count()), None)


def _described(port: Any) -> tuple[str, list[int | None]]:
    return port.get_element_type().get_type_name(), [None if d.is_dynamic else len(d) for d in port.get_partial_shape()]
