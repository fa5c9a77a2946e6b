"""How commands name a model, its weights and its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError

CHECKPOINTS = (".pth", ".pt")
"""Files that may hold other things than one state dict."""


@dataclass(frozen=True)
class ModelSpec:
    """A model and its weights, as the commands take them.

    Attributes
    ----------
    model
        `torchvision/<name>`, `timm/<name>`, `gfo/digits-resnet`, `gfo/digits-vgg` or `python:module:function`.
    weights
        `default`, a torchvision name such as `IMAGENET1K_V1`, `random` (seeded), or a `.safetensors` or `.pth` state
        dict.
    input_size
        Side of the input in pixels; alone it keeps the crop fraction. None is the model's own, as below.
    resize, interpolation, mean, std
        Replace those of the model's own preprocessing; see `Preprocessing`.
    seed
        Seed of random weights.
    weights_key
        Entry of the `.pth` file that holds the weights, as `ema` or `ema.state_dict`. None takes the file itself or
        its `state_dict` or `model`.

    Raises
    ------
    InputError
        A key, but no file that has entries.
    """

    model: str
    weights: str = "default"
    input_size: int | None = None
    resize: int | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    seed: int = 0
    weights_key: str | None = None

    def __post_init__(self) -> None:
        if self.weights_key is not None and Path(self.weights).suffix not in CHECKPOINTS:
            raise InputError(
                f"--weights-key {self.weights_key}: --weights {self.weights} has no entries, only a "
                f"{' or '.join(CHECKPOINTS)} file may; leave it out"
            )

    def resolved(self) -> ModelSpec:
        """Return the same model for processes in other folders: a file of weights by its whole path."""
        return replace(self, weights=str(Path(self.weights).resolve())) if Path(self.weights).is_file() else self
