"""The demo's two small CNNs, one residual and one plain, for 32×32 RGB pictures of digits.

They stand for the two families that occluders are usually compared on (ResNet and VGG), at a size that trains in
seconds on two CPU cores. `bench.digits` trains them by `DIGITS_RECIPES`; models `gfo/digits-resnet` and
`gfo/digits-vgg` with weights `default` read the result from `digits_weights_path`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from ..cache import cache_dir

DIGITS_INPUT_SIZE: Final = 32
DIGITS_RESIZE: Final = 32
DIGITS_INTERPOLATION: Final = "bilinear"
DIGITS_MEAN: Final = (0.5, 0.5, 0.5)
DIGITS_STD: Final = (0.5, 0.5, 0.5)
DIGITS_CLASSES: Final = 10

_HIDDEN = 64


@dataclass(frozen=True)
class DigitsRecipe:
    """Everything that decides the weights of one demo network; a change gives it a new cache file.

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
        Of initial weights, shuffling and shifts.
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


class ResidualBlock(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))); x' is x, or a 1×1 projection of it where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] → [B, outputs, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def digits_resnet() -> nn.Module:
    """The residual demo network with fresh random weights.

    A 3×3 stem and one residual block per stage, the later stages halving height and width, then global average
    pooling and a linear layer. Takes float [B, 3, 32, 32], normalised by `DIGITS_MEAN` and `DIGITS_STD`; gives logits
    [B, 10], index = digit.
    """
    widths = DIGITS_RECIPES["digits-resnet"].widths
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for i, width in enumerate(widths):
        layers.append(ResidualBlock(widths[max(i - 1, 0)], width, stride=1 if i == 0 else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], DIGITS_CLASSES))


def digits_vgg() -> nn.Module:
    """The plain demo network with fresh random weights.

    Per stage two 3×3 convolutions with BatchNorm and ReLU, then 2×2 max pooling; a hidden linear layer and the output
    layer on the flattened map, as VGG has them. Input and output as `digits_resnet`.
    """
    layers: list[nn.Module] = []
    channels, side = 3, DIGITS_INPUT_SIZE
    for width in DIGITS_RECIPES["digits-vgg"].widths:
        for inputs in (channels, width):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, side = width, side // 2
    head = [nn.Linear(channels * side * side, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, DIGITS_CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


DIGITS_NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "digits-resnet": digits_resnet,
    "digits-vgg": digits_vgg,
}


def digits_weights_path(name: str) -> Path:
    """Where the trained weights of a demo network are cached; the file need not exist yet.

    Parameters
    ----------
    name
        A key of `DIGITS_RECIPES`.
    """
    recipe = json.dumps(asdict(DIGITS_RECIPES[name]), sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return cache_dir() / "digits" / f"{name}-{digest}.safetensors"
