"""The lifecycle that every engine shares: open, infer, close. A new engine is one new file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from torch import Tensor

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...kernels.score import Score, score


class Engine(ABC):
    """An inference engine that runs one frozen classifier under occluders.

    Use it as a context manager, and give it a bank before the first pair:

        with TorchEngine(classifier, "fp32") as engine:
            engine.load_bank(bank.occluders)
            logits = engine.infer(images, image_index, occluder_index)
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    device: str
    """What the results were computed on, for the record: `cpu`, or the GPU's name."""
    impl: str
    """Whose `occlude` and `score` run around the network: `reference` or `triton`."""

    def __init__(self, classifier: FrozenClassifier, precision: str) -> None:
        if precision not in self.precisions:
            raise InputError(
                f"--precision {precision}: engine {self.name} has {', '.join(self.precisions)}; choose one of them"
            )
        self.classifier = classifier
        self.precision = precision

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def open(self) -> None:
        """Build or load what runs. Raises `EngineUnavailable` if it cannot run here."""

    @abstractmethod
    def load_bank(self, occluders: Tensor) -> None:
        """Take the occluders, float32 [K, S, S, 3] in pixel units; may be called again with another bank."""

    def place(self, tensor: Tensor) -> Tensor:
        """Pictures or labels of a block where the engine wants them: moved once a block, not once a batch."""
        return tensor

    @abstractmethod
    def infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] and a pair list, int64 [P] twice → logits float32 [P, C], on the engine's device.

        Occluder index 0 is clean, j is bank row j − 1.
        """

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
