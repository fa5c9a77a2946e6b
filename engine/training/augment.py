"""Random changes of the fitted pictures, drawn anew each time a picture is used.

An occluder has far more numbers than a class has training pictures, and learns where objects stand in these. Pictures
that are moved teach it to erase an object wherever it is. The occluder does not move, and preserved pictures do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...export.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def _crop(size: int) -> Any:
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True)


def _flip(_: int) -> Any:
    from torchvision.transforms import v2

    return v2.RandomHorizontalFlip()


AUGMENTATIONS: Final[dict[str, Callable[[int], Any]]] = {"crop": _crop, "flip": _flip}
"""By name, what makes the transform of a picture uint8 [3, S, S] for its size S; it draws from PyTorch's generator."""


def check_augment(names: Sequence[str]) -> None:
    """Raise `InputError` for a name that is no augmentation, or is there twice."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise InputError(f"--augment {name or repr(name)}: expected some of {','.join(AUGMENTATIONS)}")
        if names.count(name) > 1:
            raise InputError(f"--augment {','.join(names)}: names {name} twice; leave one out")


def augmented(images: Tensor, names: Sequence[str], seed: Sequence[int]) -> Tensor:
    """Return pictures uint8 [n, S, S, 3], n ≥ 1, each changed by a draw of its own that depends on `seed` alone."""
    if not names:
        return images
    import numpy as np
    import torch
    from torchvision.transforms import v2

    change = v2.Compose([AUGMENTATIONS[name](images.shape[1]) for name in names])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        changed = torch.stack([change(image) for image in images.permute(0, 3, 1, 2)])
    return changed.permute(0, 2, 3, 1).contiguous()
