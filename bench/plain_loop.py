"""The loops that one writes without this project, for evaluating and for training. Nothing in them is slow on purpose.

Eager, PyTorch's default float32 and default layout, all threads. BatchNorm is folded already, which favours them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.devices import exact_float32
from ..export.classifier import FrozenClassifier
from ..export.preprocessing import Preprocessing
from ..kernels.margin_loss import margin_loss
from .workload import Workload

BATCH = 16
_AMPERE = (8, 0)


def plain_precisions(device: torch.device) -> tuple[str, ...]:
    """Return what float32 can mean on a device, PyTorch's default first.

    On CUDA that is `tf32`: factors of convolutions have 10 bits of mantissa. `fp32` is float32 throughout, as on the
    CPU and on GPUs before Ampere.
    """
    both = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE
    return ("tf32", "fp32") if both else ("fp32",)


def _network(classifier: FrozenClassifier, device: torch.device) -> torch.nn.Module:
    return classifier.network_as("fp32").to(device).to(memory_format=torch.contiguous_format)


def _occluded(images: Tensor, occluder: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the network's input for pictures [P, 3, S, S], 0 … 255, under occluders that broadcast."""
    from torchvision.transforms.functional import normalize

    occluded = (images.float() + occluder).clamp(0, 255) / 255
    return normalize(occluded, list(preprocessing.mean), list(preprocessing.std))


class PlainLoop:
    """The evaluation of one occluder: one pass over the files, with a DataLoader without workers.

    `precision` is one of `plain_precisions`.
    """

    def __init__(self, work: Workload, pictures: int, device: torch.device, precision: str) -> None:
        self._files = [work.folder / path for path in work.files(pictures)]
        self._occluder = work.occluders[0].permute(2, 0, 1).contiguous().to(device)
        self._device, self._precision, self._preprocessing = device, precision, work.classifier.preprocessing
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
            with exact_float32(self._precision, self._device):
                found += int((self._network(occluded).argmax(dim=1) == 0).sum())
        return found


class PlainTraining:
    """The training of one occluder with Adam at one step size; gradients of the network's parameters are thrown away.

    Parameters
    ----------
    epsilon, size
        Radius of the l∞ ball and step of Adam, both in pixel units.
    precision
        One of `plain_precisions`; PyTorch's default if None.

    Attributes
    ----------
    occluder
        float32 [3, S, S] in pixel units.
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        device: torch.device,
        epsilon: float,
        size: float,
        precision: str | None = None,
    ) -> None:
        self._network = _network(classifier, device).requires_grad_(True)
        self._preprocessing, self._device = classifier.preprocessing, device
        self._epsilon, self._size = epsilon, size
        self._precision = precision or plain_precisions(device)[0]
        self.restart()

    def restart(self) -> None:
        """Begin anew, with an occluder of zeros."""
        side = self._preprocessing.input_size
        self.occluder = torch.zeros(3, side, side, device=self._device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self.occluder], lr=self._size)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step on pictures, uint8 [P, 3, S, S], of the classes `labels`, int64 [P]; both on the device."""
        with exact_float32(self._precision, self._device):
            logits = self._network(_occluded(images, self.occluder, self._preprocessing))
            loss = margin_loss(logits, labels, 10.0).sum()
            self._optimizer.zero_grad()
            self._network.zero_grad()
            loss.backward()
            self._optimizer.step()
            with torch.no_grad():
                self.occluder.clamp_(-self._epsilon, self._epsilon)
