"""How the demo's two small CNNs are trained, and where their weights are cached."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ..cache import cache_dir, key

DIGITS_INPUT_SIZE: Final = 32
DIGITS_RESIZE: Final = 32
DIGITS_INTERPOLATION: Final = "bilinear"
DIGITS_MEAN: Final = (0.5, 0.5, 0.5)
DIGITS_STD: Final = (0.5, 0.5, 0.5)
DIGITS_CLASSES: Final = 10

_KEY_DIGITS = 12  # of a recipe's key, in file names


@dataclass(frozen=True)
class DigitsRecipe:
    """Everything that decides the weights of one demo network; another recipe has another file in the cache.

    Attributes
    ----------
    widths
        Channels of the successive stages.
    epochs, batch_size
        Passes over the training split, pictures in a step.
    learning_rate, weight_decay
        Peak of AdamW's one-cycle schedule, and its decoupled decay.
    shift
        Largest random shift in pixels, along either axis.
    seed
        Seed of initial weights, shuffling and shifts.
    version
        Raised when the code makes something else of the same numbers.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    shift: int = 3
    seed: int = 0
    version: int = 1


DIGITS_RECIPES: Final[dict[str, DigitsRecipe]] = {"digits-resnet": DigitsRecipe(), "digits-vgg": DigitsRecipe()}


def digits_weights_path(name: str) -> Path:
    """Return the cache file of a demo network's trained weights, which need not exist yet.

    Parameters
    ----------
    name
        A key of `DIGITS_RECIPES`.
    """
    return cache_dir("digits") / f"{name}-{key(asdict(DIGITS_RECIPES[name]))[:_KEY_DIGITS]}.safetensors"
