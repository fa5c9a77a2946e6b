"""Networks of the sweeps that a library builds only with options: `python:networks:NAME`."""

from __future__ import annotations

from torch import nn


def mobilenetv2_same() -> nn.Module:
    """Build timm's mobilenetv2_100 with TensorFlow's padding, which its first weights were trained with."""
    import timm

    return timm.create_model("mobilenetv2_100", pad_type="same")
