"""The demo's two small CNNs as a model family.

`digits_networks` holds the networks; `bench.demo` trains them by `DIGITS_RECIPES`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ..errors import InputError
from .base import Family, Loaded
from .digits_recipe import (
    DIGITS_INPUT_SIZE,
    DIGITS_INTERPOLATION,
    DIGITS_MEAN,
    DIGITS_RECIPES,
    DIGITS_RESIZE,
    DIGITS_STD,
    digits_weights_path,
)

if TYPE_CHECKING:
    from .spec import ModelSpec


class Digits(Family):
    """`gfo/digits-resnet` and `gfo/digits-vgg`, with the weights that the demo trains as `default`."""

    forms: ClassVar[tuple[str, ...]] = tuple(f"gfo/{name}" for name in DIGITS_RECIPES)
    library: ClassVar[str] = "gfo"

    def load(self, name: str, spec: ModelSpec) -> Loaded:
        """See `Family.load`."""
        from ..preprocessing import Preprocessing
        from .digits_networks import DIGITS_NETWORKS
        from .weights import fetch_state, fit_state

        if name not in DIGITS_NETWORKS:
            raise InputError(f"--model {spec.model}: expected one of the demo's networks, {', '.join(self.forms)}")
        if spec.weights == "default":
            path = digits_weights_path(name)
            if not path.is_file():
                raise InputError(f"--weights default: {spec.model}: {path} is not there yet; run gfo-demo once")
            spec = replace(spec, weights=str(path))
        state, doubt = fetch_state(spec, None)
        build = DIGITS_NETWORKS[name]
        network = build() if state is None else fit_state(build, state, spec, any_outputs=False)
        preprocessing = Preprocessing(DIGITS_INPUT_SIZE, DIGITS_RESIZE, DIGITS_INTERPOLATION, DIGITS_MEAN, DIGITS_STD)
        return Loaded(network, preprocessing, doubt)
