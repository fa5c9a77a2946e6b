"""How the commands name a model, its weights and its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """Which model and weights, as the commands take them.

    `model` is `torchvision/<name>`, `timm/<name>`, `gfo/digits-resnet`, `gfo/digits-vgg` or `python:module:function`;
    `weights` is `default`, a torchvision weights name such as `IMAGENET1K_V1`, `random` (seeded) or a
    `.safetensors` / `.pth` state dict. The other fields override the library's own preprocessing; `input_size` alone
    keeps the crop fraction.
    """

    model: str
    weights: str = "default"
    input_size: int | None = None
    resize: int | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    seed: int = 0
