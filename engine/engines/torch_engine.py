"""The reference engine: PyTorch, eager, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ...export.classifier import DTYPES, PRECISIONS, FrozenClassifier
from ...export.errors import EngineUnavailable, InputError
from ...export.occluded import OccludedClassifier
from ...kernels.impl import choose_impl
from ...kernels.occlude import as_grid
from ..runtime import exact_float32
from .base import Engine, Subject


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU. One of several GPUs (`cuda:1`) becomes PyTorch's current one.

    Triton launches on the current GPU, and events are recorded there, whatever device the tensors are on.

    Raises
    ------
    InputError
        Not a device of PyTorch.
    EngineUnavailable
        CUDA is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable(
            f"--device {device}: PyTorch {torch.__version__} finds no CUDA GPU or driver here; use cpu"
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise EngineUnavailable(f"--device {device}: no such GPU here; use one of cuda:0 to cuda:{last}")
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    if resolved.type == "cuda" and ":" in device:
        torch.cuda.set_device(resolved)
    return resolved


def checked_impl(impl: str, device: torch.device) -> tuple[str, str]:
    """`choose_impl` for a command's `--impl`: which kernels, and why in words; raises `InputError`."""
    try:
        return choose_impl(impl, device)
    except ValueError as error:
        raise InputError(f"--impl {impl}: {error}") from error


def device_name(device: torch.device) -> str:
    """What a record calls it: `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class TorchEngine(Engine):
    """Kernels around the bare network: `occlude` → network → logits, in PyTorch.

    `impl` chooses the kernels, as in `choose_impl`. With `compiled`, `torch.compile` makes the network faster, after a
    start of many seconds.
    """

    name: ClassVar[str] = "torch"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __init__(
        self,
        subject: Subject,
        precision: str,
        device: str = "auto",
        *,
        impl: str = "auto",
        compiled: bool = False,
    ) -> None:
        super().__init__(subject, precision, device)
        self.torch_device = resolve_device(device)
        self.impl, self.impl_reason = checked_impl(impl, self.torch_device)
        self.takes_grids = self.impl == "triton"
        self._compiled = compiled
        self.variant = "compiled" if compiled else None
        self._switches = ExitStack()
        self._bank: Tensor | None = None
        self.device = device_name(self.torch_device)
        self.how = f"kernels {self.impl}: {self.impl_reason}{', torch.compile' if compiled else ''}"

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`: all of them, anywhere."""
        resolve_device(device)
        return PRECISIONS

    def open(self) -> None:
        """Convert the network once to the precision, on the device; fp32 on CUDA is fp32, not TF32, until closed."""
        assert isinstance(self.subject, FrozenClassifier)  # it has no formats
        model = OccludedClassifier(self.subject, self.precision, impl=self.impl)
        self._model = model.to(self.torch_device).eval()
        if self._compiled:  # the network alone: what is around it are kernels already
            model.network.compile(dynamic=True)
        self._switches.enter_context(exact_float32(self.precision, self.torch_device))

    def _load_bank(self, occluders: Tensor) -> None:
        self._bank = occluders.to(self.torch_device).contiguous()

    @torch.inference_mode()
    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        grid, on_host = None, image_index.device.type == occluder_index.device.type == "cpu"
        if on_host and self.takes_grids:  # elsewhere this would wait for the GPU; the reference goes pair by pair
            grid = as_grid(image_index, occluder_index)
        lists = (index.to(self.torch_device) for index in grid or (image_index, occluder_index))
        return self._model(
            images.to(self.torch_device), *lists, self._bank, grid=grid is not None, validate=not on_host
        )

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
        """Drop the network and the bank, and give convolutions and products the float32 that they had before."""
        self._switches.close()
        del self._model
        self._bank = None
