"""The lifecycle that every engine shares: open, infer, close. A new engine is one new file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from ...export.artefact import Artefact
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...kernels.occlude import check_pair_list
from ...kernels.score import Score, score

Subject: TypeAlias = FrozenClassifier | Artefact
"""What an engine runs: a classifier in memory, which takes a bank, or a folder that `export` wrote."""


def check_precision(artefact: Artefact, precision: str) -> None:
    """Raise `InputError` unless the artefact was exported at that precision."""
    if precision != artefact.manifest.precision:
        raise InputError(f"--precision {precision}: {artefact.folder} was exported at {artefact.manifest.precision}")


class Engine(ABC):
    """An inference engine that runs one frozen classifier under occluders.

    Use it as a context manager, and give it a bank before the first pair, unless it runs an artefact that has one:

        with TorchEngine(classifier, "fp32") as engine:
            engine.load_bank(bank.occluders)
            logits = engine.infer(images, image_index, occluder_index)
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]]
    """Kinds of device that it can run on: `cpu`, `cuda`."""
    formats: ClassVar[tuple[str, ...]] = ()
    """Of the artefacts that it runs."""
    torch_device: torch.device = torch.device("cpu")
    """Where it wants pictures and gives logits."""
    device: str
    """What the results were computed on, for the record: `cpu`, or the GPU's name."""
    impl: str
    """Whose `occlude` and `score` run around the network: `reference` or `triton`."""
    variant: str | None = None
    """Which form of the engine computes, for the record: ONNX Runtime's provider, TensorRT's library, `compiled`."""
    fixed_pairs: int | None = None
    """How many pairs every pass takes, where that is built in: what a list lacks is filled up."""
    how: str = ""
    """What it chose for itself when it was opened, in words."""

    def __init__(self, subject: Subject, precision: str, device: str = "auto") -> None:
        if isinstance(subject, Artefact):
            self._check_artefact(subject, precision)
        available = self.precisions(device)
        if precision not in available:
            raise InputError(
                f"--precision {precision}: engine {self.name} has {', '.join(available)} here; choose one of them"
            )
        self.subject = subject
        self.precision = precision
        embedded = subject.embedded_bank() if isinstance(subject, Artefact) else None
        self._embedded = None if embedded is None else len(embedded.class_ids)
        self._rows: int | None = None
        self._entered = False
        self.takes_grids = False

    def _check_artefact(self, artefact: Artefact, precision: str) -> None:
        manifest = artefact.manifest
        if manifest.format not in self.formats:
            runs = f"runs {', '.join(self.formats)}" if self.formats else "runs models, no artefacts"
            raise InputError(f"--engine {self.name}: {runs}, and {artefact.folder} is {manifest.format}")
        check_precision(artefact, precision)

    @property
    def takes_bank(self) -> bool:
        """Whether it is given a bank, and has none inside."""
        return self._embedded is None

    def _sizes(self) -> tuple[int, int, int | None]:
        """S, C and the rows of the bank inside, as `onnx_graph.ports` takes them."""
        rows = None if self._embedded is None else self._embedded + 1
        return self.subject.preprocessing.input_size, self.subject.num_classes, rows

    @classmethod
    @abstractmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """Those that it has on a device of this machine.

        Raises
        ------
        EngineUnavailable
            Its library is not installed, or the device is not there.
        InputError
            Not a device.
        """

    def __enter__(self) -> Self:
        if not self._entered:  # `auto` has opened what it gives
            self._rows = self._embedded  # what an earlier opening was given is gone
            self.open()
            self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entered:
            self._entered = False
            self.close()

    @abstractmethod
    def open(self) -> None:
        """Build or load what runs; `with` calls it, and `close`. Raises `EngineUnavailable` if it cannot run here."""

    def load_bank(self, occluders: Tensor) -> None:
        """Take the occluders, float32 [K, S, S, 3] in pixel units; may be called again with another bank.

        Raises
        ------
        ValueError
            Another dtype or size, or the bank is embedded in what runs.
        """
        size = self.subject.preprocessing.input_size
        if not self.takes_bank:
            raise ValueError("occluders: the artefact has its bank inside, and takes no other")
        if occluders.dtype != torch.float32 or tuple(occluders.shape[1:]) != (size, size, 3):
            got = f"{str(occluders.dtype).removeprefix('torch.')} {list(occluders.shape)}"
            raise ValueError(f"occluders: expected float32 [K, {size}, {size}, 3], got {got}")
        self._load_bank(occluders)
        self._rows = len(occluders)

    @abstractmethod
    def _load_bank(self, occluders: Tensor) -> None:
        """`load_bank`, checked."""

    def place(self, tensor: Tensor) -> Tensor:
        """Pictures or labels of a block where the engine wants them: moved once a block, not once a batch."""
        return tensor.to(self.torch_device)

    def infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] and a pair list, int64 [P] twice → logits float32 [P, C], on the engine's device.

        Occluder index 0 is clean, j is bank row j − 1.

        Raises
        ------
        ValueError
            No bank yet, pictures of another dtype or size, or an index out of range; lists on a GPU are not checked,
            which would have to wait for it.
        """
        size = self.subject.preprocessing.input_size
        if self._rows is None:
            raise ValueError("no bank: load_bank comes first")
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (size, size, 3):
            got = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise ValueError(f"images: expected uint8 [B, {size}, {size}, 3], got {got}")
        if not images.is_contiguous():
            raise ValueError(f"images: expected contiguous memory, got strides {images.stride()}")
        if image_index.dtype != torch.int64 or occluder_index.dtype != torch.int64:
            raise ValueError("pair list: expected two int64 [P]")
        if len(image_index) != len(occluder_index):
            raise ValueError(f"pair list: {len(image_index)} pictures for {len(occluder_index)} occluders")
        if image_index.device.type == occluder_index.device.type == "cpu":
            check_pair_list(image_index, occluder_index, len(images), self._rows)
        return self._infer(images, image_index, occluder_index)

    @abstractmethod
    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        """`infer`, checked."""

    @abstractmethod
    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """Calls that run the network alone on `batch` ready pictures, by memory layout: what a pair costs at least.

        Noise in the precision's dtype, where the engine wants it, at the engine's own settings. Empty where it runs
        other batches only.

        Raises
        ------
        ValueError
            What runs is an artefact: its network is not to be had alone.
        """

    def _classifier(self) -> FrozenClassifier:
        if isinstance(self.subject, Artefact):
            raise ValueError(f"{self.subject.folder}: an artefact's network is not to be had alone")
        return self.subject

    def score(self, images: Tensor, image_index: Tensor, occluder_index: Tensor, labels: Tensor) -> Score:
        """`infer`, judged where the logits are, so that only the verdict travels.

        `labels` is int64 [B], one a picture.
        """
        logits = self.infer(images, image_index, occluder_index)
        verdict = score(logits, labels.to(logits.device)[image_index.to(logits.device)], impl=self.impl)
        return Score(*(part.cpu() for part in verdict))

    @abstractmethod
    def close(self) -> None:
        """Release the device."""
