"""What a model family says of itself. Its modules import nothing heavy before a network is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from ..preprocessing import Preprocessing
    from .spec import ModelSpec


class Loaded(NamedTuple):
    """What a family gives for a model.

    Attributes
    ----------
    network
        Maps normalised float32 [P, 3, S, S] to logits [P, C].
    preprocessing
        The network's own.
    doubt
        A line about a choice among several weights, as `fetch_state` returns it; None where there was none.
    accuracy
        Accuracy on ImageNet's validation pictures that the weights' authors report, 0 … 1; None where it is not known.
    """

    network: nn.Module
    preprocessing: Preprocessing
    doubt: str | None = None
    accuracy: float | None = None


class Family(ABC):
    """A source of networks. `--model` is its name in the table, `separator` and the network's own name."""

    forms: ClassVar[tuple[str, ...]]
    """How its models are written, for help texts: `timm/<name>`."""
    separator: ClassVar[str] = "/"
    library: ClassVar[str] = ""
    """The installed distribution that the networks' code comes from; empty where it may change under its name."""

    @abstractmethod
    def load(self, name: str, spec: ModelSpec) -> Loaded:
        """Build a network with the weights that `spec.weights` names.

        Parameters
        ----------
        name
            `spec.model` without the family.
        spec
            The whole specification. The caller applies `resize`, `interpolation`, `mean` and `std`, and rescales the
            preprocessing returned to `input_size`.

        Returns
        -------
        Loaded
            The network and what is known of it.

        Raises
        ------
        InputError
            An unknown model, or weights that are not there or do not fit.
        """

    def weights_name(self, name: str, spec: ModelSpec) -> str:
        """Return the name of the weights for the record, where `default` may be others tomorrow."""
        return spec.weights

    def origin(self) -> str:
        """Return the library and version that the networks' code comes from; empty for a user's own."""
        return f"{self.library} {version(self.library)}" if self.library else ""
