"""TensorRT on CUDA: the kernels around a plan of the bare network, or an artefact's plan, which has it all inside.

Either way a pass has a fixed number of pairs and fixed memory, and is one CUDA graph: whatever changes between passes
is copied there before. Plans know nothing of banks.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ....export.artefact import Artefact
from ....export.cache import cache_dir
from ....export.classifier import DTYPES, FrozenClassifier
from ....export.errors import EngineUnavailable, InputError
from ....export.manifest import Limits
from ....export.onnx_graph import BANK, INPUTS, NETWORK_INPUT, with_clean_row
from ....export.preprocessing import Preprocessing
from ....export.tensorrt.library import capability_here, check_gpu, tensorrt_library
from ....export.tensorrt.plan import bare_profile, tensorrt_from_onnx
from ....kernels.occlude import occlude
from ....kernels.score import Score
from ...devices import checked_impl, device_name, resolve_device
from ..base import Engine, Subject
from ..graphs import bare_file
from .runtime import Plan, captured, check_built_for, check_rows, pairs_within, plan_stem, preferred

PAIRS = 64

Step = Callable[[], Tensor]
"""The pairs that lie in a `FixedPairs` → logits float32 [P, C]."""


class FixedPairs:
    """Pair lists of any length through a step that always takes P pairs from the same memory.

    Each pair's picture is copied there as bytes, a few microseconds for what the network takes milliseconds for. So
    the step depends neither on how many pictures there are nor on where they lie.

    Attributes
    ----------
    images
        uint8 [P, S, S, 3], the picture of each pair.
    image_index
        int64 [P], 0 … P − 1.
    occluder_index
        int64 [P].
    """

    def __init__(self, pairs: int, size: int, device: torch.device) -> None:
        self.images = torch.zeros(pairs, size, size, 3, dtype=torch.uint8, device=device)
        self.image_index = torch.arange(pairs, device=device)
        self.occluder_index = torch.zeros(pairs, dtype=torch.int64, device=device)

    def run(self, step: Step, images: Tensor, image_index: Tensor, occluder_index: Tensor, logits: Tensor) -> None:
        """Write the logits, float32 [N, C], of a list of N pairs; the last pass is filled up with clean pairs."""
        pairs = len(self.images)
        for start in range(0, len(image_index), pairs):
            pictures, occluders = (index[start : start + pairs] for index in (image_index, occluder_index))
            here = len(pictures)
            torch.index_select(images, 0, pictures, out=self.images[:here])
            self.occluder_index[:here] = occluders
            self.occluder_index[here:] = 0  # an index of an earlier bank may be out of range in this one
            logits[start : start + here] = step()[:here]


def around_network(
    network: Callable[[Tensor], Tensor],
    pairs: FixedPairs,
    bank: Tensor,
    preprocessing: Preprocessing,
    precision: str,
    impl: str,
) -> Step:
    """The step `occlude` → network → float32 logits.

    Parameters
    ----------
    network
        [P, 3, S, S] in the precision's dtype, channels-last in memory → logits [P, C].
    bank
        float32 [K, S, S, 3], pixel units.
    impl
        Whose `occlude`, as in `choose_impl`.
    """
    how = {"scale": preprocessing.scale, "shift": preprocessing.shift, "dtype": DTYPES[precision], "impl": impl}

    def step() -> Tensor:
        pictures = occlude(pairs.images, bank, pairs.image_index, pairs.occluder_index, **how, validate=False)
        return network(pictures).to(torch.float32)

    return step


class TrtEngine(Engine):
    """TensorRT, or TensorRT for RTX, on a CUDA GPU.

    `pairs` is how many a pass has, 64 if None; an artefact has no more than it was exported for.
    """

    name: ClassVar[str] = "trt"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    formats: ClassVar[tuple[str, ...]] = ("trt",)

    def __init__(self, subject: Subject, precision: str, device: str = "auto", *, pairs: int | None = None) -> None:
        if pairs is not None and pairs < 1:
            raise InputError(f"--batch-size {pairs}: must be at least 1")
        super().__init__(subject, precision, device)
        self.torch_device = _gpu(device)
        limits = subject.manifest.limits if isinstance(subject, Artefact) else None
        _, self.library, self._version = tensorrt_library(preferred(limits))
        self.variant = f"{self.library} {self._version}"
        with torch.cuda.device(self.torch_device):
            self._capability = str(capability_here())
        self._limits: Limits | None = None
        if isinstance(subject, Artefact):
            facts = (self.library, self._version, self._capability)
            self._limits = check_built_for(subject.folder, limits, *facts)
            pairs = pairs_within(subject.folder, self._limits, pairs)
        self._size = self.fixed_pairs = pairs or PAIRS
        self.impl, _ = checked_impl("auto", self.torch_device)
        self.device = device_name(self.torch_device)

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`: what the GPU has types for."""
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
        return ("fp32", "fp16", "bf16") if int(capability.partition(".")[0]) >= 8 else ("fp32", "fp16")

    def open(self) -> None:
        """Build the plan, or load what an earlier run has built, and take the memory for a pass."""
        size = self.subject.preprocessing.input_size
        self._stream = torch.cuda.Stream(self.torch_device)
        with self._on_stream(), tempfile.TemporaryDirectory(prefix="gfo-") as scratch:
            self._pairs = FixedPairs(self._size, size, self.torch_device)
            path, jit, found = self._plan_file(Path(scratch))
            self._plan = Plan(self.library, path, self.torch_device, jit)
        self.plan_file = path  # gone by now, where the network could not be cached
        self._bank: Tensor | None = None
        self._step: Step | None = None
        self.how = f"{self.library} {self._version}, {found}, {self._size} pairs in a pass, kernels {self.impl}"

    def _plan_file(self, scratch: Path) -> tuple[Path, Path | None, str]:
        """The plan, where its compiled kernels are kept, and in words where it is from."""
        stem = plan_stem(self.library, self._version, self.device, self._capability)
        if isinstance(self.subject, Artefact):
            kept = cache_dir() / "artefacts" / self.subject.key
            return self.subject.path, kept / f"{stem}-{self._size}.jit", "an exported plan"
        classifier, precision = self.subject, self.precision
        graph = bare_file(classifier, precision, "NHWC", scratch)
        folder = graph.compiled or scratch
        plan = folder / f"{stem}-{self._size}.plan"
        jit = None if graph.compiled is None else plan.with_suffix(".jit")
        if plan.is_file():
            return plan, jit, "a plan of an earlier run"
        profile = bare_profile(classifier.preprocessing.input_size, self._size)
        tensorrt_from_onnx(graph.path, plan, precision, profile, timing_cache=folder / f"{stem}.timing")
        return plan, jit, "a plan built now"

    def _load_bank(self, occluders: Tensor) -> None:
        if self._limits is not None and isinstance(self.subject, Artefact):
            check_rows(self.subject.folder, self._limits, len(occluders))
            occluders = with_clean_row(occluders)
        with self._on_stream():
            self._bank = occluders.to(self.torch_device).contiguous()
        self._step = None  # the captured one has the address of the bank before

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """The engine's own stream, after what the caller's has to do and before what it does next.

        On the default stream TensorRT would wait for the GPU in every pass.
        """
        outside = torch.cuda.current_stream(self.torch_device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    @torch.inference_mode()
    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        # Made before the stream changes: its memory is then the caller's stream's to give away again.
        logits = torch.empty(len(image_index), self.subject.num_classes, device=self.torch_device)
        with self._on_stream():
            if self._step is None:
                self._step = self._captured()
            lists = (image_index.to(self.torch_device), occluder_index.to(self.torch_device))
            self._pairs.run(self._step, images.to(self.torch_device), *lists, logits)
        return logits

    def _captured(self) -> Step:
        """A pass as one CUDA graph, after one that is not captured: there kernels are compiled and memory is taken."""
        self._pairs.occluder_index.zero_()
        step = self._whole() if isinstance(self.subject, Artefact) else self._around(self.subject)
        step()
        if self._plan.capturable():  # it knows after a pass, at that pass's shapes
            return captured(step, self._stream)
        without = ", no CUDA graph: TensorRT cannot have this plan captured"
        self.how = self.how.removesuffix(without) + without
        return step

    def _around(self, classifier: FrozenClassifier) -> Step:
        assert self._bank is not None

        def network(pictures: Tensor) -> Tensor:
            return self._plan({NETWORK_INPUT: pictures.permute(0, 2, 3, 1)})

        facts = (classifier.preprocessing, self.precision, self.impl)
        return around_network(network, self._pairs, self._bank, *facts)

    def _whole(self) -> Step:
        lists = (self._pairs.images, self._pairs.image_index, self._pairs.occluder_index)
        given = dict(zip(INPUTS, lists, strict=True)) | ({} if self._bank is None else {BANK: self._bank})
        return lambda: self._plan(given)

    def score(self, images: Tensor, image_index: Tensor, occluder_index: Tensor, labels: Tensor) -> Score:
        """See `Engine.score`: on the same stream as the network."""
        with self._on_stream():
            return super().score(images, image_index, occluder_index, labels)

    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """See `Engine.bare`: one pass of the plan, as a CUDA graph where that can be; no other batch than its own."""
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

    def layers(self) -> str:
        """What TensorRT's inspector says of the layers that run, as JSON."""
        return self._plan.layers()

    def close(self) -> None:
        """Drop the plan, the bank and the memory of a pass."""
        self._stream.synchronize()
        self._step = self._bank = None
        with torch.cuda.device(self.torch_device):
            self._plan.close()
        del self._plan, self._pairs


def _gpu(device: str) -> torch.device:
    """The GPU of that name, with its number, which what is put there has."""
    return torch.empty(0, device=resolve_device(device)).device
