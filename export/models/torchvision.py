"""torchvision's classifiers, with the weights and transforms that it ships."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError
from .base import Family, Loaded

if TYPE_CHECKING:
    from torch import nn

    from ..preprocessing import Preprocessing
    from .spec import ModelSpec

_INCEPTION = ("googlenet", "inception_v3")
_AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")


class Torchvision(Family):
    """`torchvision/<name>`, every classifier that `torchvision.models` lists."""

    forms: ClassVar[tuple[str, ...]] = ("torchvision/<name>",)
    library: ClassVar[str] = "torchvision"

    def load(self, name: str, spec: ModelSpec) -> Loaded:
        """See `Family.load`. Auxiliary heads are removed: they take no part in evaluation mode."""
        from torchvision.models import get_model, get_model_weights, list_models

        from .weights import bare_name, fetch_state, fit_state

        if name not in list_models(module=sys.modules["torchvision.models"]):
            raise InputError(
                f"--model {spec.model}: torchvision has no classifier of that name; see torchvision.models"
            )
        members = get_model_weights(name)
        wanted = self.weights_name(name, spec)
        chosen = members[wanted] if wanted in members.__members__ else None
        state, doubt = fetch_state(spec, None if chosen is None else lambda: chosen.get_state_dict(check_hash=True))

        options: dict[str, bool] = {}
        if name in _INCEPTION:
            # Pretrained Inception networks normalise once more inside; the library's builder sets it with the weights.
            auxiliary = state is not None and any(bare_name(key).lower().startswith("aux") for key in state)
            options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}

        def build(**sizes: Any) -> nn.Module:
            return get_model(name, weights=None, **options, **sizes)

        network = build() if state is None else fit_state(build, state, spec)
        if state is None and options:
            _keep_signal(network)
        for head in _AUXILIARY_HEADS:
            if getattr(network, head, None) is not None:
                setattr(network, "aux_logits", False)  # noqa: B010 (nn.Module types its attributes as modules)
                setattr(network, head, None)
        preprocessing = preprocessing_from_torchvision(name, None if chosen is None else wanted)
        return Loaded(network, preprocessing, doubt, None if chosen is None else published_accuracy(chosen.meta))

    def weights_name(self, name: str, spec: ModelSpec) -> str:
        """Return the name of the weights: `default` stands for other ones in other versions of the library."""
        from torchvision.models import get_model_weights

        return get_model_weights(name)["DEFAULT"].name if spec.weights == "default" else spec.weights


def published_accuracy(meta: Mapping[str, Any]) -> float | None:
    """Return the accuracy on ImageNet-1k that torchvision's description of weights reports, 0 … 1; None without one."""
    percent = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return None if percent is None else percent / 100


def _keep_signal(network: nn.Module) -> None:
    """Initialise convolutions as torchvision does for its other networks.

    With the Inception networks' own initialisation (σ = 0.01 or 0.1) logits hardly depend on the picture, so that
    random weights could not tell a right engine from a wrong one.
    """
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def preprocessing_from_torchvision(model_name: str, weights_name: str | None) -> Preprocessing:
    """Return the transform that torchvision ships with the weights; None names the model's default weights."""
    from torchvision.models import get_model_weights

    from ..preprocessing import Preprocessing

    members = get_model_weights(model_name)
    weights = members[weights_name] if weights_name else members["DEFAULT"]
    transforms = weights.transforms()
    return Preprocessing(
        input_size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
