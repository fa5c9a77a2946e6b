"""The reference engine: PyTorch, eager or compiled, on CPU or CUDA."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ...export.cache import refuse_foreign
from ...export.classifier import DTYPES, PRECISIONS, FrozenClassifier
from ...export.occluded import OccludedClassifier
from ...export.subject import Subject
from ...kernels.impl import Impl
from ..devices import checked_impl, device_name, exact_float32, resolve_device
from .base import Engine


@dataclass(frozen=True)
class TorchOptions:
    """Options of the torch engine."""

    impl: Impl = field(default="auto", metadata={"help": "fused operations: auto (Triton on CUDA), reference, triton"})
    compiled: bool = field(default=False, metadata={"help": "compile the network with torch.compile first"})


class TorchEngine(Engine):
    """Kernels around the bare network: `occlude` → network → logits, in PyTorch.

    `impl` selects the kernels, as in `choose_impl`. With `compiled`, `torch.compile` makes the network faster, after a
    start of many seconds.
    """

    name: ClassVar[str] = "torch"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    packages: ClassVar[tuple[str, ...]] = ("torch", "triton")
    rank: ClassVar = {"cpu": 3, "cuda": 2}
    Options: ClassVar[type[TorchOptions]] = TorchOptions
    options: TorchOptions

    def __init__(
        self,
        subject: Subject,
        precision: str,
        device: str = "auto",
        options: TorchOptions | None = None,
        pairs: int | None = None,
    ) -> None:
        super().__init__(subject, precision, device, options, pairs)
        self.torch_device = resolve_device(device)
        self.impl, self.impl_reason = checked_impl(self.options.impl, self.torch_device)
        self.takes_grids = self.impl == "triton"
        self.variant = "compiled" if self.options.compiled else None
        self._switches = ExitStack()
        self._bank: Tensor | None = None
        self.device = device_name(self.torch_device)

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`: all of them, on any device."""
        resolve_device(device)
        return PRECISIONS

    def open(self) -> None:
        """Convert the network once to the precision, on the device; fp32 on CUDA is fp32, not TF32, until closed.

        Modules that the precision lacks there run in float32, see `OccludedClassifier.settled`; `how` names them.

        Raises
        ------
        InputError
            The network does not run at that precision on that device.
        """
        assert isinstance(self.subject, FrozenClassifier)  # the engine has no formats
        model = OccludedClassifier(self.subject, self.precision, impl=self.impl).eval()
        self._model = model.settled(self.torch_device)
        self.how = f"kernels {self.impl}: {self.impl_reason}{', torch.compile' if self.options.compiled else ''}"
        self.how += f"; {model.islands}" if model.islands else ""
        if self.options.compiled:  # the network alone; fused kernels surround it already
            model.network.compile(dynamic=True)
            _refuse_foreign_code()
        self._switches.enter_context(exact_float32(self.precision, self.torch_device))

    def _load_bank(self, occluders: Tensor) -> None:
        self._bank = occluders.to(self.torch_device).contiguous()

    @torch.inference_mode()
    def _logits(self, images: Tensor, image_index: Tensor, occluder_index: Tensor, *, grid: bool) -> Tensor:
        return self._model(images, image_index, occluder_index, self._bank, grid=grid, validate=False)

    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        return self._logits(images, image_index, occluder_index, grid=False)

    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """See `Engine.bare`."""
        size, network = self._classifier().preprocessing.input_size, self._model.network
        noise = torch.randn(batch, 3, size, size, device=self.torch_device, dtype=DTYPES[self.precision])

        def run(pictures: Tensor) -> object:
            with torch.inference_mode():
                return network(pictures)

        return {
            "NHWC": partial(run, noise.contiguous(memory_format=torch.channels_last)),
            "NCHW": partial(run, noise.contiguous()),
        }

    def close(self) -> None:
        """Drop the network and the bank, and restore the float32 mode of convolutions and products."""
        self._switches.close()
        del self._model
        self._bank = None


def _refuse_foreign_code() -> None:
    """Raise `InputError` where others could have put code into what `torch.compile` keeps and loads.

    Unless told otherwise that is `/tmp/torchinductor_<user>`, a name that anybody can take first.
    """
    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # PyTorch itself sets it, once it is to compile
    if kept is not None:
        refuse_foreign(Path(kept), "TORCHINDUCTOR_CACHE_DIR")
