"""The demo's two small CNNs, one residual and one plain, for 32×32 RGB pictures of digits.

They stand for the two families that occluders are usually compared on (ResNet and VGG), at a size that trains in
seconds on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from .digits_recipe import DIGITS_CLASSES, DIGITS_INPUT_SIZE, DIGITS_RECIPES

_HIDDEN = 64


class ResidualBlock(nn.Module):
    """A residual block, relu(x' + bn(conv(relu(bn(conv(x)))))); x' is x, or its 1×1 projection to another shape."""

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
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def digits_resnet() -> nn.Module:
    """Build the residual demo network with fresh random weights.

    A 3×3 stem and one residual block per stage, the later stages halving height and width, then global average
    pooling and a linear layer. Takes float [B, 3, 32, 32], normalised by `DIGITS_MEAN` and `DIGITS_STD`; returns logits
    [B, 10], index = digit.
    """
    widths = DIGITS_RECIPES["digits-resnet"].widths
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for i, width in enumerate(widths):
        layers.append(ResidualBlock(widths[max(i - 1, 0)], width, stride=1 if i == 0 else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], DIGITS_CLASSES))


def digits_vgg() -> nn.Module:
    """Build the plain demo network with fresh random weights.

    Per stage two 3×3 convolutions with BatchNorm and ReLU, then 2×2 max pooling; a hidden linear layer and the output
    layer on the flattened map, as VGG has them. Input and output are those of `digits_resnet`.
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
