"""timm's models, with the evaluation transform of its own metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError
from .base import Family, Loaded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..preprocessing import Preprocessing
    from .spec import ModelSpec


class Timm(Family):
    """`timm/<name>`, with timm's own pretrained weights as `default`."""

    forms: ClassVar[tuple[str, ...]] = ("timm/<name>",)
    library: ClassVar[str] = "timm"

    def load(self, name: str, spec: ModelSpec) -> Loaded:
        """See `Family.load`."""
        import timm

        from .weights import fetch_state, fit_state

        if not timm.is_model(name.split(".")[0]):
            raise InputError(f"--model {spec.model}: timm has no model of that name; see timm.list_models()")

        def fetch() -> dict[str, Tensor]:
            return dict(timm.create_model(name, pretrained=True).state_dict())

        state, doubt = fetch_state(spec, fetch if spec.weights == "default" else None)

        def build(**sizes: Any) -> nn.Module:
            try:
                return timm.create_model(name, pretrained=False, **sizes)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"--model {spec.model}: {error}; see timm.list_pretrained()") from error

        network = build() if state is None else fit_state(build, state, spec)
        config: Any = network.pretrained_cfg
        return Loaded(network, preprocessing_from_timm(config, spec.model, spec.input_size), doubt)


def preprocessing_from_timm(
    pretrained_cfg: Mapping[str, Any], model: str, input_size: int | None = None
) -> Preprocessing:
    """Return the evaluation transform of timm's metadata: short side to floor(S / crop_pct), centre crop S.

    Parameters
    ----------
    pretrained_cfg
        The network's attribute of that name.
    model
        Its name, for the message.
    input_size
        S in pixels; None is the model's own.

    Raises
    ------
    InputError
        A crop mode or a non-square input that this preprocessing does not cover.
    """
    from ..preprocessing import Preprocessing

    channels, height, width = pretrained_cfg["input_size"]
    crop_mode = pretrained_cfg.get("crop_mode") or "center"
    if channels != 3 or height != width or crop_mode != "center":
        raise InputError(
            f"{model}: needs input {pretrained_cfg['input_size']} with crop mode {crop_mode!r}; only square RGB input "
            "with a centre crop is supported, choose another model"
        )
    size = height if input_size is None else input_size
    return Preprocessing(
        input_size=size,
        resize=math.floor(size / pretrained_cfg["crop_pct"]),
        interpolation=pretrained_cfg["interpolation"],
        mean=tuple(pretrained_cfg["mean"]),
        std=tuple(pretrained_cfg["std"]),
    )
