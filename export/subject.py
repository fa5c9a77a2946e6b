"""What engines run and banks are made for: a frozen classifier, or an artefact of one, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .bank_header import Model

if TYPE_CHECKING:
    from .bank_header import EmbeddedBank
    from .manifest import Parity


class Subject(Model, Protocol):
    """A network with its preprocessing. What only an artefact has is None for a classifier in memory."""

    @property
    def name(self) -> str:
        """Name for messages: the model's, or the artefact's folder."""
        ...

    @property
    def weights(self) -> str:
        """Name or file of the weights."""
        ...

    @property
    def format(self) -> str | None:
        """Export format, a name of `FORMATS`."""
        ...

    @property
    def exported_precision(self) -> str | None:
        """The only precision that it runs at."""
        ...

    @property
    def key(self) -> str | None:
        """SHA-256 over the files."""
        ...

    @property
    def parity(self) -> Parity | None:
        """Verdict of the comparison with PyTorch."""
        ...

    @property
    def accuracy(self) -> float | None:
        """Accuracy that the weights' authors report, for a classifier whose weights are a library's."""
        ...

    @property
    def doubt(self) -> str | None:
        """A line about a choice among several weights, for a classifier from a checkpoint."""
        ...

    def embedded_bank(self) -> EmbeddedBank | None:
        """Return the bank inside; None where a bank is given with each call.

        Raises
        ------
        InputError
            The description of the bank inside is not valid.
        """
        ...
