"""TensorRT on CUDA: the kernels around a plan of the bare network, or the plan of an artefact as a whole.

In both compositions a pass has a fixed number of pairs and fixed memory, and is one CUDA graph: whatever changes
between passes is copied there first. Plans do not depend on banks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ....export.artefact import Artefact
from ....export.classifier import DTYPES, INT8, FrozenClassifier
from ....export.errors import EngineUnavailable, InputError
from ....export.files import ScratchFolder
from ....export.onnx_graph import NETWORK_INPUT
from ....export.options import NoOptions
from ....export.subject import Subject
from ....export.tensorrt.library import capability_here, check_gpu, tensorrt_library
from ....kernels.score import Score, score
from ...devices import captured, checked_impl, device_name, resolve_device
from ..base import Engine, Listed, OwnBenchmark
from .compositions import Composition, ExportedPlan, FixedPairs, PlanAroundNetwork, Step
from .runtime import Plan, plan_stem, preferred

# NVIDIA's benchmark of each library, which takes a serialized plan.
_TOOLS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}


class TrtEngine(Engine):
    """TensorRT, or TensorRT for RTX, on a CUDA GPU.

    `pairs` is the number of pairs in a pass, 64 if None; an artefact has no more than it was exported for.
    """

    name: ClassVar[str] = "trt"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    formats: ClassVar[tuple[str, ...]] = ("trt",)
    packages: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt-rtx")
    rank: ClassVar = {"cuda": 1}

    def __init__(
        self,
        subject: Subject,
        precision: str,
        device: str = "auto",
        options: NoOptions | None = None,
        pairs: int | None = None,
    ) -> None:
        if pairs is not None and pairs < 1:
            raise InputError(f"--batch-size {pairs}: must be at least 1")
        super().__init__(subject, precision, device, options, pairs)
        self.torch_device = _gpu(device)
        limits = subject.manifest.limits if isinstance(subject, Artefact) else None
        _, self.library, self._version = tensorrt_library(preferred(limits))
        self.variant = f"{self.library} {self._version}"
        with torch.cuda.device(self.torch_device):
            self._capability = str(capability_here())
        self._composition = self._composed(subject, pairs)
        self._size = self.fixed_pairs = self._composition.pairs
        self.impl, _ = checked_impl("auto", self.torch_device)
        self.device = device_name(self.torch_device)

    def _composed(self, subject: Subject, pairs: int | None) -> Composition:
        if isinstance(subject, Artefact):
            return ExportedPlan(subject, self.library, self._version, self._capability, pairs)
        assert isinstance(subject, FrozenClassifier)
        return PlanAroundNetwork(subject, self.precision, pairs)

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`: the types that the GPU has."""
        trt, library, version = tensorrt_library()
        if device == "cpu":
            raise InputError("--device cpu: engine trt runs on CUDA GPUs; use auto or cuda")
        if not torch.cuda.is_available():
            raise EngineUnavailable(
                f"--engine trt: {library} {version} is installed, but PyTorch {torch.__version__} finds no CUDA GPU or "
                "NVIDIA driver here; run it on a machine with one, or use --engine openvino, onnxruntime or torch"
            )
        with torch.cuda.device(_gpu(device)):
            capability = str(capability_here())
        check_gpu(trt, library, capability)
        return ("fp32", "fp16", "bf16", INT8) if int(capability.partition(".")[0]) >= 8 else ("fp32", "fp16", INT8)

    def open(self) -> None:
        """Build the plan, or load what an earlier run built, and allocate the memory of a pass."""
        size = self.subject.preprocessing.input_size
        self._stream = torch.cuda.Stream(self.torch_device)
        with self._on_stream(), ScratchFolder() as scratch:
            self._pairs = FixedPairs(self._size, size, self.torch_device)
            stem = plan_stem(self.library, self._version, self.device, self._capability)
            path, jit, found = self._composition.plan_file(stem, Path(scratch))
            self._plan = Plan(self.library, path, self.torch_device, jit)
        self._plan_file = path  # gone by now, where the network could not be cached
        self._bank: Tensor | None = None
        self._step: Step | None = None
        self.how = f"{self.library} {self._version}, {found}, {self._size} pairs in a pass, kernels {self.impl}"

    def _load_bank(self, occluders: Tensor) -> None:
        rows = self._composition.bank(occluders)
        with self._on_stream():
            if self._bank is not None and self._bank.shape == rows.shape:
                self._bank.copy_(rows)  # where the captured step reads it
                return
            self._bank = rows.to(self.torch_device, copy=True).contiguous()
        self._step = None

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run on the engine's own stream, after the caller's earlier work and before its later work.

        On the default stream TensorRT would wait for the GPU in every pass.
        """
        outside = torch.cuda.current_stream(self.torch_device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        # Allocated before the stream changes, so that its memory belongs to the caller's stream.
        logits = torch.empty(len(image_index), self.subject.num_classes, device=self.torch_device)
        with self._on_stream():
            self._run(images, image_index, occluder_index, logits)
        return logits

    @torch.inference_mode()
    def _run(self, images: Tensor, image_index: Tensor, occluder_index: Tensor, logits: Tensor) -> None:
        """Write the logits of a pair list, on the engine's stream."""
        if self._step is None:
            self._step = self._captured()
        self._pairs.run(self._step, images, image_index, occluder_index, logits)

    def _captured(self) -> Step:
        """Capture a pass as one CUDA graph, after one uncaptured pass that compiles kernels and allocates memory."""
        self._pairs.occluder_index.zero_()
        step = self._composition.step(self._plan, self._pairs, self._bank, self.impl)
        step()
        if self._plan.capturable():  # known after a pass, at the shapes of that pass
            return captured(step, self._stream)
        without = ", no CUDA graph: TensorRT cannot have this plan captured"
        self.how = self.how.removesuffix(without) + without
        return step

    def queue(self, images: Tensor, pairs: Listed) -> Score:
        """See `Engine.queue`: on the same stream as the network."""
        with self._on_stream():
            logits = torch.empty(len(pairs.labels), self.subject.num_classes, device=self.torch_device)
            self._run(images, pairs.image_index, pairs.occluder_index, logits)
            return score(logits, pairs.labels, impl=self.impl, validate=False)

    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """See `Engine.bare`: one pass of the plan, as a CUDA graph where possible; only at the plan's own batch."""
        size = self._classifier().preprocessing.input_size
        if batch != self._size:
            return {}
        with self._on_stream(), torch.inference_mode():
            noise = torch.randn(batch, size, size, 3, device=self.torch_device).to(DTYPES[self.precision])

            def step() -> Tensor:
                return self._plan({NETWORK_INPUT: noise})

            step()
            ready = captured(step, self._stream) if self._plan.capturable() else step

        def run() -> object:
            with self._on_stream():
                return ready()

        return {"NHWC": run}

    def own_benchmark(self) -> OwnBenchmark | None:
        """See `Engine.own_benchmark`: `trtexec`, or its counterpart for RTX."""
        return OwnBenchmark(_TOOLS[self.library], self._plan_file, self._size)

    def layers(self) -> str:
        """Return what TensorRT's inspector reports about the layers that run, as JSON."""
        return self._plan.layers()

    def close(self) -> None:
        """Drop the plan, the bank and the memory of a pass."""
        self._stream.synchronize()
        self._step = self._bank = None
        with torch.cuda.device(self.torch_device):
            self._plan.close()
        del self._plan, self._pairs


def _gpu(device: str) -> torch.device:
    """Return the GPU of that name with its number, as tensors on it have it."""
    return torch.empty(0, device=resolve_device(device)).device
