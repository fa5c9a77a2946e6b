"""The lifecycle that every engine shares: open, infer, close. An engine describes itself in its class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...export.classifier import INT8, FrozenClassifier
from ...export.errors import InputError
from ...export.options import NoOptions
from ...export.subject import Subject
from ...kernels.pairs import as_grid, check_pair_list
from ...kernels.score import Score, check_labels, score
from ..devices import arriving
from . import ENGINES


def check_precision(subject: Subject, precision: str) -> None:
    """Raise `InputError` for an artefact that was exported at another precision, or a classifier without its int8."""
    if precision == INT8 and isinstance(subject, FrozenClassifier):
        subject.int8_network()
    if subject.exported_precision not in (None, precision):
        raise InputError(
            f"--precision {precision}: {subject.name} was exported at {subject.exported_precision}; leave --precision "
            f"out, or export again at {precision}"
        )


def _advice(format_: str) -> str:
    """Return which engines run an export format, as the end of a message; empty where none does."""
    able = [name for name in ENGINES.names if format_ in ENGINES[name].formats]
    return f"; use --engine {' or '.join(able)}" if able else ""


@dataclass(frozen=True)
class OwnBenchmark:
    """A vendor's benchmark of what an engine runs: `gfo-bench` starts it beside its own measurements.

    Attributes
    ----------
    tool
        Name of the executable, looked for on the PATH.
    plan
        The file that the engine has loaded.
    pairs
        Pairs per pass.
    """

    tool: str
    plan: Path
    pairs: int


# Entries of a list to the 256 bytes at which TensorRT wants inputs to begin; Triton's compiled forms want 16.
_ALIGNED = 32


class Listed(NamedTuple):
    """The pairs of a pass, on the engine's device: a list, or with `grid` the sides of a Cartesian block.

    Attributes
    ----------
    image_index, occluder_index
        int64 [P] each, as of `Engine.infer`; or the sides, as of `Grid`.
    labels
        int64 [P], of each pair's picture.
    """

    image_index: Tensor
    occluder_index: Tensor
    labels: Tensor
    grid: bool


class Engine(ABC):
    """An inference engine that runs one frozen classifier under occluders.

    Use it as a context manager, and load a bank before the first pair, unless it runs an artefact that embeds one:

        with TorchEngine(classifier, "fp32") as engine:
            engine.load_bank(bank.occluders)
            logits = engine.infer(images, image_index, occluder_index)

    Parameters
    ----------
    subject
        What to run.
    precision
        fp32, bf16, fp16 or int8.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    options
        An instance of the class's `Options`; None means the defaults.
    pairs
        Preferred number of pairs per pass, for engines whose passes have a fixed size; others do not read it.

    Raises
    ------
    InputError
        A precision, format or option that the engine lacks.
    EngineUnavailable
        Its library or device is not available.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]]
    """Kinds of device that it can run on: `cpu`, `cuda`."""
    formats: ClassVar[tuple[str, ...]] = ()
    """Export formats that it runs; none for an engine that runs classifiers only."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that it needs, as pip names them; `gfo-doctor` lists their versions."""
    rank: ClassVar[Mapping[str, int]] = {}
    """Its place among the engines for a kind of device, the fastest first; `auto` passes over an engine without one."""
    Options: ClassVar[type[Any]] = NoOptions
    """Frozen dataclass of its own options, with defaults; `--engine-option key=value` sets them."""

    options: Any
    reason: str = "requested"
    """Why this engine runs; set by `open_engine`."""
    torch_device: torch.device = torch.device("cpu")
    """Device on which it expects pictures and returns logits."""
    device: str
    """Name of the device that computes, for the record: `cpu`, or the name of the GPU."""
    impl: str
    """Implementation of `occlude` and `score` around the network: `reference` or `triton`."""
    variant: str | None = None
    """Form of the engine that computes, for the record: ONNX Runtime's provider, TensorRT's library, `compiled`."""
    fixed_pairs: int | None = None
    """Number of pairs in every pass, where that is built in; shorter lists are padded."""
    how: str = ""
    """What it chose for itself when it was opened, for the log."""

    def __init__(
        self,
        subject: Subject,
        precision: str,
        device: str = "auto",
        options: Any = None,
        pairs: int | None = None,
    ) -> None:
        self.options = self.Options() if options is None else options
        self._check_format(subject)
        check_precision(subject, precision)
        available = self.precisions(device)
        if precision not in available:
            raise InputError(
                f"--precision {precision}: engine {self.name} has {', '.join(available)} here; choose one of them"
            )
        self.subject = subject
        self.precision = precision
        embedded = subject.embedded_bank()
        self._embedded = None if embedded is None else len(embedded.class_ids)
        self._rows: int | None = None
        self.takes_grids = False

    def _check_format(self, subject: Subject) -> None:
        if subject.format is not None and subject.format not in self.formats:
            runs = f"runs {', '.join(self.formats)}" if self.formats else "runs models, not artefacts"
            raise InputError(
                f"--engine {self.name}: {runs}, and {subject.name} is {subject.format}{_advice(subject.format)}"
            )

    def _try_one_pair(self) -> None:
        """Run a black picture without an occluder, for `open`: a graph that fails is an error before any work."""
        size, index = self.subject.preprocessing.input_size, torch.zeros(1, dtype=torch.int64)
        if self.takes_bank:
            self._load_bank(torch.zeros(1, size, size, 3))
        pictures = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        self._infer(*(tensor.to(self.torch_device) for tensor in (pictures, index, index)))

    @property
    def takes_bank(self) -> bool:
        """Whether it needs a bank, having none embedded."""
        return self._embedded is None

    def _sizes(self) -> tuple[int, int, int | None]:
        """Return S, C and the rows of the embedded bank, as `onnx_graph.ports` takes them."""
        rows = None if self._embedded is None else self._embedded + 1
        return self.subject.preprocessing.input_size, self.subject.num_classes, rows

    @classmethod
    @abstractmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """Return the precisions that it supports on a device of this machine.

        Raises
        ------
        EngineUnavailable
            Its library is not installed, or the device is not available.
        InputError
            `device` is not a device.
        """

    def __enter__(self) -> Self:
        self._rows = self._embedded  # a bank loaded into an earlier opening is gone
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def open(self) -> None:
        """Build or load what runs; `with` calls it. Raises `EngineUnavailable` if it cannot run here."""

    def load_bank(self, occluders: Tensor) -> None:
        """Load the occluders, float32 [K, S, S, 3] in pixel units; may be called again with another bank.

        Raises
        ------
        ValueError
            Another dtype or size, or the bank is embedded in the artefact.
        """
        size = self.subject.preprocessing.input_size
        if not self.takes_bank:
            raise ValueError("occluders: the artefact embeds its bank, and takes no other")
        if occluders.dtype != torch.float32 or tuple(occluders.shape[1:]) != (size, size, 3):
            got = f"{str(occluders.dtype).removeprefix('torch.')} {list(occluders.shape)}"
            raise ValueError(f"occluders: expected float32 [K, {size}, {size}, 3], got {got}")
        self._load_bank(occluders)
        self._rows = len(occluders)

    @abstractmethod
    def _load_bank(self, occluders: Tensor) -> None:
        """Load a bank that `load_bank` has checked."""

    # ---- moving

    @property
    def runs_ahead(self) -> bool:
        """Whether `place`, `listed` and `queue` return before the device has done what they ask for.

        An engine whose library waits for each pass overrides it.
        """
        return self.torch_device.type == "cuda"

    @cached_property
    def _uploads(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.torch_device)

    def place(self, tensor: Tensor) -> Tensor:
        """Move pictures to the engine's device: once per part, not once per pass, beside the work of earlier calls."""
        if not self.runs_ahead or tensor.device.type == self.torch_device.type:
            return tensor.to(self.torch_device)
        now = torch.cuda.current_stream(self.torch_device)
        with torch.cuda.stream(self._uploads):
            placed = tensor.pin_memory().to(self.torch_device, non_blocking=True)
        now.wait_stream(self._uploads)
        placed.record_stream(now)  # otherwise the next upload may take its memory while `now` reads it
        return placed

    def listed(self, lists: Sequence[tuple[Tensor, Tensor]], labels: Tensor) -> list[Listed]:
        """Bring the pair lists of some passes over a part to the engine's device, in one copy.

        Parameters
        ----------
        lists
            Pictures and occluders of each pass, int64 [P] twice, on the CPU.
        labels
            int64 [B], one per picture of the part, on the CPU.

        Raises
        ------
        ValueError
            No bank is loaded, a list is not as `infer` takes it, or an index or a label is out of range.
        """
        check_labels(labels, self.subject.num_classes)
        parts: list[Tensor] = []
        grids: list[bool] = []
        for pictures, occluders in lists:
            self._check_lists(len(labels), pictures, occluders)
            sides = as_grid(pictures, occluders) if self.takes_grids else None
            parts += [*(sides or (pictures, occluders)), labels[pictures]]
            grids.append(sides is not None)
        placed = iter(self._together(parts))
        return [Listed(next(placed), next(placed), next(placed), grid) for grid in grids]

    def _together(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Move lists, int64 [n], in one copy, each aligned as an allocation of its own would be."""
        if not self.runs_ahead or not tensors:
            return [tensor.to(self.torch_device) for tensor in tensors]
        lengths = [len(tensor) for tensor in tensors]
        padded = [-(-length // _ALIGNED) * _ALIGNED for length in lengths]
        joined = torch.cat([pad(t, (0, all_ - len(t))) for t, all_ in zip(tensors, padded, strict=True)])
        placed = joined.pin_memory().to(self.torch_device, non_blocking=True).split(padded)
        return [part[:length] for part, length in zip(placed, lengths, strict=True)]

    # ---- running

    def infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        """Run pictures, uint8 [B, S, S, 3], under a pair list, int64 [P] twice; return logits, float32 [P, C].

        The logits are on the engine's device. Occluder index 0 is clean, j is bank row j − 1.

        Raises
        ------
        ValueError
            No bank is loaded, pictures have another dtype or size, or an index is out of range; lists on a GPU are not
            checked, because that would wait for the GPU.
        """
        self._check_images(images)
        images = images.to(self.torch_device)
        if image_index.device.type == occluder_index.device.type == "cpu":
            (pairs,) = self.listed([(image_index, occluder_index)], torch.zeros(len(images), dtype=torch.int64))
            return self._logits(images, pairs.image_index, pairs.occluder_index, grid=pairs.grid)
        self._check_lists(len(images), image_index, occluder_index)
        return self._infer(images, image_index.to(self.torch_device), occluder_index.to(self.torch_device))

    def _check_images(self, images: Tensor) -> None:
        size = self.subject.preprocessing.input_size
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (size, size, 3):
            got = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise ValueError(f"images: expected uint8 [B, {size}, {size}, 3], got {got}")
        if not images.is_contiguous():
            raise ValueError(f"images: expected contiguous memory, got strides {images.stride()}")

    def _check_lists(self, pictures: int, image_index: Tensor, occluder_index: Tensor) -> None:
        if self._rows is None:
            raise ValueError("no bank: call load_bank first")
        if image_index.dtype != torch.int64 or occluder_index.dtype != torch.int64:
            raise ValueError("pair list: expected two int64 [P]")
        if len(image_index) != len(occluder_index):
            raise ValueError(f"pair list: {len(image_index)} pictures for {len(occluder_index)} occluders")
        if image_index.device.type == occluder_index.device.type == "cpu":
            check_pair_list(image_index, occluder_index, pictures, self._rows)

    def _logits(self, images: Tensor, image_index: Tensor, occluder_index: Tensor, *, grid: bool) -> Tensor:
        """Return the logits of a pass, of a `Listed`; an engine that takes grids overrides it."""
        assert not grid
        return self._infer(images, image_index, occluder_index)

    @abstractmethod
    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        """Run a call that `infer` has checked, with everything on the engine's device."""

    @abstractmethod
    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """Return calls that run the network alone on `batch` ready pictures, by layout: the lower bound of a pair.

        The pictures are noise in the precision's dtype, on the engine's device, at the engine's own settings. The
        result is empty where the engine only runs other batches.

        Raises
        ------
        ValueError
            The engine runs an artefact, whose network cannot be separated.
        """

    def own_benchmark(self) -> OwnBenchmark | None:
        """Return the vendor's benchmark of what this open engine runs, None where there is none."""
        return None

    def _classifier(self) -> FrozenClassifier:
        if not isinstance(self.subject, FrozenClassifier):
            raise ValueError(f"{self.subject.name}: the network of an artefact cannot be separated")
        return self.subject

    def queue(self, images: Tensor, pairs: Listed) -> Score:
        """Run a pass over pictures that `place` has moved, and judge it, on the engine's device.

        On a device that runs ahead nothing waits for the result; `fetch` does.
        """
        logits = self._logits(images, pairs.image_index, pairs.occluder_index, grid=pairs.grid)
        return score(logits, pairs.labels, impl=self.impl, validate=False)

    def fetch(self, scores: Sequence[Score]) -> Callable[[], Score]:
        """Begin to copy the verdicts of one or more passes to the CPU, together; return what waits for them."""
        parts = [torch.cat(part) for part in zip(*scores, strict=True)]
        if not self.runs_ahead:
            found = Score(*(part.cpu() for part in parts))
            return lambda: found
        arrived = arriving(torch.cat([part.contiguous().view(torch.uint8) for part in parts]))

        def wait() -> Score:
            packed = arrived().split([part.nbytes for part in parts])
            return Score(*(raw.view(part.dtype) for raw, part in zip(packed, parts, strict=True)))

        return wait

    def score(self, images: Tensor, image_index: Tensor, occluder_index: Tensor, labels: Tensor) -> Score:
        """Run `infer` and judge the logits on the engine's device, so that only the verdict travels; wait for it.

        `labels` is int64 [B], one per picture.
        """
        self._check_images(images)
        (pairs,) = self.listed([(image_index.cpu(), occluder_index.cpu())], labels.cpu())
        return self.fetch([self.queue(self.place(images), pairs)])()

    @abstractmethod
    def close(self) -> None:
        """Release the device."""
