"""The occluded classifier: pictures, a pair list and a bank in, logits out.

Training differentiates it and the torch engine runs it; `onnx_graph` writes the same computation as a graph.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..kernels.occlude import Normalisation, occlude
from ..kernels.pairs import Grid, Pairs
from .classifier import DTYPES, FrozenClassifier
from .errors import InputError, in_short, lacks_gpu_memory
from .gradients import QuickGradients
from .islands import described, find_islands, is_the_machines


class OccludedClassifier(nn.Module):
    """A frozen classifier under occluders.

    images uint8 [B, S, S, 3], image_index int64 [P], occluder_index int64 [P] → logits float32 [P, C]. Occluder index 0
    is clean, j is row j − 1 of the bank: float32 [K, S, S, 3] in pixel units, embedded here or given with each call.

    Parameters
    ----------
    classifier
        Its network is copied.
    precision
        `fp32`, `bf16` or `fp16` for the network; occlusion and logits are float32.
    bank
        The bank to embed, if any.
    impl
        Implementation of `occlude`: `auto`, `reference` or `triton`.

    Attributes
    ----------
    islands
        One line on the modules that `settled` made run in float32, and why; empty where there are none.
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        precision: str = "fp32",
        bank: Tensor | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.impl = impl
        self.network = classifier.network_as(precision)
        self.precision = precision
        self.model = classifier.model
        self.islands = ""
        self._classifier, self._quick = classifier, False
        preprocessing = classifier.preprocessing
        self._size = preprocessing.input_size
        self.normalisation = Normalisation(preprocessing.scale, preprocessing.shift, DTYPES[precision])
        self.register_buffer("bank", bank)

    def forward(
        self,
        images: Tensor,
        image_index: Tensor,
        occluder_index: Tensor,
        bank: Tensor | None = None,
        *,
        grid: bool = False,
        validate: bool = True,
    ) -> Tensor:
        """Return the logits of each pair, differentiable with respect to `bank`.

        With `grid` the lists are the sides of a Cartesian block, as in `Grid`; `validate` as in `occlude`.

        Raises
        ------
        TypeError, ValueError
            `occlude` does not take the inputs, or no bank is given and none embedded.
        InputError
            The network fails; see `naming_failure`.
        """
        chosen: Any = self.bank if bank is None else bank
        if chosen is None:
            raise ValueError("no bank: give one with the call or embed one")
        pairs = (Grid if grid else Pairs)(images, chosen, image_index, occluder_index)
        inputs = occlude(pairs, self.normalisation, impl=self.impl, validate=validate)
        with self.naming_failure(inputs.device), self._gradients():
            return self.network(inputs).to(torch.float32).contiguous()  # a network may return a part of something

    def settled(self, device: torch.device, *, gradient: bool = False) -> Self:
        """Move to a device, and run the network there on one picture; return itself.

        What the precision lacks on the device shows before work. Modules that fail at half precision then run in
        float32, see `find_islands`; `islands` names them.

        Parameters
        ----------
        device
            Where it is to work.
        gradient
            Whether the network is to be differentiated there; on a CPU at half precision by `QuickGradients`.

        Raises
        ------
        InputError
            The network fails, and not only in parts of it; see `naming_failure`.
        """
        self.to(device)
        self._quick = gradient and device.type == "cpu" and self.precision != "fp32"
        try:
            self._try(device, gradient)
        except InputError:
            full, picture = self._classifier.network, self._picture(device)
            found = find_islands(self.network, full, picture, gradient=gradient) if self.precision != "fp32" else []
            if not found:
                raise
            self._try(device, gradient)
            self.islands = described(found, self.precision, device)
        return self

    def _gradients(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a forward pass that may be differentiated."""
        return QuickGradients() if self._quick else contextlib.nullcontext()

    def _picture(self, device: torch.device) -> Tensor:
        shape = (1, 3, self._size, self._size)
        return torch.zeros(shape, device=device, dtype=DTYPES[self.precision]).to(memory_format=torch.channels_last)

    def _try(self, device: torch.device, gradient: bool) -> None:
        picture = self._picture(device).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient), self.naming_failure(device), self._gradients():
            logits = self.network(picture)
            if gradient:
                torch.autograd.grad(logits.float().sum(), picture)

    @contextlib.contextmanager
    def naming_failure(self, device: torch.device) -> Iterator[None]:
        """Turn what the network raises into one line that names the operation, as one that the precision lacks.

        A lack of memory and a failing GPU pass are not the network's; the former is a `torch.OutOfMemoryError` then.
        """
        try:
            yield
        except (Exception, SystemExit) as error:  # the network's own code raises any kind
            if lacks_gpu_memory(error) and not isinstance(error, torch.OutOfMemoryError):
                raise torch.OutOfMemoryError(in_short(error)) from error
            if is_the_machines(error):
                raise
            reason = f"{in_short(error)}, {_place(error)}"
            half = self.precision != "fp32"
            fix = "use --precision fp32" if half else "it must run there, and for training be differentiable"
            raise InputError(f"{self.model}: fails at {self.precision} on {device.type} ({reason}); {fix}") from error


def _place(error: BaseException) -> str:
    """Return the function and line that an error comes from: PyTorch's messages often name only a kernel inside."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"in {last.name}, {Path(last.filename).name} line {last.lineno}"
