"""The loops that one writes without this project, for evaluating and for training. Nothing in them is slow on purpose.

Eager float32 in PyTorch's default layout, all threads. BatchNorm is folded already, which favours them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.devices import exact_float32
from ..export.classifier import FrozenClassifier
from ..export.preprocessing import Preprocessing
from ..kernels.margin_loss import margin_loss
from .workload import Workload

BATCH = 16


def _network(classifier: FrozenClassifier, device: torch.device) -> torch.nn.Module:
    return classifier.network_as("fp32").to(device).to(memory_format=torch.contiguous_format)


def _occluded(images: Tensor, occluder: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the network's input for pictures [P, 3, S, S], 0 … 255, under occluders that broadcast."""
    from torchvision.transforms.functional import normalize

    occluded = (images.float() + occluder).clamp(0, 255) / 255
    return normalize(occluded, list(preprocessing.mean), list(preprocessing.std))


class PlainLoop:
    """The evaluation of one occluder: one pass over the files, with a DataLoader without workers."""

    def __init__(self, work: Workload, pictures: int, device: torch.device) -> None:
        self._files = [work.folder / path for path in work.files(pictures)]
        self._occluder = work.occluders[0].permute(2, 0, 1).contiguous().to(device)
        self._device, self._preprocessing = device, work.classifier.preprocessing
        self._network = _network(work.classifier, device)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        picture = self._preprocessing.load_uint8(self._files[index])
        return torch.from_numpy(picture.copy()).permute(2, 0, 1)

    @torch.no_grad()
    def __call__(self) -> int:
        """Run one pass, and count the answers that are class 0."""
        from torch.utils.data import DataLoader

        found = 0
        loader: Any = DataLoader(self, batch_size=BATCH)  # type: ignore[arg-type]
        for images in loader:
            occluded = _occluded(images.to(self._device), self._occluder, self._preprocessing)
            with exact_float32("fp32", self._device):
                found += int((self._network(occluded).argmax(dim=1) == 0).sum())
        return found


def plain_step(
    classifier: FrozenClassifier, images: Tensor, occluder_index: Tensor, labels: Tensor, groups: int
) -> Callable[[], None]:
    """Return a training step of `groups` occluders with Adam; gradients of the network's parameters are thrown away.

    Parameters
    ----------
    images
        uint8 [P, S, S, 3], on the device that does the work.
    occluder_index, labels
        int64 [P], the former 1 … `groups`.
    """
    device, p = images.device, classifier.preprocessing
    pictures, index = images.permute(0, 3, 1, 2).contiguous(), occluder_index - 1
    network = _network(classifier, device).requires_grad_(True)
    occluders = torch.zeros(groups, 3, p.input_size, p.input_size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([occluders], lr=1.0)

    def run() -> None:
        with exact_float32("fp32", device):
            loss = margin_loss(network(_occluded(pictures, occluders[index], p)), labels, 10.0).sum()
            optimizer.zero_grad()
            network.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                occluders.clamp_(-10, 10)

    return run
